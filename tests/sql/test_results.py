"""The wait for results: one thread and few statements however many wait, through outages, forks and an App's close."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworker import App, AppClosed, ConfigurationError, JobHandle, JobRequest, SchemaError, WaitTimeout
from pgworker.app.results import TICK, next_look
from pgworker.db import embedded
from pgworker.db.migrate import migrate
from tests.sql.actors import Connect, Worker
from tests.sql.test_enqueue_api import PROGRAM, run_program, wait_until

LONG = 60.0
"""Seconds: a wait that takes so long has failed."""

NOBODY = "0199d5a4-6f2b-7c3e-8a1d-2b3c4d5e6f70"


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    opened = App(dsn)
    yield opened
    opened.close()


def enqueue(app: App, jobs: int = 1) -> list[JobHandle[Any]]:
    return app.enqueue_many(JobRequest("t", "{}") for _ in range(jobs))


def finish_all(worker: Worker) -> None:
    while (lease := worker.claim()).rows:
        assert worker.settle(lease.settlement(result='"done"'))


def waiting(app: App) -> int:
    """How many wait, in this process."""
    return len(app._jobs.results._waiters.get()._waits)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pgworker results"]


@contextmanager
def in_threads(handles: list[JobHandle[Any]], app: App, timeout: float | None = LONG) -> Iterator[list[Future[Any]]]:
    """Each handle waited for in a thread, all of them by now."""
    with ThreadPoolExecutor(len(handles)) as executor:
        futures = [executor.submit(handle.wait, timeout) for handle in handles]
        wait_until(lambda: waiting(app) == len(handles))
        yield futures


@given(st.floats(0, 1e9), st.floats(0, 1e4))
def test_the_next_look_is_within_a_twentieth_of_the_wait_and_who_waits_about_equally_long_shares_it(
    begun: float, waited: float
) -> None:
    now = begun + waited
    due = next_look(now, begun)
    assert now - 1e-6 < due <= now + min(max(TICK, waited / 20), 1.0) + 1e-6
    assert abs(round(due / TICK) - due / TICK) < 1e-4, "all looks lie on one grid"


@given(st.floats(0, 1e6))
def test_looks_become_rarer(begun: float) -> None:
    """At most twice as many as by the rule itself, which the grid rounds down."""
    looks, now = 0, begun
    while now < begun + 60:
        looks, now = looks + 1, max(now + TICK, next_look(now, begun))
    ideal, now = 0, begun
    while now < begun + 60:
        ideal, now = ideal + 1, now + min(max(TICK, (now - begun) / 20), 1.0)
    assert ideal - 1 <= looks <= 2 * ideal + 1


def test_five_hundred_waiters_share_one_thread_and_few_statements(
    app: App, worker: Worker, dsn: str, server: embedded.Server
) -> None:
    """What they cost is read as transactions of this database, once its connections have ended and said theirs."""
    handles = enqueue(app, 500)
    app.close()

    def transactions() -> int:
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        with psycopg.connect(server.dsn, autocommit=True) as observer:
            producers = "select from pg_stat_activity where datname = %s and application_name = 'pgworker producer'"
            wait_until(lambda: not observer.execute(producers, [name]).fetchall())
            row = observer.execute("select xact_commit from pg_stat_database where datname = %s", [name]).fetchone()
            assert row
            return int(row[0])

    async def wait_for_them() -> list[Any]:
        waits = [asyncio.create_task(handle.wait_async(LONG)) for handle in handles[50:]]
        while waiting(app) < 500:
            await asyncio.sleep(0.01)
        assert len(threads()) == 1
        await asyncio.sleep(3)
        finish_all(worker)
        return await asyncio.gather(*waits)

    before, begun = transactions(), time.monotonic()
    with ThreadPoolExecutor(50) as executor:
        waits = [executor.submit(handle.wait, LONG) for handle in handles[:50]]
        assert asyncio.run(wait_for_them()) == ["done"] * 450
        assert [wait.result() for wait in waits] == ["done"] * 50
    elapsed = time.monotonic() - begun
    wait_until(lambda: not threads())
    app.close()
    worker.connection.close()
    looks = elapsed / TICK + 10
    assert transactions() - before < 2 * looks + 100, "each look is two: is the connection alive, and what is there"


def test_nobody_who_waits_means_no_thread(app: App, worker: Worker) -> None:
    [one, other] = enqueue(app, 2)

    async def give_up() -> None:
        wait = asyncio.create_task(one.wait_async())
        while not waiting(app):
            await asyncio.sleep(0.01)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        assert not waiting(app)

    asyncio.run(give_up())
    wait_until(lambda: not threads())
    with pytest.raises(WaitTimeout):
        other.wait(0.01)
    wait_until(lambda: not threads())
    finish_all(worker)
    assert one.wait() == other.wait() == "done"
    wait_until(lambda: not threads())


def test_many_who_wait_for_one_job_all_hear_of_it(app: App, worker: Worker) -> None:
    [job] = enqueue(app)
    with in_threads([job] * 20, app) as waits:
        finish_all(worker)
        assert [wait.result() for wait in waits] == ["done"] * 20


def test_close_ends_every_wait_and_the_next_one_starts_anew(app: App, worker: Worker) -> None:
    [job, other] = enqueue(app, 2)

    async def be_told() -> None:
        wait = asyncio.create_task(other.wait_async())
        while waiting(app) < 2:
            await asyncio.sleep(0.01)
        app.close()
        with pytest.raises(AppClosed, match=f"the App was closed while job {other} was waited for; the job goes on"):
            await wait

    with in_threads([job], app, None) as [wait]:
        asyncio.run(be_told())
        with pytest.raises(AppClosed):
            wait.result()
    wait_until(lambda: not threads())
    finish_all(worker)
    assert job.wait() == "done"


def test_what_waiting_can_not_heal_is_raised_to_all_who_wait(blank_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(blank_dsn)
    with ThreadPoolExecutor(3) as executor:
        waits = [executor.submit(app.job(NOBODY).wait) for _ in range(3)]
        errors = [wait.exception(LONG) for wait in waits]
    assert all(isinstance(error, SchemaError) and "pgworker migrate" in str(error) for error in errors)
    app.close()
    for name in ("PGWORKER_DSN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="no database is named"):
        App().job(NOBODY).wait()


def test_broken_connections_and_a_restart_of_postgresql_are_waited_out(binaries: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="pgworker-tests-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        options = {"fsync": "off", "shared_buffers": "16MB"}
        app = App(f"embedded:{directory}")
        with embedded.start(directory, options=options, binaries=binaries) as server:
            migrate(server.dsn)
            [job, other] = enqueue(app, 2)
            executor = ThreadPoolExecutor(1)
            wait = executor.submit(job.wait, LONG)
            wait_until(lambda: waiting(app))
            with psycopg.connect(server.dsn, autocommit=True) as admin:
                admin.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name = 'pgworker producer'"
                )
        with pytest.raises(WaitTimeout, match=f"job {other} has not ended"):
            other.wait(0.1)
        assert not wait.done()
        with embedded.start(directory, options=options, binaries=binaries) as server:
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                finish_all(Worker(connection))
            assert wait.result(LONG) == "done"
        executor.shutdown()
        app.close()


def test_an_outage_is_named_by_the_wait_that_it_outlasts() -> None:
    app = App("host=127.0.0.1 port=1 dbname=nowhere")
    app._connections.waits.for_connection = 0.1
    with closing(app), pytest.raises(WaitTimeout, match=r"the database could not be asked: .*; it goes on") as timeout:
        app.job(NOBODY).wait(3)
    assert "127.0.0.1" in str(timeout.value)


WAITS = """
import threading, time
[job, other] = app.enqueue_many([mail.job("a"), mail.job("b")])
told = []
thread = threading.Thread(target=lambda: told.append(job.wait()), daemon=True)
thread.start()
while not app._jobs.results._waiters.get()._waits: time.sleep(0.01)
"""


def test_a_forked_child_waits_by_itself_and_its_parent_goes_on(dsn: str, worker: Worker) -> None:
    program = (
        WAITS
        + """
