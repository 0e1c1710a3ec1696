"""A whole pool against real faults: processes killed and stopped, jobs that go wrong in every way, the server gone."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from pgworker.app.task import Enqueuer, Task
from pgworker.db import embedded
from pgworker.db.listen import SLEEP_LOCK_CLASS
from pgworker.db.migrate import migrate
from pgworker.lifecycle.cancel import cancel_job
from pgworker.model.job import JobRequest
from pgworker.model.state import CancelAnswer
from tests.process import jobs
from tests.process.pool import Pool, eventually, share_asleep, start

TTL = 3.0
"""Seconds: a lease short enough to wait for its end, and long enough to be renewed on a busy machine."""

StartPool = Callable[..., Pool]
Connect = Callable[[], Connection[Any]]


@dataclass(frozen=True, slots=True)
class Noted:
    """A line of the ledger: what a handler said of itself."""

    event: str
    name: str
    execution: int
    pid: int


@dataclass(frozen=True, slots=True)
class Execution:
    """A row of pgworker.job_executions, and with it the message and the stack of its error."""

    execution: int
    outcome: str
    failures: int
    cause: str
    message: str
    stack: str


class Scene:
    """One test's database, and the directory of its ledger and gates."""

    def __init__(self, connection: Connection[Any], directory: Path) -> None:
        self.connection = connection
        self.directory = directory

    def enqueue(self, task: Enqueuer[Any, Any], *arguments: Any) -> UUID:
        return task.using(self.connection).enqueue(str(self.directory), *arguments).id

    def enqueue_together(self, *requests: JobRequest) -> list[UUID]:
        """Make all of them claimable at the same moment, in this order."""
        return [job.id for job in jobs.app.enqueue_many(requests, self.connection)]

    def quick(self, *names: str) -> list[JobRequest]:
        return [jobs.quick.job(str(self.directory), name) for name in names]

    def open_gate(self, name: str) -> None:
        (self.directory / name).touch()

    def ledger(self) -> list[Noted]:
        try:
            lines = (self.directory / "ledger").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [Noted(event, name, int(execution), int(pid)) for event, name, execution, pid in map(str.split, lines)]

    def noted(self, event: str, *names: str) -> list[Noted]:
        return [line for line in self.ledger() if line.event == event and line.name in names]

    def wait_for(self, event: str, name: str, execution: int = 1, within: float = 30.0) -> Noted:
        """The line in which this execution says so."""
        return eventually(
            lambda: [line for line in self.noted(event, name) if line.execution == execution],
            lambda: f"{event} {name} {execution} in {self.ledger()}",
            within,
        )[0]

    def scalar(self, statement: str, *parameters: Any) -> Any:
        row = self.connection.execute(statement.encode(), parameters).fetchone()
        assert row is not None
        return row[0]

    def status(self, job_id: UUID) -> str:
        return str(self.scalar("select pgworker.job_status(%s)", job_id))

    def wait_for_status(self, status: str, *job_ids: UUID) -> None:
        eventually(
            lambda: all(self.status(job_id) == status for job_id in job_ids),
            lambda: f"{status}, not {[(self.status(job_id), self.executions(job_id)) for job_id in job_ids]}",
        )

    def wait_for_locks(self, waiting: int) -> None:
        """Until so many wait for a lock that another one holds."""
        eventually(
            lambda: self.scalar("select count(*) from pg_locks where not granted") == waiting,
            f"{waiting} waiting for locks",
        )

    def executions(self, job_id: UUID) -> list[Execution]:
        rows = self.connection.execute(
            """select execution, outcome::text, failures, coalesce(cause, ''), coalesce(error->>'message', ''),
                      coalesce(error->>'traceback', '')
               from pgworker.job_executions where job_id = %s order by execution""",
            [job_id],
        )
        return [Execution(*row) for row in rows]

    def outcomes(self, job_id: UUID) -> list[tuple[int, str, int]]:
        """Of each execution: its number, how it ended, the failures charged by then."""
        return [(run.execution, run.outcome, run.failures) for run in self.executions(job_id)]

    def leases(self) -> int:
        return int(self.scalar("select count(*) from pgworker.job_leases"))

    def effects(self) -> list[tuple[UUID, int]]:
        return self.connection.execute("select job_id, execution from effect").fetchall()

    def warm_up(self, times: int = 20) -> None:
        """Have the workers learn that jobs are short, so that they claim many at once."""
        names = [f"warm{number}" for number in range(times)]
        self.wait_for_status("succeeded", *self.enqueue_together(*self.quick(*names)))


