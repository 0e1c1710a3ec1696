"""One job in a hundred that were claimed together takes its worker with it: none of the others is charged for that.

A fatal signal names its thread, with one slot only one job can run, and want of memory is an error in who wants it.
Elsewhere (`os._exit` or SIGKILL with more slots, or whatever happens on an event loop, which is one thread) nobody can
tell who it was: all that ran are spared, and the next time the guilty one is on trial, with nothing started after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tests.chaos.trials import ledgers
from tests.chaos.trials.apps.jobs import plain, plain_async, poison, poison_async
from tests.chaos.trials.figures import none_of, told
from tests.chaos.trials.ground import Ground, ground
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import eventually
from tests.sql.invariants import offences

BATCH = 100
WARM = 40
"""Quick jobs before each batch: a worker that is new claims one at a time until it knows that jobs are short."""
HOWS = ("kill", "segfault", "exit", "memory")
MODES: dict[str, tuple[int, Any, Any]] = {
    "one-slot": (1, plain, poison),
    "four-slots": (4, plain, poison),
    "event-loop": (4, plain_async, poison_async),
}

_TOGETHER = """
    select how, count(*) filter (where claimed.jobs >= %s), count(*)
    from (select payload->>'how' as how, e.lease_id
          from pgworker.job_executions as e join pgworker.jobs on id = e.job_id
          where task like 'poison%%' and queue = %s) as poison
    join chaos.claimed using (lease_id) group by how
"""


@dataclass(slots=True)
class Batches:
    """Batches of one mode, in a queue of their own."""

    place: Ground
    bench: Bench
    mode: str
    wronged: int = 0
    """Innocents that were charged."""
    spared: int = 0
    """Those that ran beside the guilty one when it could not be told, and went back uncharged."""
    most_crashes: int = 0
    """Of the guilty one, whose first charge is its end."""

    def run_one(self, how: str) -> None:
        _, good, bad = MODES[self.mode]
        good, bad = good.options(queue=self.mode), bad.options(queue=self.mode)
        self.place.enqueue([good.job() for _ in range(WARM)])
        self.place.wait_until_quiet()
        batch = [good.job() for _ in range(BATCH - 1)]
        at = self.bench.dice.randrange(BATCH)
        jobs = self.place.enqueue([*batch[:at], bad.job(how), *batch[at:]])
        guilty = jobs.pop(at)
        self.place.enqueued.remove(guilty)
        eventually(lambda: self.is_dead(guilty), lambda: f"{how} is a dead letter; {self.place.describe()}")
        self.place.wait_until_quiet()
        self.wronged += self.count("failures > 0", jobs)
        self.spared += self.count("error->>'type' = 'pgworker.suspect'", jobs)
        self.most_crashes = max(self.most_crashes, self.count("true", [guilty], "execution"))

    def count(self, which: str, jobs: Sequence[UUID], what: str = "job_id") -> int:
        counting = f"select count(distinct {what}) from pgworker.job_executions where job_id = any (%s) and {which}"
        return int(self.place.scalar(counting, list(jobs)))

    def is_dead(self, job: UUID) -> bool:
        return bool(self.place.scalar("select exists (select from pgworker.dead_letter_jobs where job_id = %s)", job))


def run(bench: Bench) -> Sequence[Figure]:
    with ground(bench) as place:
        modes = [Batches(place, bench, mode) for mode in MODES]
        for number, each in enumerate(modes):
            slots = MODES[each.mode][0]
            rounds = bench.size // len(modes) + (number < bench.size % len(modes))
            with place.pool(workers=1, slots=slots, queues=[each.mode], memory_limit="400M"):
                for round_ in range(rounds):
                    each.run_one(HOWS[(number + round_) % len(HOWS)])
                    if round_ % 50 == 49:
                        bench.tell(f"{each.mode}: {round_ + 1} batches")
        ledgers.store(place.connection, place.directory, place.enqueued)
        wrong = offences(place.connection, ledgers.WRONG)
        figures = [figure for each in modes for figure in figures_of(each)]
        return [*figures, none_of("innocents lost, or run to no end", sum(map(len, wrong.values()))), place.offences()]


def figures_of(each: Batches) -> list[Figure]:
    together = each.place.rows(_TOGETHER, BATCH, each.mode)
    batches = sum(whole for _, whole, _ in together)
    figures = [
        none_of(f"{each.mode}: innocents charged", each.wronged, f"{batches * (BATCH - 1):,}"),
        told(f"{each.mode}: claimed as one batch", f"{batches} of {sum(count for *_, count in together)}"),
    ]
    allowed = min(2, MODES[each.mode][0])
    crashes = f"{each.most_crashes}, {each.spared} innocents spared beside it"
    name = f"{each.mode}: crashes until the guilty one is a dead letter"
    return [*figures, Figure(name, f"<= {allowed}", crashes, each.most_crashes <= allowed)]


TRIAL = Trial(
    name="innocents",
    promise="one job in a batch of a hundred kills its worker: of the other 99 none is charged",
    unit="batches",
    full=1200,
    short=3,
    run=run,
)
