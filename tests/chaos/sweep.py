"""One round: a pool, its producer and a second pool that can take over, some failpoints, and what is checked.

The load is a little of everything (`boundary_jobs`, `boundary_client`), and there are jobs that a dead pool held, whose
lease has run out, or which are of a day that has expired.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import Connection

from pgworker.db.scratch import scratch_database
from pgworker.lifecycle.heartbeat import PoolIdentity, WorkerProcess, beat_workers
from pgworker.linux.process import pid_space
from tests.chaos import boundary_jobs as jobs
from tests.chaos import failpoints
from tests.chaos.boundary_client import Ledger
from tests.chaos.failpoints import Failpoint, fired, reached
from tests.chaos.launch import pool_command
from tests.process.pool import ROOT, Pool, eventually, launched
from tests.process.pool import start as start_pool
from tests.sql.actors import Worker, ask, enqueue
from tests.sql.history import enqueue_ago
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences

APP = "tests.chaos.boundary_jobs:app"
TTL = 2.0
_FIRST = {
    "workers": 2,
    "lease_ttl": TTL,
    "heartbeat_interval": 0.2,
    "poll_interval": 0.1,
    "cancel_grace": 0.5,
    "term_grace": 0.5,
    "drain_timeout": 6.0,
    "prefetch_seconds": 0.5,
    "restart_backoff": {"base": 0.05, "cap": 0.2},
    "metrics_listen": "127.0.0.1:0",
}
_SECOND = {**_FIRST, "slots": 3, "heartbeat_interval": 0.5, "lease_ttl": 2 * TTL}
"""It looks after what others left behind too, but later than the first one, should that be alive."""
_CLIENT = (sys.executable, "-m", "tests.chaos.launch", "run", "tests.chaos.boundary_client")
_LIVES = 12  # of the client
_STOPPED = 1.5 * TTL  # seconds that what was stopped stays so: its leases run out, and others take its jobs
_PATIENCE = 40.0
_TOLD = ("pgworker.jobs", "pgworker.job_executions", "pgworker.worker_heartbeats", "chaos.lease_ended")
"""Tables of which all rows are kept when something was wrong."""


@dataclass(slots=True)
class Round:
    """One database, one set of armed failpoints."""

    dsn: str
    directory: Path
    armed: Sequence[Failpoint]
    slots: int
    problems: list[str] = field(default_factory=list)

    @property
    def chaos(self) -> Path:
        return self.directory / "chaos"

    @property
    def has_fired(self) -> bool:
        return bool(fired(self.chaos))


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a round: which points were reached, what happened at some, and what was wrong afterwards."""

    armed: Sequence[Failpoint]
    reached: set[str]
    fired: Sequence[Mapping[str, str]]
    problems: Sequence[str]
    seconds: float


def run_round(server: str, template: str, directory: Path, armed: Sequence[Failpoint], slots: int) -> Result:
    """Run it on a database of its own; whatever is still alive afterwards is killed."""
    began = time.monotonic()
    directory.mkdir()
    with scratch_database(server, template) as dsn:
        one = Round(dsn, directory, armed, slots)
        one.chaos.mkdir()
        try:
            _run(one)
        except AssertionError as error:
            one.problems.append(f"{error}")
        if one.problems:
            one.problems.append(f"evidence: {_keep(one)}")
        return Result(armed, reached(one.chaos), fired(one.chaos), one.problems, time.monotonic() - began)


def _keep(one: Round) -> Path:
    """Ledgers, logs and rows of a round in which something was wrong, for whoever looks into it."""
    with psycopg.connect(one.dsn) as connection:
        for table in _TOLD:
            rows = ask(connection, f"select to_json(t)::text from {table} as t")
            Path(one.directory, f"{table}.jsonl").write_text("\n".join(rows))
    kept = Path(tempfile.mkdtemp(prefix="pgworker-boundary-"))
    return shutil.copytree(one.directory, kept, dirs_exist_ok=True)


def _run(one: Round) -> None:
    with psycopg.connect(one.dsn, autocommit=True) as connection:
        with ExitStack() as pools:
            second = pools.enter_context(start_pool(one.dsn, one.directory / "second.log", app=APP, **_plain(_SECOND)))
            second.wait_for_log("the pool is ready")
            second.send(signal.SIGUSR2)
            second.wait_for_log("claiming is paused")
            prepare(connection, one.directory)
            pool = pools.enter_context(first(one))
            _wait_until_ready(one, pool)
            leave_behind(connection, one.directory)
            _be_client(one, pool)
            eventually(lambda: one.has_fired or _is_quiet(connection), "all is done, or something has happened", 30)
            _end(one, pool, connection)
            second.send(signal.SIGUSR2)
            eventually(lambda: _is_quiet(connection), lambda: f"nothing waits or runs: {_left(connection)}", _PATIENCE)
            second.send(signal.SIGTERM)
            one.problems += [f"the second pool ended with {code}" for code in [second.wait()] if code]
        one.problems += check(connection, one.directory)