@pytest.fixture
def scene(connect: Callable[[], Connection[Any]], tmp_path: Path) -> Scene:
    return Scene(with_effects(connect()), tmp_path)


@pytest.fixture
def start_pool(dsn: str, tmp_path: Path) -> Iterator[StartPool]:
    """Starts pools on the test's database, and returns each when it is ready."""
    with ExitStack() as pools:

        def start_one(**settings: object) -> Pool:
            log = tmp_path / f"pool{len(list(tmp_path.glob('pool*.log')))}.log"
            pool = pools.enter_context(start(str(settings.pop("dsn", dsn)), log, **settings))  # type: ignore[arg-type]
            pool.wait_for_log("the pool is ready")
            return pool

        yield start_one


def with_effects(connection: Connection[Any]) -> Connection[Any]:
    """With the table that handlers write to; without a unique constraint, so that what is twice shows."""
    connection.execute("create table effect (job_id uuid, execution integer)")
    return connection


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_at_once(pool: Pool) -> None:
    """Every process, so that nobody sees the others die."""
    pool.signal_all(signal.SIGSTOP)
    pool.signal_all(signal.SIGKILL)
    eventually(lambda: not pool.processes(), "nobody left of the pool")


# -- processes that are killed


def test_a_job_whose_worker_is_killed_runs_again_and_is_charged_once(scene: Scene, start_pool: StartPool) -> None:
    start_pool()
    job = scene.enqueue(jobs.hold, "job")
    kill(scene.wait_for("start", "job").pid)
    scene.wait_for("start", "job", execution=2)
    scene.open_gate("job")
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert "killed by SIGKILL, not by pgworker" in scene.executions(job)[0].cause


def test_jobs_claimed_behind_one_that_kills_its_worker_are_not_charged(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, prefetch_seconds=5)
    scene.warm_up()
    poison = jobs.die.job(str(scene.directory), "poison", "kill")
    first, *behind = scene.enqueue_together(poison, *scene.quick("b", "c", "d"))
    scene.wait_for_status("succeeded", first, *behind)
    assert scene.outcomes(first) == [(1, "crashed", 1), (2, "succeeded", 1)]
    # Number 2: they had been claimed with the first one, and went back without a row.
    assert [scene.outcomes(job) for job in behind] == [[(2, "succeeded", 0)]] * 3
    assert Counter(line.name for line in scene.noted("start", "b", "c", "d")) == {"b": 1, "c": 1, "d": 1}


def test_a_killed_monitor_is_replaced_and_leases_are_renewed_all_the_same(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(lease_ttl=TTL)
    job = scene.enqueue(jobs.hold, "long")
    scene.wait_for("start", "long")
    first = pool.monitor
    kill(first)
    eventually(lambda: pool.monitor != first, "a new monitor")
    claimed_until = "select max(expires_at) >= min(claimed_at) + 3 * %s * interval '1 second' from pgworker.job_leases"
    eventually(lambda: scene.scalar(claimed_until, TTL), "a lease that was renewed beyond twice its life")
    other = scene.enqueue(jobs.quick, "other")
    scene.wait_for_status("succeeded", other)
    scene.open_gate("long")
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "succeeded", 0)]


def test_a_monitor_that_has_not_moved_for_long_is_replaced(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1)
    stuck = pool.monitor
    os.kill(stuck, signal.SIGSTOP)
    pool.wait_for_log("event=monitor_stuck", within=60)
    eventually(lambda: pool.monitor != stuck, "a new monitor")
    scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "job"))


def test_when_the_master_is_killed_its_workers_die_and_the_monitor_puts_everything_back(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=2)
    running = [scene.enqueue(jobs.hold, name) for name in ("a", "b")]
    for name in ("a", "b"):
        scene.wait_for("start", name)
    kill(pool.master)
    eventually(lambda: not pool.workers, "no worker")
    eventually(lambda: not pool.processes(), "no monitor")
    assert scene.leases() == 0
    assert [scene.outcomes(job) for job in running] == [[(1, "lost", 0)]] * 2
    assert [scene.status(job) for job in running] == ["pending"] * 2


def test_what_a_pool_of_another_host_held_is_reclaimed_when_its_leases_expire(
    scene: Scene, start_pool: StartPool
) -> None:
    killed = start_pool(workers=1, lease_ttl=TTL)
    job = scene.enqueue(jobs.hold, "job")
    scene.wait_for("start", "job")
    other = start_pool(workers=1, lease_ttl=TTL, heartbeat_interval=0.3)
    elsewhere = "update pgworker.worker_heartbeats set host = 'elsewhere' where pid = %s returning true"
    assert scene.scalar(elsewhere, killed.workers[0])  # its job was claimed after its first beat
    kill_at_once(killed)
    expires_at = scene.scalar("select max(expires_at) from pgworker.job_leases")
    assert scene.wait_for("start", "job", execution=2).pid in other.workers
    reclaimed_at = scene.scalar("select finished_at from pgworker.job_executions where job_id = %s", job)
    assert reclaimed_at > expires_at
    scene.open_gate("job")
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert "its lease expired" in scene.executions(job)[0].cause


