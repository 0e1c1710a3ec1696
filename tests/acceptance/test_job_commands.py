"""`pgworker jobs retry | explain | run`, as people use them: on a real database, run at a real terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pgworker.control.queues import pause_queues
from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.heartbeat import Activity, PoolIdentity, RunningJob, WorkerProcess, beat_workers
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome, WorkerState
from tests.acceptance.test_cli import (
    bury,
    command,
    environment,
    is_refused,
    objects,
    on_a_terminal,
    output,
    refusal,
    run,
)
from tests.process.pool import eventually
from tests.sql.actors import DEADLINE, Monitor, Worker, ask, ended, enqueue, leases, statuses, waiting

Connect = Callable[[], psycopg.Connection[Any]]

TOMORROW = datetime.now(timezone.utc) + timedelta(days=1)

APP = """
import time
from pgworker import App, Context, Discard, Job, Snooze

app = App()

@app.on_worker_start
def begin(state):
    state.till = ["open"]
    print("the shop opens", flush=True)

@app.on_worker_stop
def end(state):
    print("the shop closes", flush=True)

async def around_async(job: Job, ctx: Context, call_next):
    return await call_next()

@app.middleware(twin=around_async)
def around(job: Job, ctx: Context, call_next):
    print("before", job.task, flush=True)
    return call_next()

@app.task
def greet(ctx: Context, name: str) -> str:
    print(f"greeting {name}, {ctx.state.till[0]}", flush=True)
    return f"hello {name}"

@app.task(max_attempts=2)
def spill() -> None:
    raise ValueError("no such luck")

@app.task
def refuse() -> None:
    raise Discard("nothing is in it")

@app.task
def later() -> None:
    raise Snooze(3600)

@app.task
def pay(ctx: Context) -> None:
    with ctx.transaction() as connection:
        connection.execute("insert into payments default values")

@app.task(timeout=0.2)
def wait(ctx: Context) -> str:
    print("waiting", flush=True)
    ctx.progress(0.5, "half of it")
    while not ctx.cancelled:
        time.sleep(0.01)
    return "was told"

@app.task
async def drift() -> str:
    import asyncio
    print("drifting", flush=True)
    await asyncio.sleep(3600)

@app.task
def think(n: int) -> int:
    doubled = n * 2
    breakpoint()
    return doubled
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "corner.py").write_text(APP)
    return tmp_path


