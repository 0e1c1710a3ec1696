"""All faults: the `FAULTS` of each module of this package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

import tests.chaos.faults
from tests.chaos.faults.fault import Fault


def all_faults() -> list[Fault]:
    """By number, those of one number by name."""
    home = tests.chaos.faults
    modules = [import_module(f"{home.__name__}.{found.name}") for found in iter_modules(home.__path__)]
    faults = [fault for module in modules for fault in getattr(module, "FAULTS", ())]
    return sorted(faults, key=lambda fault: (fault.number, fault.name))


def choose(words: str) -> Sequence[Fault]:
    """`all` that may be mixed, `none`, or a list of numbers and names such as 1,5,backends-killed.

    ValueError for one that there is not.
    """
    faults = all_faults()
    if words == "none":
        return []
    if words == "all":
        return [fault for fault in faults if fault.is_mixed]
    chosen: list[Fault] = []
    for word in words.split(","):
        found = [fault for fault in faults if word in (str(fault.number), fault.name)]
        if not found:
            known = ", ".join(f"{fault.number} {fault.name}" for fault in faults)
            raise ValueError(f"there is no fault {word!r}; there are: {known}")
        chosen += found
    return chosen