if (child := os.fork()) == 0:
    assert threading.active_count() == 1
    try:
        other.wait(0.1)
    except TimeoutError:
        other.cancel()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert not told
assert other.status() == "cancelled"
job.cancel()
try:
    job.wait()
except Exception as error:
    print(type(error).__name__)
"""
    )
    # The thread of the parent raises JobCancelled too, which is not caught there.
    assert run_program(PROGRAM + "import threading\nthreading.excepthook = lambda _: None\n" + program, dsn) == (
        "JobCancelled\n"
    )


def test_children_that_are_forked_while_others_wait_do_not_hang(dsn: str) -> None:
    program = """
import threading
from pgworker import WaitTimeout
job = mail.enqueue("a")
stop = threading.Event()
def work():
    while not stop.is_set():
        try:
            job.wait(0.01)
        except WaitTimeout:
            pass
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
for _ in range(20):
    if (child := os.fork()) == 0:
        try:
            job.wait(0.01)
        except WaitTimeout:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
[thread.join() for thread in threads]
"""
    run_program(PROGRAM + program, dsn)


def test_a_program_that_ends_while_a_thread_of_it_waits_ends_in_silence(dsn: str) -> None:
    assert run_program(PROGRAM + WAITS + "print('end')", dsn) == "end\n"


@pytest.fixture
def worker(connect: Connect) -> Worker:
    return Worker(connect())
