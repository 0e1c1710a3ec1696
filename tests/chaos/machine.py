"""The machine: one seed from its plan to its verdict."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos import checker
from tests.chaos.evidence import PRODUCER, Ledger, worker_ledgers
from tests.chaos.plan import Plan, Step
from tests.chaos.producers import Actor, Bystander, Operator, Producer
from tests.chaos.world import PATIENCE, World, world

_HEALED_WITHIN = 120.0
"""Seconds: longer than any fault lasts."""

_PRODUCERS = 2
_KEYS = 1_000_000_000
"""Keys that each producer has for itself."""

Offences = dict[str, list[tuple[Any, ...]]]
Tell = Callable[[str], None]


CRASHES = frozenset({"server-restarted", "server-killed", "failover"})
"""Faults after which the server has forgotten what was committed asynchronously: claims."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a seed. `offences`: what breaks which invariant; `happened`: what was done, how often."""

    seed: int
    jobs: int
    executions: int
    seconds: float
    offences: Offences
    happened: Mapping[str, int]
    directory: Path

    @property
    def holds(self) -> bool:
        return not self.offences


@dataclass(slots=True)
class Trouble:
    """What faults have found that was not as promised."""

    offences: Offences = field(default_factory=dict)

    def add(self, what: str, error: BaseException) -> None:
        self.offences.setdefault(what, []).append((f"{type(error).__name__}: {error}",))


def try_seed(
    plan: Plan,
    directory: Path,
    *,
    seconds: float,
    jobs: int | None,
    tell: Tell = lambda _: None,
    binaries: Path | None = None,
) -> Verdict:
    """Enqueue up to `jobs` jobs for at most so many seconds while the faults of the plan come; then wait, and check."""
    trouble = Trouble()
    began = time.monotonic()
    with world(plan, directory, binaries) as made:
        producers, operator = _actors(made, jobs)
        actors: list[Actor] = [*producers, operator]
        for actor in actors:
            actor.start()
        _inject(made, plan.steps, seconds, producers, trouble, tell)
        for actor in actors:
            _see_end(actor, trouble)
        _come_to_rest(made, trouble, tell)
        for kept in made.pools:
            _drain(kept.plan.name, kept.end, trouble)
        offences = trouble.offences | made.offences_of_pools()
        with made.connect() as connection:
            checker.load(connection, directory)
            offences |= checker.check(
                connection,
                has_steady_clock="clock" not in plan.features,
                has_crashed=not CRASHES.isdisjoint(made.log.happened),
            )
            row = connection.execute("select count(*) from pgworker.job_executions").fetchone()
        acked = sum(producer.acked for producer in producers)
        happened = dict(made.log.happened)
    if not worker_ledgers(directory):
        offences["something is tried"] = [("no worker has written a ledger",)]
    return Verdict(plan.seed, acked, row[0] if row else 0, time.monotonic() - began, offences, happened, directory)


def _actors(made: World, jobs: int | None) -> tuple[list[Producer], Operator]:
    ledger = Ledger(made.directory / PRODUCER)
    seed = made.plan.seed
    bystander = Bystander(lambda: made.connect("chaos_producer"), ledger=ledger, first_key=_PRODUCERS * _KEYS)
    made.enqueue = bystander.enqueue
    producers = [
        Producer(
            lambda: made.connect("chaos_producer"),
            random.Random(f"producer {seed} {number}"),
            made.is_over,
            ledger=ledger,
            jobs=None if jobs is None else (jobs + 1 - number) // _PRODUCERS,
            first_key=number * _KEYS,
            backlog=made.plan.backlog,
            waiting=made.waiting_jobs,
        )
        for number in range(_PRODUCERS)
    ]
    dice = random.Random(f"operator {seed}")
    connect = lambda: made.connect("chaos_operator")  # noqa: E731  one line says it
    return producers, Operator(connect, dice, made.is_over, ledger=ledger, producers=producers)


def _inject(
    made: World, steps: Sequence[Step], seconds: float, producers: Sequence[Producer], trouble: Trouble, tell: Tell
) -> None:
    """Do what the plan says until all jobs are enqueued or the time is up; what touches different things overlaps."""
    kinds = sorted({step.fault.touches for step in steps})
    threads = [
        threading.Thread(
            target=_inject_in_turn,
            args=(made, [step for step in steps if step.fault.touches == kind], trouble, tell),
            name=f"faults of {kind}",
            daemon=True,
        )
        for kind in kinds
    ]
    for thread in threads:
        thread.start()
    while made.log.now < seconds and not all(producer.is_done for producer in producers):
        time.sleep(0.05)
    made.is_over.set()
    for thread in threads:
        thread.join(_HEALED_WITHIN)
        if thread.is_alive():
            trouble.add("faults heal", AssertionError(f"{thread.name} have not within {_HEALED_WITHIN:g} s"))


def _inject_in_turn(made: World, steps: Sequence[Step], trouble: Trouble, tell: Tell) -> None:
    for step in steps:
        if made.is_over.wait(max(0.0, step.at - made.log.now)):
            return
        _inject_one(made, step, trouble, tell)


def _inject_one(made: World, step: Step, trouble: Trouble, tell: Tell) -> None:
    fault = step.fault
    made.log.tell(fault.name, step=step.seed)
    tell(f"{made.log.now:6.1f} s  {fault.number} {fault.name}")
    try:
        fault.inject(made, random.Random(step.seed))
    except AssertionError as error:
        made.log.tell("broken promise", fault=fault.name, error=str(error))
        trouble.add(f"fault {fault.number}, {fault.name}: what was promised of it", error)
    except (psycopg.Error, OSError) as error:  # another fault had the server just then
        made.log.tell("cut short", fault=fault.name, error=str(error))
        if made.is_alone:
            trouble.add(f"fault {fault.number}, {fault.name}: could not be injected", error)
    made.log.tell(f"healed: {fault.name}")


def _come_to_rest(made: World, trouble: Trouble, tell: Tell) -> None:
    """Wait until nothing waits or runs. On a busy machine that may take long; what counts is that it goes on."""
    tell(f"{made.log.now:6.1f} s  nothing is broken any more; waiting for rest")
    began = since = time.monotonic()
    left = done = 0
    logged = len(made.server.log)
    while time.monotonic() - since < made.plan.patience and time.monotonic() - began < 10 * made.plan.patience:
        try:
            left, now_done = made.waiting_jobs_and_leases(), made.executions()
        except psycopg.OperationalError as error:
            if not made.server.is_aborted_by_clock(logged):
                trouble.add("the server lives on when nobody breaks it", error)
            time.sleep(1)
            continue
        if not left:
            return
        if now_done > done:
            done, since = now_done, time.monotonic()
        time.sleep(0.1)
    what = f"{left} jobs and leases are left, and nothing has ended for {time.monotonic() - since:.0f} s"
    trouble.add("I7: everything comes to rest", AssertionError(what))


def _see_end(actor: Actor, trouble: Trouble) -> None:
    try:
        actor.join(PATIENCE)
    except AssertionError as error:
        trouble.add("who enqueues and operates gets an answer", error)


def _drain(name: str, end: Callable[[float], int], trouble: Trouble) -> None:
    try:
        code = end(20.0)
        assert code == 0, f"{name} has drained with exit code {code}"
    except AssertionError as error:
        trouble.add("a pool drains", error)
