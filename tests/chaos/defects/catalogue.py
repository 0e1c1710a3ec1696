"""All defects, and how a process of a pool gets its own."""

from __future__ import annotations

from collections.abc import Mapping

from tests.chaos.defects import functions, statements
from tests.chaos.defects.defect import VARIABLE, Bed, Defect

NOTHING = Defect("nothing", "nothing is broken: the control", lambda _: None, frozenset(), is_harmless=True)


def all_defects() -> Mapping[str, Defect]:
    """By name, what is none at the end."""
    known = (*statements.DEFECTS, *functions.DEFECTS, *functions.HARMLESS, NOTHING)
    return {defect.name: defect for defect in known}


def plant_by_environment(environment: Mapping[str, str]) -> None:
    """Plant what the environment names, if anything, in this process and all that it will fork."""
    if name := environment.get(VARIABLE):
        all_defects()[name].plant(Bed())
