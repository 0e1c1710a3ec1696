"""The database's clock, held against ours."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from pgworker.monitor.clock import DatabaseClock

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


@pytest.mark.parametrize("by", [3600.0, 10.0, -10.0, -3600.0])
def test_a_clock_that_was_set_is_noticed_once(by: float) -> None:
    clock = DatabaseClock()
    assert clock.see(at(0), 100.0, 100.01) == 0.0
    assert clock.see(at(5 + by), 105.0, 105.01) == pytest.approx(by, abs=0.1)
    assert clock.see(at(10 + by), 110.0, 110.01) == 0.0


def test_a_clock_that_drifts_and_an_answer_that_takes_long_are_no_step() -> None:
    clock = DatabaseClock()
    assert clock.see(at(0), 100.0, 100.0) == 0.0
    assert clock.see(at(6), 105.0, 105.0) == 0.0
    assert clock.see(at(10), 109.0, 139.0) == 0.0
    assert clock.see(at(70), 169.0, 199.0) == 0.0


def test_what_it_shows_at_most_goes_on_with_our_clock() -> None:
    clock = DatabaseClock()
    assert clock.latest(100.0) is None
    clock.see(at(0), 100.0, 100.0)
    latest = clock.latest(130.0)
    assert latest is not None
    assert at(30) < latest < at(40)