def _plain(settings: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ("restart_backoff", "metrics_listen")}


@contextmanager
def first(one: Round) -> Iterator[Pool]:
    """The pool with the failpoints."""
    command = pool_command(one.dsn, APP, {**_FIRST, "slots": one.slots})
    with launched(command, one.directory / "first.log", environment(one.armed, one.chaos)) as pool:
        yield pool


def environment(armed: Sequence[Failpoint], directory: Path) -> dict[str, str]:
    """The variables that arm a program of `launch`."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        failpoints.FAILPOINTS: ";".join(map(str, armed)),
        failpoints.DIRECTORY: str(directory),
    }


def _wait_until_ready(one: Round, pool: Pool) -> None:
    eventually(
        lambda: "the pool is ready" in pool.log() or one.has_fired or pool.process.poll() is not None,
        "the first pool is ready",
    )


def _be_client(one: Round, pool: Pool) -> None:
    """Run the client to its end, however often it dies of what is armed."""
    for _ in range(_LIVES):
        with (one.directory / "client.log").open("ab") as log:
            client = subprocess.Popen(
                [*_CLIENT, one.dsn, str(one.directory)],
                cwd=ROOT,
                env=environment(one.armed, one.chaos),
                stdout=log,
                stderr=log,
            )
        try:
            while client.poll() is None:
                _let_go_on(one, [client.pid, *pool.processes()])
                time.sleep(0.02)
        finally:
            client.kill()
            client.wait()
        if client.returncode == 0:
            return
    one.problems.append(f"the client ended with {client.returncode}, {_LIVES} times")


def _let_go_on(one: Round, pids: Sequence[int]) -> None:
    """What has stopped itself goes on after a while."""
    for fault in fired(one.chaos):
        pid, is_stop = int(fault["pid"]), "=stop" in fault["failpoint"]
        if is_stop and pid in pids and time.time() - float(fault["at"]) > _STOPPED:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _end(one: Round, pool: Pool, connection: Connection[Any]) -> None:
    """Drain the first pool, in the middle of something; it ends with 0 unless its master was hit."""
    enqueue(connection, 2, task="quick", payload=_payload(one.directory, seconds=0.3))
    enqueue(connection, 6, task="quick_async", payload=_payload(one.directory))
    with suppress(AssertionError):
        eventually(lambda: ask(connection, "select count(*) > 0 from pgworker.job_leases")[0], "a lease", 1)
    with suppress(ProcessLookupError):
        pool.send(signal.SIGTERM)
    ends = time.monotonic() + _PATIENCE
    while pool.process.poll() is None and time.monotonic() < ends:
        _let_go_on(one, list(pool.processes()))
        time.sleep(0.02)
    code = pool.wait(1) if pool.process.poll() is not None else None
    if code != 0 and not _may_fail(one, pool):
        one.problems.append(f"the first pool ended with {code}")


def _may_fail(one: Round, pool: Pool) -> bool:
    """Whether something has happened to its master, or to what it tries before there is a worker."""
    was_ready = "the pool is ready" in pool.log()
    return one.has_fired and (not was_ready or any(fault["role"] == "master" for fault in fired(one.chaos)))


def _is_quiet(connection: Connection[Any]) -> bool:
    return not any(_left(connection))


def _left(connection: Connection[Any]) -> tuple[int, int]:
    """How many jobs wait, and how many leases there are."""
    [(waiting, leases)] = connection.execute(
        "select (select count(*) from pgworker.job_queue where run_at < clock_timestamp() + interval '1 minute'),"
        " (select count(*) from pgworker.job_leases)"
    ).fetchall()
    return waiting, leases


# -- before


def prepare(connection: Connection[Any], directory: Path) -> None:
    """What the first pool finds when it starts: witnesses, a day to make, and a day to drop."""
    connection.execute(WITNESSES)
    [day] = ask(connection, "select to_char((clock_timestamp() at time zone 'UTC')::date + 2, 'YYYYMMDD')")
    for parent in ("jobs", "job_executions"):
        connection.execute(f"drop table if exists pgworker.{parent}_{day}".encode())
    eventually(lambda: _made_a_day_ago(connection, directory), "a day that has expired")


def _made_a_day_ago(connection: Connection[Any], directory: Path) -> bool:
    """Not while a pool looks at partitions too: that waits for 50 ms."""
    try:
        enqueue_ago(connection, 9, 1, task="quick", payload=_payload(directory))
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def leave_behind(connection: Connection[Any], directory: Path) -> None:
    """Leases that nobody holds any more, of a pool that was killed whole and of one that nobody knows: both pools look
    for them, and the first one sooner."""
    silent = Worker(connection)
    with subprocess.Popen(["true"]) as gone:
        pass
    pool = PoolIdentity(uuid4(), socket.gethostname(), pid_space(), ("default",))
    beat_workers(connection, pool, [WorkerProcess(silent.worker_id, gone.pid, 0, 0)])
    with connection.transaction():  # or somebody else would claim them
        enqueue(connection, 4, task="quick", payload=_payload(directory))
        silent.claim(2, tasks=["quick"])
        Worker(connection).claim(2, ttl=0.1, tasks=["quick"])


def _payload(directory: Path, seconds: float = 0.0) -> str:
    return jobs.quick.job(str(directory), seconds).payload


# -- after

_PID = re.compile(r"worker \d+ \(pid (\d+)\)")

_GUESSED = """
    select pid from pgworker.worker_heartbeats as worker
    where ended_how ~ ' is gone, and its pool is silent$'
       or exists (select from pgworker.job_executions as e
                  where e.worker_id = worker.worker_id
                    and e.cause ~ '((^|: )its lease expired:| is gone, and its pool is silent$)')
       or exists (select from pgworker.worker_heartbeats as last
                  join pgworker.job_executions as e on e.worker_id = worker.worker_id and e.finished_at > last.beat_at
                  where last.pool_id = worker.pool_id and last.ended_how ~ ' is gone, and its pool is silent$')