def test_a_claim_that_commits_after_its_worker_and_its_master_were_killed_is_put_back(
    scene: Scene, start_pool: StartPool, connect: Callable[[], Connection[Any]]
) -> None:
    pool = start_pool(workers=1)
    with connect().transaction() as blocking:
        blocking.connection.execute("lock table pgworker.job_leases in share mode")
        job = scene.enqueue(jobs.quick, "job")
        blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = %s"
        eventually(lambda: scene.scalar(blocked, "pgworker worker 0"), "a claim that waits")
        kill(pool.master)
        ended = "select count(*) from pgworker.worker_heartbeats where ended_at is not null"
        eventually(lambda: scene.scalar(ended), "a worker that is known to be dead")
    eventually(lambda: not pool.processes(), "no monitor")
    assert scene.leases() == 0
    assert (scene.status(job), scene.outcomes(job)) == ("pending", [])


# -- the end


@pytest.mark.parametrize("times", [1, 2])
def test_term_drains_and_a_second_one_changes_nothing(times: int, scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1)
    scene.warm_up()
    running, *behind = scene.enqueue_together(
        jobs.hold.job(str(scene.directory), "running"), *scene.quick("behind", "waiting")
    )
    scene.wait_for("start", "running")
    pool.send(signal.SIGTERM)
    pool.wait_for_log("TERM: draining")
    for _ in range(times - 1):
        pool.send(signal.SIGTERM)
    pool.send(signal.SIGHUP)
    pool.wait_for_log("HUP is ignored: the pool drains")  # and what came before it was heard
    eventually(lambda: scene.scalar("select count(*) from pgworker.job_queue") == 2, "what had not started is back")
    assert scene.status(running) == "running"
    scene.open_gate("running")
    assert pool.wait() == 0
    assert pool.log().count("TERM: draining") == 1
    assert scene.leases() == 0
    assert scene.outcomes(running) == [(1, "succeeded", 0)]
    assert [(scene.status(job), scene.outcomes(job)) for job in behind] == [("pending", [])] * 2


