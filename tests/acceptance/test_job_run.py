"""`pgworker jobs run`, as people use it: on a real database, at a real terminal, with a debugger."""

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
from tests.acceptance.test_cli import command, environment, is_refused, output, refusal, run
from tests.process.pool import eventually
from tests.sql.actors import DEADLINE, Monitor, ask, ended, enqueue, leases, now, statuses, waiting

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

@app.task(max_attempts=1)
async def sink() -> None:
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


@pytest.mark.parametrize("task", ["spill", "sink"])
def test_the_stack_of_a_failure_has_the_frames_of_the_app_alone(
    shop: Path, dsn: str, connect: Connect, task: str
) -> None:
    (job_id,) = enqueue(connect(), task=f"corner.{task}", payload="{}")
    finished = run_job(shop, dsn, job_id)
    frames = [line for line in finished.stderr.splitlines() if line.startswith("  File ")]
    assert frames
    assert [frame for frame in frames if "corner.py" not in frame] == []
    assert "frames of pgworker (pgworker jobs show --json has them)" in finished.stderr


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


@pytest.mark.parametrize("waits_for", ["its time", "its retry", "nothing: it is parked"])
def test_a_job_that_is_not_due_yet_is_handed_back_for_its_time(
    shop: Path, dsn: str, connect: Connect, waits_for: str
) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, task="corner.wait", run_at=now(connection) + timedelta(hours=1))
    if waits_for == "its retry":
        connection.execute("update pgworker.job_queue set execution = 2, failures = 1")
    if waits_for == "nothing: it is parked":
        connection.execute("update pgworker.job_queue set run_at = 'infinity'")
    run_at = "select least(run_at, '9999-12-30 UTC') from pgworker.job_queue"
    due = ask(connection, run_at)
    with terminal(shop, dsn, "jobs", "run", str(job_id)) as person:
        person.wait_for("waiting")
        person.type("\x03")
        person.end()
    assert ask(connection, run_at) == due
    assert statuses(connection, [job_id]) == ["failed" if waits_for == "its retry" else "scheduled"]


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
        connection.execute(
            "update pgworker.worker_heartbeats"
            " set beat_at = now() - interval '1 minute', ended_at = now(), ended_how = 'stopped for long'"
        )
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
