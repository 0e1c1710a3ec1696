"""Pools are ended by signals at random moments: of their boot, while they claim, run, settle, fork and roll.

Each ends in time, with an exit code that is documented, nothing leased and no process left; at the end a last pool
runs what was given back, and nothing was lost, nobody charged, no effect wrong.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pgworker.model.job import JobRequest
from tests.chaos.trials import ledgers
from tests.chaos.trials.apps.jobs import effect, plain, plain_async
from tests.chaos.trials.figures import durations, none_of, told
from tests.chaos.trials.ground import READY, Ground, ground, pause
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import Pool, eventually
from tests.sql.invariants import STORED, offences

TOGETHER = 4
"""Pools at a time, each on a database of its own, which the next one goes on with."""
BRIEF = 20
DRAIN = 3.0
IN_TIME = DRAIN + 1 + 5
"""Seconds: the drain, the last call, and what the monitor has to record who was killed."""
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
CHANGES = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2)
SETTINGS: dict[str, Any] = {
    "workers": 2,
    "drain_timeout": DRAIN,
    "cancel_grace": 1,
    "term_grace": 0.5,
    "max_jobs": 15,
    "max_age": 2,
}


@dataclass(slots=True)
class Lane:
    """Pools one after the other, on one database."""

    place: Ground
    dice: random.Random
    seconds: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def end_one(self) -> None:
        """Start a pool, send it what changes it, end it, and look at what is left."""
        self.place.enqueue(list(self.requests()))
        boots = self.dice.random() < 0.25
        slots = self.dice.choice([1, 1, 4])
        with self.place.pool(ready=False, slots=slots, **SETTINGS) as pool:
            if boots:
                pause(self.dice.uniform(0, 0.8))
            else:
                eventually(lambda: READY in pool.log(), "a pool that is ready")
                self.change(pool)
            number = self.dice.choice(ENDS)
            began = time.monotonic()
            self.send(pool, number)
            code = pool.wait()
            self.seconds.append(time.monotonic() - began)
        self.look_at(code, number, boots=boots)

    def requests(self) -> list[JobRequest]:
        jobs = [
            self.dice.choice([plain, plain, plain_async, effect]).job(self.dice.choice([0.0, 0.0, 0.02, 0.2]))
            for _ in range(60)
        ]
        if self.dice.random() < 0.2:
            jobs.append(plain.job(2 * DRAIN))  # it goes back, uncharged
        self.dice.shuffle(jobs)
        return jobs

    def change(self, pool: Pool) -> None:
        for _ in range(self.dice.randrange(8)):
            pool.send(self.dice.choice(CHANGES))
            pause(self.dice.choice([0, 0.005, 0.05, 0.3]))

    def send(self, pool: Pool, number: signal.Signals) -> None:
        """Once, twice at once, or again when a drain has begun."""
        pool.send(number)
        again = self.dice.random()
        if again < 0.2:
            pool.send(self.dice.choice(ENDS))
        elif again < 0.4:
            pause(self.dice.uniform(0, 1.5))
            if pool.process.poll() is None:
                pool.send(self.dice.choice([signal.SIGINT, signal.SIGQUIT, signal.SIGTERM]))

    def look_at(self, code: int, number: signal.Signals, *, boots: bool) -> None:
        """130: Ctrl-C before there was a pool. Killed by the signal, or 1: Python itself was still starting."""
        allowed = {0, 75} | ({1, 130, *(-end for end in ENDS)} if boots else set())
        how = f"{code}" if code >= 0 else "by the signal"
        self.ends[how] += 1
        if code not in allowed:
            self.wrong.append(f"{number.name} ended a pool with {code}")
        released = """
            select exists (select from pgworker.job_executions where outcome = 'released'
                             and finished_at > clock_timestamp() - %s * interval '1 second')
        """
        if code == 0 and self.place.scalar(released, self.seconds[-1]):
            self.wrong.append("a job was stopped, and the exit code is 0")
        self.wrong += [f"leased: {lease}" for lease in self.place.rows("select * from pgworker.job_leases")]
        self.wrong += [f"{name}: {rows}" for name, rows in offences(self.place.connection, STORED).items()]

    def finish(self) -> None:
        """Run what is left, and compare all that was seen."""
        with self.place.pool(workers=2, slots=4):
            self.place.wait_until_quiet()
        ledgers.store(self.place.connection, self.place.directory, self.place.enqueued)
        self.wrong += [f"{name}: {rows}" for name, rows in offences(self.place.connection, ledgers.WRONG).items()]
        charged = self.place.rows("select job_id, outcome, cause from pgworker.job_executions where failures > 0")
        self.wrong += [f"charged: {row}" for row in charged]


def run(bench: Bench) -> Sequence[Figure]:
    lanes = min(TOGETHER, bench.size)
    seeds = [bench.dice.random() for _ in range(lanes)]

    def go(number: int) -> Lane:
        with ground(bench, f"lane{number}") as place:
            lane = Lane(place, random.Random(seeds[number]))
            for one in range(bench.size // lanes + (number < bench.size % lanes)):
                lane.end_one()
                if number == 0 and one % 25 == 24:
                    bench.tell(f"about {(one + 1) * lanes} pools have ended")
            lane.finish()
            return lane

    with ThreadPoolExecutor(lanes) as threads:
        done = list(threads.map(go, range(lanes)))
    wrong = [what for lane in done for what in lane.wrong]
    for what in wrong[:20]:
        bench.tell(what)
    seconds = [second for lane in done for second in lane.seconds]
    ends = sum((lane.ends for lane in done), Counter[str]())
    return [
        none_of("leases left, jobs lost or charged, codes undocumented", len(wrong), f"{len(seconds):,} pools"),
        durations("from the signal to the end", IN_TIME if bench.size > BRIEF else None, seconds, part=100),
        told("exit codes", ", ".join(f"{code}: {count}" for code, count in sorted(ends.items()))),
    ]


TRIAL = Trial(
    name="drains",
    promise="a pool ended by a signal at any moment ends in time, with nothing leased, lost or charged",
    unit="pools",
    full=1000,
    short=2,
    run=run,
)