def test_a_job_longer_than_the_drain_is_stopped_and_goes_back_uncharged(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(drain_timeout=3)
    job = scene.enqueue(jobs.hold, "deaf")
    scene.wait_for("start", "deaf")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 75
    assert scene.leases() == 0
    assert scene.outcomes(job) == [(1, "released", 0)]
    assert "the worker had to end" in scene.executions(job)[0].cause
    assert scene.status(job) == "pending"


def test_ctrl_c_drains_and_a_later_second_one_stops_quickly(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(drain_timeout=600)
    deaf, kind = scene.enqueue(jobs.hold, "deaf"), scene.enqueue(jobs.cooperate, "kind")
    for name in ("deaf", "kind"):
        scene.wait_for("start", name)
    first = time.monotonic()
    pool.send(signal.SIGINT)
    pool.wait_for_log("INT .*: draining")
    pool.send(signal.SIGINT)  # the same key stroke, as far as anybody can tell
    pool.send(signal.SIGHUP)
    pool.wait_for_log("HUP is ignored: the pool drains")  # and what came before it was heard
    assert "INT again" not in pool.log() or time.monotonic() - first > 1  # unless this process was held up

    def is_hurried() -> bool:
        pool.send(signal.SIGINT)
        return "INT again" in pool.log()

    eventually(is_hurried, "one that is late enough to be another")
    assert pool.wait() == 75
    assert scene.leases() == 0
    assert [scene.outcomes(job) for job in (deaf, kind)] == [[(1, "released", 0)]] * 2
    assert [scene.status(job) for job in (deaf, kind)] == ["pending"] * 2


def test_term_to_one_worker_drains_it_alone(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1)
    running = scene.enqueue(jobs.hold, "running")
    worker = scene.wait_for("start", "running").pid
    os.kill(worker, signal.SIGTERM)
    waiting = scene.enqueue(jobs.quick, "waiting")
    scene.open_gate("running")
    assert scene.wait_for("start", "waiting").pid != worker
    scene.wait_for_status("succeeded", running, waiting)
    assert [scene.outcomes(job) for job in (running, waiting)] == [[(1, "succeeded", 0)]] * 2
    assert worker not in pool.workers


def test_what_a_handler_has_started_ends_with_the_pool(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1)
    scene.wait_for_status("succeeded", scene.enqueue(jobs.leave_a_child, "job"))
    assert "sleep 1000" in pool.processes().values()
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


# -- handlers that hang


@pytest.mark.parametrize(
    ("task", "function"), [(jobs.hold, "wait_for_gate"), (jobs.lock_up_the_gil, "lock_up_the_gil")], ids=["python", "c"]
)
def test_a_handler_past_its_timeout_is_killed_and_its_stack_is_kept(
    task: Task[[str, str], None], function: str, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, cancel_grace=1, term_grace=0.5)
    job = scene.enqueue(task.options(timeout=0.5, max_attempts=1), "hung")
    scene.wait_for_status("dead_letter", job)
    assert scene.outcomes(job) == [(1, "timed_out", 1)]
    (run,) = scene.executions(job)
    assert "its time was up" in run.cause
    assert f"in {function}" in run.stack


def test_who_was_killed_past_its_timeout_waits_as_its_task_says(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, cancel_grace=0.1, term_grace=0.1)
    job = scene.enqueue(jobs.hold_patiently.options(timeout=0.2), "hung")
    scene.wait_for_status("failed", job)
    [(waits,)] = scene.connection.execute("select run_at - clock_timestamp() from pgworker.job_queue").fetchall()
    assert timedelta(seconds=9_000) < waits < timedelta(seconds=12_500)
    assert not scene.leases()


def test_a_handler_that_holds_the_gil_for_three_leases_runs_once(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1, lease_ttl=TTL)
    job = scene.enqueue(jobs.hold_the_gil, "gil", 3 * TTL)
    scene.wait_for_status("succeeded", job)
    assert [line.event for line in scene.ledger()] == ["start", "end"]
    assert scene.outcomes(job) == [(1, "succeeded", 0)]
    assert not pool.complaints()


def test_jobs_behind_a_held_gil_are_run_by_another_worker_meanwhile_and_nothing_runs_twice(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=2, lease_ttl=TTL, prefetch_seconds=1, poll_interval=0.05)
    other = scene.enqueue(jobs.hold, "other")
    busy = scene.wait_for("start", "other").pid
    scene.warm_up()
    naps = scene.enqueue_together(*(jobs.quick.job(str(scene.directory), f"nap{n}", 0.1) for n in range(12)))
    scene.wait_for("start", "nap0")
    holder = jobs.hold_the_gil.job(str(scene.directory), "gil", 2 * TTL)
    first, *behind = scene.enqueue_together(holder, *scene.quick("b"))
    scene.wait_for_status("running", first)
    behind += scene.enqueue_together(*scene.quick("c", "d"))  # these two in a lease of their own
    scene.wait_for_status("running", first, *behind)
    holding = scene.wait_for("start", "gil")
    assert holding.pid != busy
    scene.open_gate("other")
    scene.wait_for_status("succeeded", other, *behind)
    assert {line.pid for line in scene.noted("start", "b", "c", "d")} == {busy}
    assert not scene.noted("end", "gil")
    scene.wait_for_status("succeeded", first, *naps)
    again = scene.enqueue(jobs.quick, "again")
    scene.wait_for_status("succeeded", again)
    assert Counter(line.name for line in scene.noted("start", "gil", "b", "c", "d")) == dict.fromkeys("bcd", 1) | {
        "gil": 1
    }
    assert [scene.outcomes(job) for job in (first, *behind)] == [[(1, "succeeded", 0)]] * 4
    assert not pool.complaints()
    assert not scene.leases()


# -- handlers that take their worker with them


def test_a_job_that_kills_its_worker_after_its_own_end_is_spared_once_and_then_charged(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1)
    poison = scene.enqueue(jobs.close_all, "poison")
    scene.wait_for_status("dead_letter", poison)
    assert scene.outcomes(poison) == [(1, "lost", 0), (2, "crashed", 1), (3, "crashed", 2)]
    assert scene.executions(poison)[0].cause.startswith("its handler had ended, and nothing else had begun")
    after = scene.enqueue(jobs.quick, "after")
    scene.wait_for_status("succeeded", after)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("segfault", "SIGSEGV"),
        ("exit", "exit code 3"),
        ("exit quietly", "ended with code 0 in the middle of a job: does its handler call os._exit()?"),
        ("kill", "SIGKILL"),
    ],
)
def test_how_a_worker_died_is_on_the_execution(how: str, words: str, scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1)
    job = scene.enqueue(jobs.die, "job", how)
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "crashed", 1), (2, "succeeded", 1)]
    crashed = scene.executions(job)[0]
    assert words in crashed.cause
    assert words in crashed.message
    if how == "segfault":
        assert "Segmentation fault" in crashed.stack
        assert "in die" in crashed.stack


