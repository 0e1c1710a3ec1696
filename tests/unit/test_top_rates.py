"""Rates of workers, from one heartbeat to the next."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from uuid import UUID

import pytest

from pgworker.inspection.workers import WorkerRow
from pgworker.top.rates import Rates

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
WORKER = UUID(int=1)


class Worker:
    """One that beats every 5 s, ends 10 jobs a second and takes half a CPU."""

    def at(self, seconds: float, *, last_beat: float | None = None) -> tuple[datetime, list[WorkerRow]]:
        """What a look finds so many seconds after the start."""
        beat = seconds // 5 * 5 if last_beat is None else last_beat
        age = seconds - beat
        row = WorkerRow(
            WORKER, UUID(int=2), "host", 0, 1, "busy", ["default"], START, age, int(beat * 10), 1 << 20, beat / 2, ()
        )
        return START + timedelta(seconds=seconds), [row]


def test_there_is_no_rate_before_the_second_heartbeat() -> None:
    rates, worker = Rates(), Worker()
    assert rates.update(*worker.at(1)) == {}
    assert rates.update(*worker.at(3)) == {}
    assert rates.update(*worker.at(6))[WORKER].ended == pytest.approx(10)


def test_a_rate_is_that_of_the_last_heartbeats_however_often_one_looks() -> None:
    rates, worker = Rates(), Worker()
    for tenth in range(400):
        found = rates.update(*worker.at(tenth / 10))
        if tenth >= 50:
            assert found[WORKER].ended == pytest.approx(10)
            assert found[WORKER].cpu == pytest.approx(0.5)


def test_a_worker_that_has_gone_silent_has_no_rate() -> None:
    rates, worker = Rates(), Worker()
    rates.update(*worker.at(0))
    assert WORKER in rates.update(*worker.at(5))
    assert rates.update(*worker.at(40, last_beat=5)) == {}


def test_a_worker_that_is_gone_is_forgotten() -> None:
    rates, worker = Rates(), Worker()
    rates.update(*worker.at(0))
    rates.update(START + timedelta(seconds=2), [])
    assert rates.update(*worker.at(5)) == {}, "it begins anew"