def run_job(shop: Path, dsn: str, job_id: object, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("jobs", "run", str(job_id), *words),
        cwd=shop,
        env=environment(PGWORKER_DSN=dsn, PGWORKER_APP="corner:app"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Terminal:
    """A command at a terminal, and what a person sees and types there."""

    def __init__(self, shop: Path, dsn: str, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command(*words),
            cwd=shop,
            env=environment(PGWORKER_DSN=dsn, PGWORKER_APP="corner:app", TERM="dumb"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            assert self._read(), self.seen
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it printed at last."""
        while self._read():
            pass
        return self.process.wait(DEADLINE), self.seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self) -> bool:
        part = b""
        with suppress(OSError):  # EIO: the last one who had it open is gone
            part = os.read(self._ours, 65_536)
        self.seen += part.decode().replace("\r\n", "\n")
        return bool(part)


def _take_terminal() -> None:
    """Keys such as Ctrl-C reach the process group in the foreground of its controlling terminal."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(shop: Path, dsn: str, *words: str) -> Iterator[Terminal]:
    opened = Terminal(shop, dsn, *words)
    try:
        yield opened
    finally:
        opened.close()


# retry


def test_jobs_are_retried_by_their_ids_and_each_says_what_became_of_it(dsn: str, connect: Connect) -> None:
    connection = connect()
    (done,) = enqueue(connection)
    worker = Worker(connection)
    worker.settle(worker.claim().settlement())
    (dead,) = bury(connection, 1)
    (running,) = enqueue(connection)
    worker.claim()
    (cancelled,) = enqueue(connection)
    cancel_job(connection, cancelled)
    (scheduled,) = enqueue(connection, run_at=TOMORROW)
    (due,) = enqueue(connection)
    words = [str(job) for job in (scheduled, dead, due, running, done, cancelled, uuid4())]
    finished = run("jobs", "retry", *words, dsn=dsn)
    assert [line.split(":")[0].partition(" ")[2] for line in finished.stdout.splitlines()] == [
        "due now",
        "requeued",
        "waiting",
        "running",
        "succeeded",
        "cancelled",
    ]
    assert "there is no job" in refusal(finished, 64)
    assert [job for job, _, _ in waiting(connection)] == sorted([scheduled, due, UUID(dead)])
    assert ask(connection, "select bool_and(run_at <= clock_timestamp()) from pgworker.job_queue") == [True]
    late = run("jobs", "retry", str(done), dsn=dsn)
    assert (late.returncode, late.stderr) == (1, "")
    assert late.stdout.startswith("succeeded: refused")
    assert "pgworker enqueue" in late.stdout


def test_all_that_wait_for_their_retry_run_now_and_others_only_when_they_are_named(dsn: str, connect: Connect) -> None:
    connection = connect()
    enqueue(connection, 2)
    worker = Worker(connection)
    worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.REQUEUE, delay=3600))
    scheduled = enqueue(connection, 3, run_at=TOMORROW, org_id="acme")
    dead = bury(connection, 2)
    assert output(run("jobs", "retry", "--all", "-q", "mail", "-y", dsn=dsn)) == "due now 0, requeued 0\n"
    assert output(run("jobs", "retry", "--all", "-y", dsn=dsn)) == "due now 2, requeued 0\n"
    words = ("--status", "scheduled", "--status", "dead_letter")
    assert output(run("jobs", "retry", "--all", "--org", "acme", *words, "-y", dsn=dsn)) == "due now 3, requeued 0\n"
    assert output(run("jobs", "retry", "--all", "--task", "t", *words, "-y", dsn=dsn)) == "due now 0, requeued 2\n"
    assert statuses(connection, [*scheduled, *map(UUID, dead)]) == ["pending"] * 5


def test_which_jobs_to_retry_must_be_said_and_meant(dsn: str) -> None:
    is_refused("name jobs by their ids, or give --all", 64, "jobs", "retry", "-q", "mail")
    is_refused("name jobs by their ids, or give --all", 64, "jobs", "retry", "--all", str(uuid4()))
    is_refused("give either ids, or --all with", 64, "jobs", "retry", str(uuid4()), "-q", "mail")
    is_refused("'succeeded' is not one of", 64, "jobs", "retry", "--all", "--status", "succeeded")
    is_refused("give --yes if it is meant", 64, "jobs", "retry", "--all", dsn=dsn)


# explain


def test_explain_says_why_a_job_waits_and_what_helps_for_people_and_as_json(dsn: str, connect: Connect) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, queue="mail")
    pause_queues(connection, ["mail"])
    said = output(run("jobs", "explain", str(job_id), dsn=dsn)).splitlines()
    assert said[0].startswith("Its queue, mail, has been paused for ")
    assert said[1:] == ["Try: pgworker queues resume mail"]
    [told] = objects(output(run("jobs", "explain", "--json", str(job_id), dsn=dsn)))
    assert told == {
        "id": str(job_id),
        "status": "pending",
        "reason": "queue_paused",
        "explanation": told["explanation"],
        "command": "pgworker queues resume mail",
    }
    assert f"in short    {told['explanation'][:30]}" in output(run("jobs", "show", str(job_id), dsn=dsn))
    is_refused("there is no job", 64, "jobs", "explain", str(uuid4()), dsn=dsn)


# run


def test_a_job_runs_in_the_foreground_with_its_hooks_and_middleware_and_is_recorded(
    shop: Path, dsn: str, connect: Connect
) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, task="corner.greet", payload='{"name": "Ada"}', run_at=TOMORROW)
    finished = run_job(shop, dsn, job_id)
    assert finished.returncode == 0, finished.stderr
    *printed, told = finished.stdout.splitlines()
    assert printed == ["the shop opens", "before corner.greet", "greeting Ada, open", "the shop closes"]
    assert told.startswith("It succeeded ")
    assert told.endswith('It returned "hello Ada"')
    assert "nobody ends it at its deadline, in 30m" in finished.stderr
    assert ended(connection, job_id) == [(1, "succeeded", 0)]
    assert (leases(connection), waiting(connection)) == ({}, [])
    assert ask(connection, "select ended_how from pgworker.worker_heartbeats") == ["it has ended"]


def test_a_failure_shows_its_stack_and_is_retried_or_given_up_by_the_usual_rules(
    shop: Path, dsn: str, connect: Connect
) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, task="corner.spill", payload="{}", max_attempts=2)
    first = run_job(shop, dsn, job_id)
    assert first.returncode == 1
    assert 'raise ValueError("no such luck")' in first.stderr
    assert "corner.py" in first.stderr
    assert "It has failed 1 of 2 times, last with ValueError: no such luck. It runs again in " in first.stdout
    second = run_job(shop, dsn, job_id)
    assert second.returncode == 1
    assert "It was given up " in second.stdout
    assert ended(connection, job_id) == [(1, "failed", 1), (2, "failed", 2)]
    third = run_job(shop, dsn, job_id)
    assert f"Try: pgworker jobs retry {job_id}" in refusal(third, 64)
    assert "the shop opens" not in third.stdout