def test_a_job_that_always_kills_its_worker_ends_as_a_dead_letter_and_the_pool_lives(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=2)
    poison = scene.enqueue(jobs.die.options(max_attempts=3), "poison", "exit", 100)
    others = scene.enqueue_together(*scene.quick(*(f"other{number}" for number in range(10))))
    scene.wait_for_status("dead_letter", poison)
    scene.wait_for_status("succeeded", *others)
    assert scene.outcomes(poison) == [(1, "crashed", 1), (2, "crashed", 2), (3, "crashed", 3)]
    assert all(failures == 0 for job in others for _, _, failures in scene.outcomes(job))
    last = scene.enqueue(jobs.quick, "last")
    scene.wait_for_status("succeeded", last)
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


def test_an_app_that_kills_every_worker_ends_the_pool_with_71(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import os, setproctitle\n"
        "from pgworker import App\n"
        "app = App()\n"
        "if 'pgworker: worker' in setproctitle.getproctitle(): os._exit(3)\n"
    )
    with start(dsn, tmp_path / "log", app="broken:app", cwd=tmp_path, workers=1) as pool:
        assert pool.wait() == 71
        pool.wait_for_log("no worker could start")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('no such colour: grue')", r"broken: ValueError: no such colour: grue \(.*broken.py:2\)"),
        ("import os; os._exit(3)", r"\(exit code 3\).* must not exit"),
    ],
    ids=["raises", "exits"],
)
def test_an_app_that_cannot_be_imported_ends_the_start_with_78_and_one_line(
    code: str, words: str, dsn: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(f"import pgworker\n{code}\n")
    with start(dsn, tmp_path / "log", app="broken:app", cwd=tmp_path) as pool:
        assert pool.wait() == 78
        (line,) = pool.log().splitlines()
    assert re.search(words, line)


# -- processes that are stopped


def test_a_pool_stopped_past_its_leases_can_settle_nothing_when_it_goes_on(scene: Scene, start_pool: StartPool) -> None:
    stopped = start_pool(workers=2, lease_ttl=TTL)
    plain = scene.enqueue(jobs.hold, "plain")
    effect = scene.enqueue(jobs.effect, "effect", "wait")
    for name in ("plain", "effect"):
        scene.wait_for("start", name)
    stopped.signal_all(signal.SIGSTOP)
    start_pool(workers=2, lease_ttl=TTL, heartbeat_interval=0.3)
    for name in ("plain", "effect"):
        scene.wait_for("start", name, execution=2)
    scene.wait_for_status("succeeded", effect)  # only its first execution waits at the gate
    scene.open_gate("plain")
    scene.open_gate("effect")
    stopped.signal_all(signal.SIGCONT)
    scene.wait_for_status("succeeded", plain)
    for job in (plain, effect):
        assert "event=result_lost" in stopped.wait_for_log(f"is gone.*{job}")
        assert scene.outcomes(job) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert "job failed" not in stopped.log()
    assert scene.effects() == [(effect, 2)]
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 0
    assert not scene.leases()


def test_a_worker_stopped_alone_is_killed_and_its_job_runs_again_uncharged(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=2, lease_ttl=TTL)
    job = scene.enqueue(jobs.hold, "job")
    stopped = scene.wait_for("start", "job").pid
    os.kill(stopped, signal.SIGSTOP)
    scene.wait_for("start", "job", execution=2)
    scene.open_gate("job")
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "lost", 0), (2, "succeeded", 0)]
    assert "its lease could not be renewed" in scene.executions(job)[0].cause
    assert stopped not in pool.workers


def test_a_worker_stopped_between_two_jobs_is_killed_too(
    scene: Scene, start_pool: StartPool, connect: Callable[[], Connection[Any]]
) -> None:
    pool = start_pool(workers=1, lease_ttl=TTL)
    (stopped,) = pool.workers
    with connect().transaction() as blocking:
        blocking.connection.execute("lock table pgworker.job_executions in share mode")
        job = scene.enqueue(jobs.quick, "job")
        scene.wait_for("start", "job")
        settling = "from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'pgworker worker 0'"
        eventually(lambda: scene.scalar(f"select count(*) {settling}"), "a settle that waits")
        os.kill(stopped, signal.SIGSTOP)
        scene.scalar(f"select pg_terminate_backend(pid) {settling}")  # it will never be recorded
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "lost", 0), (2, "succeeded", 0)]
    assert stopped not in pool.workers


