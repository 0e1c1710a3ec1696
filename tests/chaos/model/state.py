"""What the model knows: the database's tables, what each process knows of them, and what really happened.

Everything is a tuple of small tuples, so that states can be compared, hashed and shared. Leases and incarnations of
workers are numbers in the order in which they were made; positions of a lease count from 1, as in the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

SUCCEEDED, FAILED, CANCELLED, CRASHED, LOST = "succeeded", "failed", "cancelled", "crashed", "lost"
CHARGED = frozenset((FAILED, CRASHED))

UNSTARTED, RUNNING, RECORDED = "-", "running", "recorded"
"""What a worker's books say of a position, beside the outcome of a job that has ended and is not settled yet."""

Item = TypeVar("Item")


class Waiting(NamedTuple):
    """A row of job_queue. `place`: where it stands in its lane."""

    execution: int
    failures: int
    place: int


class Ran(NamedTuple):
    """A row of job_executions. `lease`: 0 for none; `settled`: by the lease itself, and not by a reclaim."""

    execution: int
    outcome: str
    lease: int
    settled: bool


class Job(NamedTuple):
    waiting: Waiting | None = None
    rows: tuple[Ran, ...] = ()
    is_dead: bool = False
    is_stored: bool = True
    """its enqueue has committed"""
    started: int = 0
    """from here on what really happened, which no statement reads: the last execution that a handler was called for"""
    crashed: tuple[int, ...] = ()
    """executions that ran when their worker crashed"""
    effects: tuple[int, ...] = ()
    """executions whose own transaction has committed its effect"""
    is_asked: bool = False
    """a cancel was told that this job is asked to stop"""


class Cell(NamedTuple):
    """One position of a lease: whose, and what was known at the claim."""

    job: int
    execution: int
    failures: int
    is_marked: bool = False


class Expired(NamedTuple):
    by_outage: bool


class Lease(NamedTuple):
    """A row of job_leases. `lock`: who holds it in a transaction that goes on."""

    number: int
    owner: int
    cells: tuple[Cell, ...]
    expired: Expired | None = None
    lock: str = ""


class Held(NamedTuple):
    """A lease as its worker knows it: its books, and what it shows on the board (`kept`: how many
    positions are still ours, `started`, `line`)."""

    lease: int
    cells: tuple[Cell, ...]
    books: tuple[str, ...]
    late: tuple[int, ...] = ()
    """positions that ended after a later execution of their job had started: must never be recorded"""
    kept: int = 0
    started: int = 0
    line: int | None = None
    is_lost: bool = False
    is_refused: bool = False
    is_going_back: bool = False


class Told(NamedTuple):
    """What a trip has said of one lease, and whether the server recorded all of it just now."""

    lease: int
    positions: tuple[int, ...]
    ends: bool
    is_complete: bool


class Trip(NamedTuple):
    """Committed, and its reply is under way. `claim`: the new lease, 0 for none; `seen`: the floor it was sent with."""

    told: tuple[Told, ...]
    claim: int
    cells: tuple[Cell, ...]
    seen: int


class Run(NamedTuple):
    """What the runner does. Not `is_checked`: it has shown the start, and not yet looked whether it may."""

    lease: int
    position: int
    is_checked: bool


class Worker(NamedTuple):
    incarnation: int
    is_alive: bool = True
    held: tuple[Held, ...] = ()
    trip: Trip | None = None
    lost_claims: tuple[int, ...] = ()
    run: Run | None = None


class Witness(NamedTuple):
    """What the board showed of a worker that died: of each lease how far it had started, and which position ran."""

    incarnation: int
    leases: tuple[tuple[int, int, int], ...]


class Hand(NamedTuple):
    """A lease that a monitor is about to reclaim (`found`), or has deleted in a transaction that goes on (`taken`)."""

    lease: int
    step: str
    only_expired: bool
    snapshot: frozenset[tuple[int, int]] = frozenset()
    """(job, execution) with a row when it was found: the planted defect goes by that"""


