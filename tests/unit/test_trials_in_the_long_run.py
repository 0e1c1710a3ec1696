"""One worker and a job that kills it, again and again, as `judge_slots` judges: who is charged in the end, and how long
the others take. Time is simulated, and so is who starts when; the tests of pools have the rest."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from pgworker.linux.row import Run
from pgworker.master.causes import judge_slots
from pgworker.model.state import Outcome
from pgworker.model.trial import trial

ATTEMPTS = 25
RESTART = 0.3
"""Seconds from a death to the next worker."""


@dataclass(eq=False)
class Job:
    """`kills_at`: seconds after its start; None: an innocent, which ends after `lasts`. `place`: its turn."""

    kills_at: float | None
    lasts: float
    place: float
    ready: float = 0.0
    suspicions: int = 0
    failures: int = 0
    ended: float | None = None


@dataclass
class Worker:
    """One that is replaced whenever it dies, and what runs in it since when."""

    jobs: list[Job]
    slots: int
    now: float = 0.0
    deaths: int = 0

    def __post_init__(self) -> None:
        self.runs: dict[Job, tuple[float, float]] = {}

    def work(self) -> None:
        """Until all have ended, in one way or the other."""
        while any(job.ended is None for job in self.jobs):
            self._start()
            self.now, job = min(self._next(), key=lambda moment: moment[0])
            if job is None:
                continue
            if job.kills_at is None:
                job.ended = self.now
                del self.runs[job]
            else:
                self._die()

    def _start(self) -> None:
        while len(self.runs) < self.slots and self.now >= self._trial_until:
            waiting = [job for job in self.jobs if job.ended is None and job not in self.runs and job.ready <= self.now]
            if not waiting:
                return
            job = min(waiting, key=lambda job: job.place)
            self.runs[job] = self.now, self.now + trial(job.suspicions) if job.suspicions else 0.0

    @property
    def _trial_until(self) -> float:
        return max(self.runs.values(), default=(0.0, 0.0))[1]

    def _next(self) -> list[tuple[float, Job | None]]:
        ends: list[tuple[float, Job | None]] = [
            (since + (job.lasts if job.kills_at is None else job.kills_at), job)
            for job, (since, _) in self.runs.items()
        ]
        starts = [job.ready for job in self.jobs if job.ended is None and job not in self.runs]
        return ends + [(at, None) for at in [*starts, self._trial_until] if at > self.now]

    def _die(self) -> None:
        self.deaths += 1
        self.now += 1e-9
        ran = list(self.runs)
        runs = [
            Run(slot, 1, 0, slot + 1, round(since * 1e9), 0, slot, 0, round(until * 1e9))
            for slot, (since, until) in enumerate(self.runs.values())
        ]
        verdicts = judge_slots(len(ran), runs, {}, Outcome.CRASHED, "", round(self.now * 1e9))
        is_clear = verdicts.count(Outcome.CRASHED) == 1
        for job, verdict in zip(ran, verdicts, strict=True):
            job.ready = self.now + RESTART
            if verdict != Outcome.CRASHED:
                job.suspicions = 0
            elif is_clear:
                self._charge(job)
            else:
                job.suspicions += 1
        self.runs.clear()

    def _charge(self, job: Job) -> None:
        job.suspicions = max(job.suspicions, 1)
        job.failures += 1
        if job.failures == ATTEMPTS:
            job.ended = self.now
        elif job.failures > 1:
            job.ready = job.place = self.now + min(30.0, 2.0 ** (job.failures - 1))


def beside(kills_at: float, innocents: int, lasts: float, seed: int) -> tuple[Job, list[Job]]:
    """One that kills, anywhere among others."""
    dice = random.Random(seed)
    places = dice.sample(range(innocents + 1), innocents + 1)
    poison, *others = [Job(None, lasts, place) for place in places]
    poison.kills_at = kills_at
    return poison, others


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("innocents", "lasts", "kills_at"),
    [
        *[(1, 600.0, kills_at) for kills_at in (0.01, 0.2, 0.7, 3.0, 5.0, 9.0, 20.0, 40.0)],
        *[(7, 60.0, kills_at) for kills_at in (0.01, 0.2, 0.7, 3.0, 5.0, 20.0, 40.0)],
        *[(49, 60.0, kills_at) for kills_at in (0.01, 0.2, 0.7, 3.0, 5.0)],
    ],
)
def test_one_that_kills_its_worker_is_found_and_nobody_else_is_charged(
    kills_at: float, innocents: int, lasts: float, seed: int
) -> None:
    """Not so a moment after a trial would end: after 2.2 s, say, as the next one is in the first moment of its own."""
    poison, others = beside(kills_at, innocents, lasts, seed)
    worker = Worker([poison, *others], slots=innocents + 1)
    worker.work()
    assert poison.failures == ATTEMPTS
    assert not any(job.failures for job in others)
    assert worker.deaths <= ATTEMPTS + 12


@pytest.mark.parametrize("seed", range(10))
def test_one_that_kills_at_once_holds_up_no_short_jobs_whatever_runs_long_beside_it(seed: int) -> None:
    dice = random.Random(seed)
    long = [Job(None, 600.0, -number) for number in range(3)]
    short = [Job(None, 1.0, number / 5, ready=number / 5) for number in range(1500)]
    at = dice.uniform(5, 50)
    poison = Job(dice.choice([0.01, 0.05, 0.15]), 1.0, at, ready=at)
    arrived = {job: job.ready for job in short}
    Worker([*long, *short, poison], slots=16).work()
    assert [job.failures for job in (*long, *short)] == [0] * 1503
    waits = [job.ended - arrived[job] for job in short if job.ended is not None]
    assert sum(waits) / len(waits) < 10
