"""All trials: a `TRIAL` in each module of this package that has one."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import tests.chaos.trials
from tests.chaos.trials.trial import Trial


def all_trials() -> dict[str, Trial]:
    """By name, in alphabetical order."""
    modules = [
        import_module(f"{tests.chaos.trials.__name__}.{found.name}")
        for found in iter_modules(tests.chaos.trials.__path__)
    ]
    trials = [trial for module in modules if isinstance(trial := getattr(module, "TRIAL", None), Trial)]
    return {trial.name: trial for trial in sorted(trials, key=lambda trial: trial.name)}