@pytest.mark.parametrize(
    ("task", "code", "history", "status"),
    [
        ("refuse", 1, "failed", "dead_letter"),
        ("later", 1, "snoozed", "scheduled"),
        ("pay", 0, "succeeded", "succeeded"),
    ],
)
def test_discard_snooze_and_a_transaction_of_its_own_do_what_they_do_in_a_pool(
    shop: Path, dsn: str, connect: Connect, task: str, code: int, history: str, status: str
) -> None:
    connection = connect()
    connection.execute("create table payments (at timestamptz default now())")
    (job_id,) = enqueue(connection, task=f"corner.{task}")
    finished = run_job(shop, dsn, job_id)
    assert finished.returncode == code, finished.stderr
    assert [outcome for _, outcome, _ in ended(connection, job_id)] == [history]
    assert statuses(connection, [job_id]) == [status]
    assert ask(connection, "select count(*) from payments") == [int(task == "pay")]


def test_a_debugger_has_the_terminal_and_others_see_who_runs_the_job(shop: Path, dsn: str, connect: Connect) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, task="corner.think", payload='{"n": 21}')
    with terminal(shop, dsn, "jobs", "run", str(job_id)) as person:
        person.wait_for("(Pdb)")
        person.type("p doubled\n")
        person.wait_for("42")
        expires = ask(connection, "select expires_at from pgworker.job_leases")
        eventually(
            lambda: ask(connection, "select expires_at from pgworker.job_leases") > expires, "its lease is renewed"
        )
        said = eventually(lambda: _explained(dsn, job_id, "It runs on worker 0 on host"), "it is seen to run")
        assert f"(pid {person.process.pid})" in said
        assert Monitor(connect()).reclaimable(by_expiry=True) == []
        assert "It runs on worker 0 on host" in refusal(run_job(shop, dsn, job_id), 64)
        person.type("continue\n")
        code, last = person.end()
    assert code == 0
    assert "It returned 42" in last
    assert ended(connection, job_id) == [(1, "succeeded", 0)]


def _explained(dsn: str, job_id: UUID, start: str) -> str:
    said = output(run("jobs", "explain", str(job_id), dsn=dsn))
    return said if said.startswith(start) else ""


@pytest.mark.parametrize(
    ("task", "sign", "key"),
    [
        ("think", "(Pdb)", "q\n"),
        ("wait", "waiting", "\x03"),
        ("drift", "drifting", "\x03"),
        ("wait", "waiting", signal.SIGTERM),
        ("wait", "waiting", signal.SIGHUP),
    ],
)
def test_who_gives_up_hands_the_job_back_uncharged(
    shop: Path, dsn: str, connect: Connect, task: str, sign: str, key: str | signal.Signals
) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, task=f"corner.{task}", payload='{"n": 1}' if task == "think" else "{}")
    with terminal(shop, dsn, "jobs", "run", str(job_id)) as person:
        person.wait_for(sign)
        if isinstance(key, str):
            person.type(key)
        else:
            person.process.send_signal(key)
        if sys.version_info >= (3, 14) and task == "think":
            person.type("y\n")
        code, last = person.end()
    assert code == 130, last
    assert "handed back: it waits as before, and nothing was charged" in last
    assert "the shop closes" in last
    assert ended(connection, job_id) == [(1, "released", 0)]
    assert waiting(connection) == [(job_id, 2, 0)]
    assert ask(connection, "select bool_and(run_at <= clock_timestamp()) from pgworker.job_queue") == [True]


def test_a_cancel_reaches_the_handler_and_its_progress_is_seen_meanwhile(
    shop: Path, dsn: str, connect: Connect
) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, task="corner.wait", timeout=0.2)
    with terminal(shop, dsn, "jobs", "run", str(job_id)) as person:
        person.wait_for("waiting")
        eventually(lambda: ask(connection, "select message from pgworker.job_progress"), "its progress is stored")
        cancel_job(connection, job_id)
        code, last = person.end()
    assert code == 1
    assert "somebody has cancelled the job" in last
    assert "It was cancelled " in last
    assert [outcome for _, outcome, _ in ended(connection, job_id)] == ["cancelled"]
    assert ask(connection, "select count(*) from pgworker.job_progress") == [0]