"""
"""Workers whose leases were taken back without the board: how much of them had run, nobody could tell. By their end or
by the cause of what they lost: a pool that was only stopped says later how its worker ended. Or something of it was
recorded after the last beat of its pool, which had told of its end and died before it took back what it held."""


def check(connection: Connection[Any], directory: Path) -> list[str]:
    """Whatever is wrong, each in a sentence."""
    ledger = Ledger(directory)
    for word, table in (("ACKED", "enqueued"), ("ROLLED", "rolled_back"), ("CANCELLED", "cancelled")):
        for job_id in ledger.noted(word):
            connection.execute(f"insert into chaos.{table} values (%s)".encode(), [job_id])
    found = {**offences(connection, STORED), **offences(connection, WITNESSED)}
    return [
        *(f"{name}: {rows[:3]}" for name, rows in found.items()),
        *_compare_starts(connection, directory),
        *_find_unsuccessful(connection, ledger),
    ]


def _compare_starts(connection: Connection[Any], directory: Path) -> Iterator[str]:
    """What handlers say of themselves, and what is recorded of them."""
    file = directory / "ledger"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    started = [(UUID(job), int(execution)) for job, execution, _ in lines]
    yield from (f"execution {one} started twice" for one in set(started) if started.count(one) > 1)
    rows = connection.execute("select job_id, execution, outcome::text, cause from pgworker.job_executions").fetchall()
    recorded = {(job, execution): outcome for job, execution, outcome, _ in rows}
    guessed = {*ask(connection, _GUESSED), *_taken_by_the_second(directory)}
    pids = {(UUID(job), int(execution)): int(pid) for job, execution, pid in lines}
    missing = {one for one in {*started} - recorded.keys() if pids[one] not in guessed}
    yield from (f"execution {one} started and has no row" for one in missing)
    handled = {*ask(connection, "select id from pgworker.jobs where task <> 'hopeless:dead_letter'")}
    silent = {one for one, outcome in recorded.items() if outcome == "succeeded" and one[0] in handled} - {*started}
    yield from (f"execution {one} succeeded and never started" for one in silent)


def _taken_by_the_second(directory: Path) -> Iterator[int]:
    """Processes of the first pool of which the second has taken leases back, as the first one was stopped for longer
    than it is waited for: it had told of their end, but only its own board knew what had run."""
    log = directory / "second.log"
    told = log.read_text(errors="replace").splitlines() if log.exists() else []
    yield from (int(found[1]) for line in told if "execution_reclaimed" in line and (found := _PID.search(line)))


def _find_unsuccessful(connection: Connection[Any], ledger: Ledger) -> Iterator[str]:
    """Each job succeeds in the end, but those that can't and those that were cancelled."""
    rows = connection.execute(
        "select id, jobs.task, status from pgworker.jobs join pgworker.job_status using (id) where"
        " jobs.task not in ('hopeless', 'poison', 'cooperate') and jobs.queue = 'default' and status <> 'succeeded'"
    ).fetchall()
    cancelled = {*ledger.noted("CANCELLED"), *ledger.noted("PLAN waiting")}
    yield from (f"job {job} of {task} is {status}" for job, task, status in rows if str(job) not in cancelled)