# -- PostgreSQL goes away


@pytest.fixture
def outage(directory: Path, binaries: Path | None) -> Iterator[Outage]:
    """A server of the test's own."""
    found = Outage(directory, binaries)
    try:
        yield found
    finally:
        found.server.stop()


class Outage:
    """A migrated server that can be stopped and started."""

    def __init__(self, directory: Path, binaries: Path | None) -> None:
        self._directory = directory
        self._binaries = binaries
        self.server = self._start()
        migrate(self.server.dsn)

    def lasts(self, seconds: float) -> None:
        """Keep the stopped server away for so long, and start it again."""
        ends = time.monotonic() + seconds
        eventually(lambda: time.monotonic() > ends, "the end of the outage")
        self.server = self._start()

    @contextmanager
    def scene(self, ledger: Path) -> Iterator[Scene]:
        with psycopg.connect(self.server.dsn, autocommit=True) as connection:
            yield Scene(connection, ledger)

    def _start(self) -> embedded.Server:
        return embedded.start(self._directory, options={"fsync": "off"}, binaries=self._binaries)


def test_a_restart_of_postgresql_loses_nothing_and_charges_nobody(
    outage: Outage, tmp_path: Path, start_pool: StartPool
) -> None:
    workers = 3
    pool = start_pool(dsn=outage.server.dsn, workers=workers, lease_ttl=20)
    with outage.scene(tmp_path) as scene:
        with_effects(scene.connection)
        warm = [scene.enqueue(jobs.effect, f"warm{number}", "wait") for number in range(workers)]
        for number in range(workers):  # all at once, so that each worker has a connection for transactions
            scene.wait_for("start", f"warm{number}")
        for number in range(workers):
            scene.open_gate(f"warm{number}")
        held, effect = scene.enqueue(jobs.hold, "held"), scene.enqueue(jobs.effect, "effect", "wait")
        naps = scene.enqueue_together(*(jobs.quick.job(str(tmp_path), f"nap{n}", 0.02) for n in range(100)))
        for name in ("held", "effect", "nap5"):
            scene.wait_for("start", name)
        outage.server.stop()
    pool.wait_for_log("PostgreSQL at ")
    for name in ("held", "effect"):
        scene.open_gate(name)
    scene.wait_for("end", "held")
    outage.lasts(seconds=3)
    with outage.scene(tmp_path) as scene:
        later = [scene.enqueue(jobs.effect, f"later{number}") for number in range(2 * workers)]
        everything = [*warm, held, effect, *naps, *later]
        scene.wait_for_status("succeeded", *everything)
        assert {job: scene.outcomes(job) for job in everything} == {job: [(1, "succeeded", 0)] for job in everything}
        assert sorted(scene.effects()) == sorted((job, 1) for job in (*warm, effect, *later))
        assert set(Counter((line.event, line.name) for line in scene.ledger()).values()) == {1}
        eventually(lambda: not scene.leases(), "no lease")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
    assert max(lines_per_second(pool).values()) <= 3


def test_an_outage_longer_than_the_leases_ends_what_runs_uncharged_and_keeps_what_had_finished(
    outage: Outage, tmp_path: Path, start_pool: StartPool
) -> None:
    start_pool(dsn=outage.server.dsn, workers=4, lease_ttl=TTL)
    names = ("deaf", "kind", "effect", "finished")
    with outage.scene(tmp_path) as scene:
        with_effects(scene.connection)
        deaf = scene.enqueue(jobs.hold, "deaf")
        kind = scene.enqueue(jobs.cooperate, "kind")
        effect = scene.enqueue(jobs.effect, "effect", "wait")
        finished = scene.enqueue(jobs.hold, "finished")
        for name in names:
            scene.wait_for("start", name)
        outage.server.stop()
    scene.open_gate("finished")
    scene.open_gate("effect")
    scene.wait_for("stop", "kind")
    outage.lasts(seconds=TTL)
    with outage.scene(tmp_path) as scene:
        for name in ("deaf", "kind"):
            scene.wait_for("start", name, execution=2)
        scene.open_gate("deaf")
        scene.wait_for_status("succeeded", deaf, effect, finished)
        assert scene.outcomes(deaf) == scene.outcomes(effect) == [(1, "lost", 0), (2, "succeeded", 0)]
        assert scene.outcomes(kind) == [(1, "lost", 0)]
        assert scene.outcomes(finished) == [(1, "succeeded", 0)]
        assert scene.effects() == [(effect, 2)]


