"""Every trial holds when it is tried briefly, as part of the ordinary tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgworker.db.embedded import Server
from tests.chaos.trials.__main__ import run, started
from tests.chaos.trials.catalogue import all_trials
from tests.chaos.trials.trial import Trial

TRIALS = all_trials()


@pytest.fixture(scope="module")
def bench_server(binaries: Path | None) -> Iterator[Server]:
    """One for all of them: each has a database of its own, and what is restarted or broken is another server."""
    with started(list(TRIALS.values()), binaries) as server:
        yield server


@pytest.mark.parametrize("trial", [pytest.param(trial, id=name) for name, trial in TRIALS.items()])
def test_what_is_promised_holds_when_tried_briefly(trial: Trial, bench_server: Server) -> None:
    figures = run(trial, trial.short, seed=7, server=bench_server)
    assert figures
    assert [figure for figure in figures if figure.holds is False] == []