class Line(NamedTuple):
    """A line that the monitor has drawn on the board, and what it believes the worker to have started."""

    worker: int
    lease: int
    started: int


class Monitor(NamedTuple):
    """`A` has the board of the workers; `B` is another pool's. `is_steady`: has beaten for a TTL without a gap."""

    name: str
    is_alive: bool = True
    is_steady: bool = True
    hand: Hand | None = None
    line: Line | None = None
    witnesses: tuple[Witness, ...] = ()


class Flight(NamedTuple):
    """A transaction at a backend that has its locks and will commit or not, whether or not anybody hears of it.

    `own`: that of a handler, which settles its position and has an effect; the worker waits for that one.
    """

    worker: int
    incarnation: int
    told: tuple[Told, ...]
    outcomes: tuple[tuple[str, ...], ...]
    claim: int
    jobs: tuple[int, ...]
    own: bool


class Canceller(NamedTuple):
    """A cancel of one job: which look is next, in which round, and the lease it has found."""

    job: int
    step: str
    round: int
    lease: int = 0


class Budgets(NamedTuple):
    """What may still go wrong."""

    crashes: int
    replies: int
    flights: int
    failures: int
    cancels: int
    outages: int
    stops: int
    monitors: int


class State(NamedTuple):
    jobs: tuple[Job, ...]
    leases: tuple[Lease, ...]
    workers: tuple[Worker, ...]
    monitors: tuple[Monitor, ...]
    ended: tuple[int, ...]
    """incarnations whose end is recorded in worker_heartbeats"""
    flight: Flight | None
    canceller: Canceller | None
    floor: int
    is_stopped: bool
    """workers and monitor A, all by SIGSTOP"""
    next_incarnation: int
    budgets: Budgets
    offence: str = ""
    """an invariant that the last step broke"""


@dataclass(frozen=True, slots=True)
class Configuration:
    """How large the world is, and what may go wrong in it how often."""

    jobs: int = 2
    uncommitted: tuple[int, ...] = ()
    """jobs whose enqueue commits late"""
    batch: int = 2
    workers: int = 1
    attempts: int = 2
    neighbour: bool = False
    """another pool's monitor"""
    lines: bool = False
    own_transactions: bool = False
    crashes: int = 0
    replies: int = 0
    flights: int = 0
    failures: int = 0
    cancels: int = 0
    outages: int = 0
    stops: int = 0
    monitors: int = 0

    def start(self) -> State:
        jobs = tuple(
            Job(
                is_stored=job not in self.uncommitted,
                waiting=None if job in self.uncommitted else Waiting(1, 0, place_of(job)),
            )
            for job in range(self.jobs)
        )
        return State(
            jobs=jobs,
            leases=(),
            workers=tuple(Worker(number) for number in range(self.workers)),
            monitors=(Monitor("A"), Monitor("B")) if self.neighbour else (Monitor("A"),),
            ended=(),
            flight=None,
            canceller=None,
            floor=0,
            is_stopped=False,
            next_incarnation=self.workers,
            budgets=Budgets(
                self.crashes,
                self.replies,
                self.flights,
                self.failures,
                self.cancels,
                self.outages,
                self.stops,
                self.monitors,
            ),
        )


def place_of(job: int, *, later: bool = False) -> int:
    """Where a job stands in its lane: by its run_at, which a retry with a delay has a new one of. Neighbours are some
    steps apart: a floor can be lowered by less."""
    return 4 * (job + (10 if later else 1))


def put(items: tuple[Item, ...], index: int, item: Item) -> tuple[Item, ...]:
    return (*items[:index], item, *items[index + 1 :])


def lease_of(state: State, number: int) -> Lease | None:
    for lease in state.leases:
        if lease.number == number:
            return lease
    return None


def row_of(job: Job, execution: int) -> Ran | None:
    for row in job.rows:
        if row.execution == execution:
            return row
    return None


def with_fewer(state: State, budget: str) -> State:
    """One of these faults has happened."""
    left = getattr(state.budgets, budget) - 1
    return state._replace(budgets=state.budgets._replace(**{budget: left}))