def test_while_the_database_is_away_the_monitor_sleeps(
    dsn: str, server: embedded.Server, start_pool: StartPool
) -> None:
    """The connection that listens has ended too, and says so to whoever polls it, again and again."""
    pool = start_pool(dsn=dsn)
    database, end = (
        conninfo_to_dict(dsn)["dbname"],
        "select pg_terminate_backend(pid) from pg_stat_activity where datname",
    )
    with psycopg.connect(server.dsn, autocommit=True) as operator:
        operator.execute(f"alter database {database} allow_connections false".encode())
        for name in ("pgworker monitor", "pgworker monitor listener"):
            operator.execute(f"{end} = %s and application_name = %s".encode(), [database, name])
            pool.wait_for_log("not currently accepting connections")
        asleep = share_asleep(pool.monitor)
        operator.execute(f"alter database {database} allow_connections true".encode())
    assert asleep > 0.5


def lines_per_second(pool: Pool) -> Counter[tuple[str, str]]:
    """Warnings and errors in the log, by second and process."""
    found = re.findall(r"^(\S+)\.\d+Z (?:WARNING|ERROR) +(monitor|master|worker \d+) ", pool.log(), re.MULTILINE)
    return Counter(found)


# -- jobs that are cancelled


def test_a_cancelled_job_ends_when_its_handler_does(scene: Scene, start_pool: StartPool) -> None:
    start_pool()
    job = scene.enqueue(jobs.cooperate, "job")
    scene.wait_for("start", "job")
    assert cancel_job(scene.connection, job) is CancelAnswer.REQUESTED
    scene.wait_for_status("cancelled", job)
    assert scene.outcomes(job) == [(1, "cancelled", 0)]
    assert len(scene.noted("stop", "job")) == 1


def test_a_cancelled_job_whose_handler_is_deaf_is_killed_alone(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, cancel_grace=1, term_grace=0.5)
    scene.warm_up()
    deaf, *behind = scene.enqueue_together(jobs.hold.job(str(scene.directory), "deaf"), *scene.quick("b", "c"))
    scene.wait_for("start", "deaf")
    assert cancel_job(scene.connection, deaf) is CancelAnswer.REQUESTED
    scene.wait_for_status("cancelled", deaf)
    scene.wait_for_status("succeeded", *behind)
    assert scene.outcomes(deaf) == [(1, "cancelled", 0)]
    assert "it was cancelled" in scene.executions(deaf)[0].cause
    assert [[run[1:] for run in scene.outcomes(job)] for job in behind] == [[("succeeded", 0)]] * 2
    assert not scene.leases()


@pytest.mark.parametrize("missed", ["its lease is locked just then", "nobody listens"])
def test_a_cancel_that_could_not_be_heard_at_once_is_heard_long_before_the_lease_is_renewed(
    missed: str, scene: Scene, start_pool: StartPool, connect: Connect
) -> None:
    start_pool(workers=1, lease_ttl=600)
    job = scene.enqueue(jobs.cooperate, "job")
    scene.wait_for("start", "job")
    if missed == "nobody listens":
        listener = "select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ 'listener$'"
        scene.connection.execute(listener)
        cancel_job(scene.connection, job)
    else:
        lock = "select lease_id from pgworker.job_leases for update"
        with ThreadPoolExecutor(2) as threads, connect() as before, connect() as behind, behind.transaction():
            with before.transaction():
                before.execute(lock)
                cancelling = threads.submit(cancel_job, connect(), job)
                scene.wait_for_locks(1)
                locking = threads.submit(behind.execute, lock)
                scene.wait_for_locks(2)
            assert cancelling.result() is CancelAnswer.REQUESTED
            locking.result()
            locked_at = scene.scalar("select clock_timestamp()")
            asked = "select query_start > %s from pg_stat_activity where application_name = 'pgworker monitor'"
            eventually(lambda: scene.scalar(asked, locked_at), "a monitor that asks meanwhile")
    scene.wait_for_status("cancelled", job)


def test_a_lease_that_the_server_forgot_in_a_crash_is_missed_as_soon_as_the_pool_is_back(
    scene: Scene, start_pool: StartPool
) -> None:
    """A claim commits asynchronously; a third of its lease's life later the job has long been running twice."""
    start_pool(workers=1, lease_ttl=600)
    scene.enqueue(jobs.cooperate, "job")
    scene.wait_for("start", "job")
    scene.connection.execute("delete from pgworker.job_leases")
    ours = "select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^pgworker monitor'"
    scene.connection.execute(ours)
    scene.wait_for("stop", "job")


