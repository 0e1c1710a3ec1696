"""A pool is stopped for longer than its leases while it runs jobs; another one finishes them; then it goes on.

A try is a settle that the stopped pool sends, or a COMMIT of a job's own transaction that it attempts, for an execution
whose lease another pool had ended by then: one job and execution, one line `result_lost` of the stopped pool.
Stopped are all of its processes, or all but one worker, whose leases end too, as nobody renews them. When they go on,
some have ended their jobs and not yet settled them, others end them now: plain ones and those with a transaction, in
threads and on the event loop. A settle is of many jobs at once, and claims on the same trip.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from pgworker.model.job import JobRequest
from tests.chaos.trials import ledgers
from tests.chaos.trials.apps.jobs import effect_gated, effect_gated_async, gated, gated_async
from tests.chaos.trials.figures import durations, none_of, told
from tests.chaos.trials.ground import READY, Ground, gate, ground, open_gate, pause
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import Pool, eventually
from tests.sql.invariants import WITNESSED, offences

TTL = 2.0
SLOTS = 100
WORKERS = 2
TRANSACTIONS = 12
"""Of each kind, in a round: each needs a connection in both pools."""
SETTINGS: dict[str, Any] = {"workers": WORKERS, "slots": SLOTS, "lease_ttl": TTL, "heartbeat_interval": 0.3}
LONE = 5
"""Workers that are stopped alone, in a trial that is not brief."""
BRIEF = 1000

_REFUSED = re.compile(r"event=result_lost\b.*\bjob=([0-9a-f-]{36}).*\bexecution=(\d+)")


@dataclass(slots=True)
class NewLines:
    """A log that is read on from where it was last read."""

    log: Path
    _read: int = 0

    def look(self) -> list[str]:
        with self.log.open("rb") as log:
            log.seek(self._read)
            whole, _, _ = log.read().rpartition(b"\n")
        self._read += len(whole) + bool(whole)
        return whole.decode(errors="replace").splitlines()


@dataclass(slots=True)
class Refusals:
    """Which settles a pool says were refused."""

    lines: NewLines
    found: set[tuple[UUID, int]] = field(default_factory=set)

    def look(self) -> set[tuple[UUID, int]]:
        for line in self.lines.look():
            if seen := _REFUSED.search(line):
                self.found.add((UUID(seen[1]), int(seen[2])))
        return self.found


@dataclass(slots=True)
class Rounds:
    """The two pools, and all that came of it."""

    bench: Bench
    place: Ground
    stopped: Pool
    other: Pool
    refusals: Refusals
    others_lines: NewLines
    killed: int = 0
    _seen: int = 0

    def play(self, number: int) -> None:
        """Have one pool hold jobs, stop it, let the other one finish them, let the first go on."""
        with gate(self.place, f"gate{number}") as path:
            jobs = self.place.enqueue(list(self.requests(path.name)))
            holders = self.wait_for_starts(jobs)
            self.have_other("claiming again")
            at_the_brink = self.bench.dice.random() < 0.3
            if at_the_brink:
                open_gate(path)
                pause(self.bench.dice.uniform(0, 0.02))
            spared = self.bench.dice.choice([0, 0, self.bench.dice.choice(self.stopped.workers)])
            signal_some(self.stopped, signal.SIGSTOP, spared)
            eventually(lambda: self.are_finished(jobs), lambda: f"the other pool finishes: {self.place.describe()}")
            self.have_other("claiming is paused")
            open_gate(path)
            self.go_on(jobs, holders)

    def have_other(self, said: str) -> None:
        """Pause the other pool, or have it claim again."""
        self.other.send(signal.SIGUSR2)
        eventually(lambda: any(said in line for line in self.others_lines.look()), said)

    def requests(self, name: str) -> Iterator[JobRequest]:
        free = SLOTS * WORKERS - 2 * TRANSACTIONS
        for task, share in (
            (effect_gated, TRANSACTIONS),
            (effect_gated_async, TRANSACTIONS),
            (gated_async, free // 3),
            (gated, free - free // 3),
        ):
            yield from (task.job(name) for _ in range(share))

    def wait_for_starts(self, jobs: Sequence[UUID]) -> dict[UUID, int]:
        """Which process runs which job, once all run."""
        wanted = set(jobs)

        def look() -> dict[UUID, int]:
            seen = {one.job_id: one.pid for one in ledgers.read(self.place.directory, self._seen)}
            found = {job: pid for job, pid in seen.items() if job in wanted}
            return found if len(found) == len(wanted) else {}

        holders = eventually(look, lambda: f"all jobs running: {self.place.describe()}")
        self._seen = sum(1 for _ in ledgers.read(self.place.directory))
        return holders

    def are_finished(self, jobs: Sequence[UUID]) -> bool:
        succeeded = "select count(*) from pgworker.job_executions where job_id = any (%s) and outcome = 'succeeded'"
        return int(self.place.scalar(succeeded, list(jobs))) == len(jobs)

    def go_on(self, jobs: Sequence[UUID], holders: dict[UUID, int]) -> None:
        """Mostly the workers first: then nobody kills them before they have settled. Wait until all of them have."""
        workers_first = self.bench.dice.random() < 0.7
        if workers_first:
            for pid in self.stopped.workers:
                os.kill(pid, signal.SIGCONT)
            self.wait_for_refusals(jobs, holders)
        signal_some(self.stopped, signal.SIGCONT)
        self.wait_for_refusals(jobs, holders)
        refused = {job for job, _ in self.refusals.look()}
        taken = self.taken(jobs)
        self.killed += len(taken - refused)
        assert not (workers_first and taken - refused), "each settle was sent, and each one refused"

    def wait_for_refusals(self, jobs: Sequence[UUID], holders: dict[UUID, int]) -> None:
        taken = self.taken(jobs)

        def look() -> bool:
            refused = {job for job, _ in self.refusals.look()}
            alive = set(self.stopped.workers)
            return all(job in refused or holders[job] not in alive for job in taken)

        eventually(look, lambda: f"all refused: {self.describe(taken - {job for job, _ in self.refusals.found})}")

    def describe(self, jobs: Collection[UUID]) -> str:
        executions = """
            select job_id, task, e.execution, outcome, position, finished_at, cause
            from pgworker.job_executions as e join pgworker.jobs on id = job_id where job_id = any (%s)
        """
        lines = [line[:250] for line in self.stopped.log().splitlines() for job in jobs if str(job) in line]
        seen = [one for one in ledgers.read(self.place.directory) if one.job_id in jobs]
        return f"{self.place.rows(executions, list(jobs))}, {seen}, {lines}"

    def taken(self, jobs: Sequence[UUID]) -> set[UUID]:
        """Those of which the stopped pool did not settle the first execution in time."""
        settled = (
            "select job_id from pgworker.job_executions where job_id = any (%s) and execution = 1 and cause is null"
        )
        return set(jobs) - {job for (job,) in self.place.rows(settled, list(jobs))}

    def stop_one(self, number: int) -> float:
        """Stop a worker alone, while it runs jobs: seconds until its leases are taken back."""
        with gate(self.place, f"lone{number}") as path:
            jobs = self.place.enqueue([gated.job(path.name) for _ in range(SLOTS)])
            holders = self.wait_for_starts(jobs)
            victim = self.bench.dice.choice(sorted(set(holders.values())))
            os.kill(victim, signal.SIGSTOP)
            began = time.time()
            left = """
                select extract(epoch from max(left_at.at))::float8 from chaos.lease_left as left_at
                join pgworker.worker_heartbeats as worker using (worker_id)
                where worker.pid = %s and left_at.at > to_timestamp(%s)
            """
            seconds = eventually(lambda: self.place.scalar(left, victim, began), "the stopped worker's jobs taken back")
            assert victim not in self.stopped.workers
            open_gate(path)
            self.place.wait_until_quiet()
            return float(seconds) - began


def signal_some(pool: Pool, number: int, spared: int = 0) -> None:
    """To all but one: stop the master first, let it go on last, so that it replaces nobody meanwhile."""
    for pid in sorted(pool.processes(), key=lambda pid: (pid == pool.master) == (number != signal.SIGSTOP)):
        if pid != spared:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def run(bench: Bench) -> Sequence[Figure]:
    with ground(bench) as place, place.pool(ready=False, **SETTINGS) as stopped, place.pool(**SETTINGS) as other:
        stopped.wait_for_log(READY)
        rounds = Rounds(bench, place, stopped, other, Refusals(NewLines(stopped.log_file)), NewLines(other.log_file))
        rounds.have_other("claiming is paused")
        number = 0
        while len(rounds.refusals.found) < bench.size:
            number += 1
            rounds.play(number)
            if number % 10 == 0:
                bench.tell(f"{len(rounds.refusals.found):,} settles refused in {number} rounds")
        lone = [rounds.stop_one(one) for one in range(LONE if bench.size > BRIEF else 0)]
        for pool in (stopped, other):
            pool.send(signal.SIGTERM)
            pool.wait()
        ledgers.store(place.connection, place.directory, place.enqueued)
        return figures(rounds, lone)


def figures(rounds: Rounds, lone: Sequence[float]) -> list[Figure]:
    place, tries = rounds.place, len(rounds.refusals.found)
    wrong = offences(place.connection, {**ledgers.WRONG, **WITNESSED_STALE})
    return [
        none_of("stale settles accepted", sum(len(rows) for rows in wrong.values()), f"{tries:,}"),
        told("of which by a COMMIT", f"{commits(rounds):,}"),
        place.offences(),
        told("jobs whose worker was killed before its settle", f"{rounds.killed:,}"),
        *([durations(f"a worker stopped alone, until reclaimed (TTL {TTL:g} s)", None, lone)] if lone else []),
    ]


def commits(rounds: Rounds) -> int:
    rows = rounds.place.rows("select id from pgworker.jobs where task like 'effect%%'")
    transactions = {job for (job,) in rows}
    return sum(1 for job, _ in rounds.refusals.found if job in transactions)


WITNESSED_STALE = {
    name: query
    for name, query in WITNESSED.items()
    if name == "I2: nothing is settled after its lease was lost" or name.startswith("I1: at the end")
}

TRIAL = Trial(
    name="stale_settle",
    promise="a pool stopped past its leases settles nothing that others have taken when it goes on",
    unit="stale settles",
    full=10_000,
    short=150,
    run=run,
    server_options=(("max_connections", "1000"),),  # each slot keeps one for its transactions, and one of its loop
)