def test_a_lost_connection_costs_nothing_when_there_is_a_new_one(shop: Path, dsn: str, connect: Connect) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, task="corner.think", payload='{"n": 21}')
    with terminal(shop, dsn, "jobs", "run", str(job_id)) as person:
        person.wait_for("(Pdb)")
        ours = "from pg_stat_activity where application_name ~ '^pgworker' and datname = current_database()"
        backends = set(ask(connection, f"select pid {ours}"))
        connection.execute(f"select pg_terminate_backend(pid) {ours}".encode())
        eventually(lambda: set(ask(connection, f"select pid {ours}")) - backends, "the lease is kept by a new one")
        person.type("continue\n")
        code, last = person.end()
    assert (code, [outcome for _, outcome, _ in ended(connection, job_id)]) == (0, ["succeeded"]), last


def test_a_job_that_others_took_is_not_recorded_here(shop: Path, dsn: str, connect: Connect) -> None:
    """As when the process was stopped, or held its GIL, for longer than its lease lasts."""
    connection = connect()
    (job_id,) = enqueue(connection, task="corner.wait")
    with terminal(shop, dsn, "jobs", "run", str(job_id)) as person:
        person.wait_for("waiting")
        ((lease_id, _),) = leases(connection).items()
        connection.execute("update pgworker.worker_heartbeats set ended_at = now(), ended_how = 'stopped for long'")
        assert [lease.lease_id for lease in Monitor(connection).reclaim_all(assumed_running=1)] == [lease_id]
        code, last = person.end()
    assert code == 1
    assert "the lease is lost, and with it the job" in last
    assert [outcome for _, outcome, _ in ended(connection, job_id)] == ["crashed"]


def test_what_can_not_be_run_here_is_refused_with_the_reason(shop: Path, dsn: str, connect: Connect) -> None:
    connection = connect()
    (unknown,) = enqueue(connection, task="corner.great")
    finished = run_job(shop, dsn, unknown)
    assert "the app has no task corner.great; did you mean corner.greet?" in refusal(finished, 78)
    (paused,) = enqueue(connection, task="corner.greet", payload='{"name": "Bob"}', queue="mail")
    pause_queues(connection, ["mail"])
    assert "Its queue, mail, has been paused" in refusal(run_job(shop, dsn, paused), 64)
    assert run_job(shop, dsn, paused, "--force").returncode == 0
    assert "It succeeded " in refusal(run_job(shop, dsn, paused), 64)
    assert "there is no job" in refusal(run_job(shop, dsn, uuid4()), 64)
    assert "there is no module nowhere" in refusal(run_job(shop, dsn, unknown, "--app", "nowhere:app"), 78)
    is_refused("no app is named: give --app", 78, "jobs", "run", str(unknown), dsn=dsn)