@pytest.mark.parametrize("task", [jobs.stop_quietly, jobs.cooperate_async], ids=["thread", "loop"])
def test_who_returns_once_he_knows_that_he_is_to_stop_has_not_succeeded(
    task: Task[..., Any], scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(slots=3, workers=1)
    late = scene.enqueue(task.options(timeout=0.2, max_attempts=1), "late")
    cancelled, released = scene.enqueue(task, "cancelled"), scene.enqueue(task, "released")
    for name in ("cancelled", "released"):
        scene.wait_for("start", name)
    assert cancel_job(scene.connection, cancelled) is CancelAnswer.REQUESTED
    scene.wait_for_status("cancelled", cancelled)
    scene.wait_for_status("dead_letter", late)
    pool.send(signal.SIGQUIT)
    pool.wait()
    assert scene.outcomes(cancelled) == [(1, "cancelled", 0)]
    assert scene.outcomes(late) == [(1, "timed_out", 1)]
    assert "the job's time is up" in scene.executions(late)[0].message
    assert (scene.status(released), scene.outcomes(released)) == ("pending", [(1, "released", 0)])


# -- the handler's own transaction


@pytest.mark.parametrize(("task", "slots"), [(jobs.effect, 1), (jobs.effect_async, 4)], ids=["thread", "loop"])
def test_what_a_handler_writes_in_its_transaction_is_there_exactly_if_that_committed(
    task: Task[[str, str, str], Any], slots: int, scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1, slots=slots)
    fine, raised, rolled_back, after = (
        scene.enqueue(task, f"job{number}", fault)
        for number, fault in enumerate(("", "raise", "roll back", "raise after"))
    )
    scene.wait_for_status("succeeded", fine, raised, rolled_back, after)
    killed = scene.enqueue(task, "killed", "kill")
    scene.wait_for_status("succeeded", killed)
    assert sorted(scene.effects()) == sorted([(fine, 1), (raised, 2), (after, 1), (killed, 2)])
    assert scene.outcomes(fine) == [(1, "succeeded", 0)]
    assert scene.outcomes(rolled_back) == [(1, "succeeded", 0)]
    assert scene.outcomes(raised) == [(1, "failed", 1), (2, "succeeded", 1)]
    assert scene.outcomes(after) == [(1, "succeeded", 0)]
    assert scene.outcomes(killed) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert "has succeeded all the same" in pool.wait_for_log(str(after))


# -- an idle pool


def test_an_idle_pool_runs_a_job_enqueued_in_sql_without_polling(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=2, poll_interval=600)
    for name in ("first", "second"):
        eventually(lambda: enqueuers_tell(scene), "an idle pool")
        enqueue_in_sql(scene, name)
        scene.wait_for("start", name)


def test_in_a_rush_of_notifications_enqueuers_need_not_tell_and_workers_look_by_themselves(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, poll_interval=600)
    eventually(lambda: enqueuers_tell(scene), "an idle pool")
    scene.scalar("select count(pg_notify('pgworker', 'default=' || jobs)) from generate_series(1, 100) as jobs")
    eventually(lambda: not enqueuers_tell(scene), "an end of notifications")
    enqueue_in_sql(scene, "untold")
    scene.wait_for("start", "untold")
    eventually(lambda: enqueuers_tell(scene), "an idle pool again")
    enqueue_in_sql(scene, "told")
    scene.wait_for("start", "told")


def test_jobs_that_come_due_at_one_moment_start_on_all_workers_though_one_looks_for_all(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=4, poll_interval=1)
    eventually(lambda: enqueuers_tell(scene), "an idle pool")
    names = [f"job{number}" for number in range(4)]
    later = jobs.hold.options(run_at=datetime.now(timezone.utc) + timedelta(seconds=2))
    scene.enqueue_together(*(later.job(str(scene.directory), name) for name in names))
    assert len({scene.wait_for("start", name).pid for name in names}) == 4
    for name in names:
        scene.open_gate(name)


def enqueuers_tell(scene: Scene) -> bool:
    """Whether a pool shows that somebody sleeps."""
    sleeps = "select count(*) > 0 from pg_locks where locktype = 'advisory' and classid = %s and database = %s::oid"
    database = scene.scalar("select oid from pg_database where datname = current_database()")
    return bool(scene.scalar(sleeps, SLEEP_LOCK_CLASS, database))


def enqueue_in_sql(scene: Scene, name: str) -> None:
    payload = Jsonb({"directory": str(scene.directory), "name": name})
    scene.scalar("select pgworker.enqueue('tests.process.jobs.quick', %s)", payload)
