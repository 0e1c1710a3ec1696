"""Every trial holds when it is tried briefly, as part of the ordinary tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.trials.__main__ import run
from tests.chaos.trials.catalogue import all_trials
from tests.chaos.trials.trial import Trial


@pytest.mark.parametrize("trial", [pytest.param(trial, id=name) for name, trial in all_trials().items()])
def test_what_is_promised_holds_when_tried_briefly(trial: Trial, binaries: Path | None) -> None:
    figures = run(trial, trial.short, seed=7, binaries=binaries)
    assert figures
    assert [figure for figure in figures if figure.holds is False] == []