def test_the_app_may_be_named_in_the_configuration(shop: Path, dsn: str, connect: Connect) -> None:
    (job_id,) = enqueue(connect(), task="corner.greet", payload='{"name": "Ada"}')
    (shop / "pgworker.toml").write_text('app = "corner:app"\n')
    words = command("jobs", "run", str(job_id))
    finished = subprocess.run(words, cwd=shop, env=environment(PGWORKER_DSN=dsn), capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_pool_login_may_run_jobs(shop: Path, login: Callable[..., str], roles_dsn: str) -> None:
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        (job_id,) = enqueue(connection, task="corner.greet", payload='{"name": "Ada"}')
        finished = run_job(shop, login("pgworker_worker"), job_id)
        assert finished.returncode == 0, finished.stderr
        (other,) = enqueue(connection, task="corner.greet", payload='{"name": "Ada"}')
        told = json.loads(output(run("jobs", "explain", "--json", str(other), dsn=login("pgworker_admin"))))
        assert told["reason"] == "no_workers"


def test_who_may_not_run_jobs_is_told_what_is_lacking_and_the_job_waits_on(
    shop: Path, login: Callable[..., str], roles_dsn: str
) -> None:
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        (job_id,) = enqueue(connection, task="corner.greet", payload='{"name": "Ada"}')
        told = refusal(run_job(shop, login("pgworker_admin"), job_id), 78)
        assert "permission denied" in told
        assert "pgworker_worker" in told
        assert "Traceback" not in told
        assert waiting(connection) == [(job_id, 1, 0)]


# workers


def beaten(connection: psycopg.Connection[Any], worker_id: UUID, lease_id: UUID | None, *, host: str = "a") -> None:
    runs = () if lease_id is None else tuple(RunningJob(lease_id, place, place * 1_000_000) for place in (1, 2))
    activity = Activity(WorkerState.BUSY if runs else WorkerState.IDLE, runs, 7, 41 << 20, 12.5)
    pool = PoolIdentity(uuid4(), host, "boot", ("default",))
    beat_workers(connection, pool, [WorkerProcess(worker_id, 4_194_304, 3, 3_600_000_000, 0, activity)])


def test_workers_are_listed_with_what_they_run_within_80_columns(dsn: str, connect: Connect) -> None:
    connection = connect()
    nobody = run("workers", dsn=dsn)
    assert (nobody.returncode, nobody.stdout) == (0, "")
    assert nobody.stderr == "no worker is alive: `pgworker start` runs some\n"
    (first, second) = enqueue(connection, 2, task="shop.reports.monthly_statement_of_accounts")
    worker, silent = Worker(connection), uuid4()
    held = worker.claim(tasks=["shop.reports.monthly_statement_of_accounts"], slots=2)
    beaten(connection, worker.worker_id, held.lease_id, host="a-host-with-a-rather-long-name.example")
    beaten(connection, silent, None)
    connection.execute(
        "update pgworker.worker_heartbeats set beat_at = beat_at - interval '40 s' where worker_id = %s", [silent]
    )
    table = output(run("workers", dsn=dsn, COLUMNS="80")).splitlines()
    assert max(map(len, table)) <= 80
    assert table[0].split() == ["HOST", "SLOT", "PID", "STATE", "RUNS", "FOR", "MEM", "CPU", "UP", "BEAT"]
    quiet, busy = (line.split() for line in table[1:])
    assert quiet[:6] == ["a", "3", "4194304", "silent", "-", "-"]
    assert quiet[6:10] == ["41", "MiB", "12s", "60m"]
    assert (busy[1:4], busy[-5:-3]) == (["3", "4194304", "busy"], ["41", "MiB"])
    assert "+1" in table[2]
    told = objects(output(run("workers", "--json", dsn=dsn)))
    assert [one["is_silent"] for one in told] == [True, False]
    assert [ran["job_id"] for ran in told[1]["runs"]] == [str(second), str(first)]
    assert len(objects(output(run("workers", "--json", "--limit", "1", dsn=dsn)))) == 1


# dead-letters show, and the way on in a long list


def test_a_dead_letter_is_shown_with_its_stack_and_what_to_do_next(dsn: str, connect: Connect) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, payload='{"n": 1}', org_id="acme")
    worker = Worker(connection)
    error = json.dumps({"type": "KeyError", "message": "'user'", "traceback": "Traceback\n  line 7"})
    worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.BURY, error=error))
    connection.execute("truncate pgworker.jobs, pgworker.job_executions")
    page = output(run("dead-letters", "show", str(job_id), dsn=dsn))
    assert "error       KeyError: 'user'\n" in page
    assert 'payload     {"n": 1}\n' in page
    assert "stack of execution 1:\n    Traceback\n      line 7\n" in page
    assert f"pgworker dead-letters requeue {job_id}" in page
    [told] = objects(output(run("dead-letters", "show", "--json", str(job_id), dsn=dsn)))
    assert (told["job_id"], told["payload"], told["error"]["type"]) == (str(job_id), {"n": 1}, "KeyError")
    (waits,) = enqueue(connection)
    finished = run("dead-letters", "show", str(waits), dsn=dsn)
    assert f"job {waits} is no dead letter. No worker is alive" in refusal(finished, 64)
    is_refused("there is no job", 64, "dead-letters", "show", str(uuid4()), dsn=dsn)


@pytest.mark.parametrize("status", ["pending", "succeeded", "cancelled", "dead_letter", "running", None])
def test_a_long_list_goes_on_before_its_last_job(dsn: str, connect: Connect, status: str | None) -> None:
    connection = connect()
    ids = [str(job_id) for job_id in enqueue(connection, 5)]
    worker = Worker(connection)
    match status:
        case "succeeded":
            worker.settle(worker.claim().settlement())
        case "dead_letter":
            worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.BURY))
        case "cancelled":
            worker.settle(worker.claim().settlement(outcome=Outcome.CANCELLED))
        case "running":
            worker.claim()
    words = ["jobs", "list", "--json", "--limit", "2", *(["--status", status] if status else [])]
    seen: list[str] = []
    while page := objects(output(run(*words, *(["--before", seen[-1]] if seen else []), dsn=dsn))):
        seen += [job["id"] for job in page]
        if len(page) < 2:
            break
    assert seen == ids[::-1]


def test_a_person_is_told_the_way_on(dsn: str, connect: Connect) -> None:
    ids = enqueue(connect(), 3)
    assert f"there may be more: --before {ids[1]}" in on_a_terminal("jobs", "list", "--limit", "2", dsn=dsn)
    assert "there may be more" not in on_a_terminal("jobs", "list", dsn=dsn)
