"""`pgworker.testing`: jobs drained in this process end as under a worker, and nothing of it is left afterwards."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgworker import (
    App,
    Backoff,
    ConfigurationError,
    Context,
    DeadLetter,
    Discard,
    Job,
    Retry,
    Snooze,
    Status,
)
from pgworker.app.connections import Connections
from pgworker.testing import DrainedJob, assert_enqueued, drain, drain_async
from tests.process.pool import eventually

Connect = Callable[[], psycopg.Connection[Any]]


@pytest.fixture
def app(pgworker_database: str) -> Iterator[App]:
    made = App()
    yield made
    made.close()


@pytest.fixture
def connection(pgworker_database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pgworker_database, autocommit=True) as connected:
        connected.execute("create table effects (what text not null, by_job uuid)")
        yield connected


def ended(drained: list[DrainedJob]) -> list[tuple[str, str]]:
    return [(job.job.task, job.outcome.value) for job in drained]


def effects(connection: psycopg.Connection[Any]) -> list[str]:
    return [what for (what,) in connection.execute("select what from effects order by what").fetchall()]


def later(**units: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(**units)


# -- what runs


def test_what_is_due_runs_and_what_it_enqueues_until_nothing_is_left(app: App) -> None:
    @app.task(name="count", queue="numbers")
    def count(number: int) -> int:
        if number:
            count.options(queue=f"q{number}").enqueue(number - 1)
        return number

    handle = count.enqueue(3)
    assert [(job.job.queue, job.result) for job in drain(app)] == [("numbers", 3), ("q3", 2), ("q2", 1), ("q1", 0)]
    assert (handle.status(), handle.wait(timeout=5)) == (Status.SUCCEEDED, 3)
    assert drain(app) == []


def test_queues_go_in_strict_order_and_priorities_inside_them(app: App) -> None:
    @app.task(name="say")
    def say(word: str) -> str:
        return word

    for word, queue, priority in (("c", "b", 5), ("d", "b", 1), ("b", "a", 1), ("a", "a", 9), ("x", "other", 9)):
        say.options(queue=queue, priority=priority).enqueue(word)
    assert [job.result for job in drain(app, queues=["b"])] == ["c", "d"]
    say.options(queue="b").enqueue("e")
    assert [job.result for job in drain(app, queues=["b", "a"])] == ["e", "a", "b"]
    assert [job.result for job in drain(app)] == ["x"]


def test_jobs_of_paused_queues_and_of_unknown_tasks_stay(app: App, connection: psycopg.Connection[Any]) -> None:
    @app.task(name="held", queue="held")
    def held() -> None:
        pass

    app.pause("held")
    held.options(run_at=later(hours=1)).enqueue()
    held.enqueue()
    connection.execute("select pgworker.enqueue('nobody.knows', run_at => now())")
    assert drain(app, until=later(days=1)) == []
    assert_enqueued(held, count=2)
    assert_enqueued("nobody.knows", count=1)
    app.resume("held")
    assert ended(drain(app, until=later(days=1))) == [("held", "succeeded")] * 2


def test_jobs_that_enqueue_each_other_for_ever_end_at_the_limit_with_the_next_one_still_queued(app: App) -> None:
    @app.task(name="again")
    def again() -> None:
        again.enqueue()

    again.enqueue()
    with pytest.raises(AssertionError, match=r"limit, and there are more: Job.*again"):
        drain(app, limit=7)
    assert_enqueued(again, count=1)


def test_a_limit_that_is_just_enough_is_no_error(app: App) -> None:
    @app.task(name="once")
    def once() -> None:
        pass

    app.enqueue_many([once.job() for _ in range(3)])
    assert len(drain(app, limit=3)) == 3


# -- later


def test_what_is_scheduled_stays_until_drain_is_told_to_go_as_far(app: App) -> None:
    @app.task(name="remind")
    def remind(of: str) -> str:
        return of

    for of, hours in (("third", 30), ("second", 20), ("first", 10)):
        remind.options(run_at=later(hours=hours)).enqueue(of)
    assert drain(app) == []
    assert drain(app, until=later(hours=9)) == []
    assert [job.result for job in drain(app, until=later(hours=21))] == ["first", "second"]
    [left] = assert_enqueued(remind, {"of": "third"})
    assert left.run_at > later(hours=29), "it waits for its own time"
    assert [job.result for job in drain(app, until=later(hours=31))] == ["third"]


def test_a_job_that_enqueues_itself_for_an_hour_later_runs_once_an_hour(app: App) -> None:
    @app.task(name="hourly")
    def hourly() -> None:
        hourly.options(run_at=later(hours=1)).enqueue()

    @app.task(name="between")
    def between() -> None:
        pass

    hourly.enqueue()
    between.options(run_at=later(hours=2.5)).enqueue()
    ran = [job.job.task for job in drain(app, until=later(hours=4.5))]
    assert ran == ["hourly", "hourly", "hourly", "between", "hourly", "hourly"]


def test_a_retry_waits_for_its_backoff_and_runs_up_to_the_dead_letter_when_told_so(app: App) -> None:
    @app.task(name="fail", max_attempts=3, backoff=Backoff(base=60, cap=3600))
    def fail() -> None:
        raise ValueError("no")

    fail.enqueue()
    [job] = drain(app)
    assert (job.outcome, str(job.error), job.job.execution) == ("failed", "no", 1)
    [waits] = assert_enqueued(fail)
    assert (waits.execution, waits.failures) == (2, 1)
    assert [each.job.execution for each in drain(app, until=later(minutes=2))] == [2]
    assert [each.job.execution for each in drain(app, until=later(hours=2))] == [3]
    assert_enqueued(fail, count=0)


def test_a_snooze_and_a_retry_are_due_when_they_say(app: App) -> None:
    seen: list[int] = []

    @app.task(name="patient")
    def patient(ctx: Context) -> None:
        seen.append(ctx.job.execution)
        if ctx.job.execution == 1:
            raise Snooze(timedelta(hours=1))
        if ctx.job.execution == 2:
            raise Retry("once more", after=0)

    patient.enqueue()
    assert ended(drain(app)) == [("patient", "snoozed")]
    assert ended(drain(app, until=later(minutes=59))) == []
    assert ended(drain(app, until=later(hours=2))) == [("patient", "failed"), ("patient", "succeeded")]
    assert seen == [1, 2, 3]


def test_what_can_not_be_meant_is_refused(app: App) -> None:
    for until in (datetime(2030, 1, 1), timedelta(days=1)):  # noqa: DTZ001  that is the mistake
        with pytest.raises(ValueError, match="until takes a time with a time zone"):
            drain(app, until=until)  # type: ignore[arg-type]  # likewise
    with pytest.raises(TypeError, match=r"a list of names, \['mail'\]"):
        drain(app, queues="mail")
    with pytest.raises(TypeError, match="takes a task or the name of one, not <pgworker"):
        assert_enqueued(app)  # type: ignore[arg-type]  # as drain does


# -- failures


def test_an_error_is_recorded_and_logged_with_its_traceback_or_raised(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="fail", max_attempts=1)
    def fail() -> None:
        raise LookupError("nowhere")

    @app.task(name="after")
    def after() -> None:
        pass

    fail.enqueue()
    after.enqueue()
    first, second = drain(app)
    assert (first.outcome, type(first.error), second.outcome, second.error) == (
        *("failed", LookupError),
        *("succeeded", None),
    )
    assert 'raise LookupError("nowhere")' in caplog.text
    fail.enqueue()
    after.enqueue()
    with pytest.raises(LookupError, match="nowhere"):
        drain(app, raising=True)
    assert_enqueued(after, count=1)
    assert_enqueued(fail, count=0)


def test_what_says_how_a_job_goes_on_is_never_raised(app: App) -> None:
    @app.task(name="control")
    def control(error: str) -> None:
        raise {"retry": Retry(), "discard": Discard("no"), "snooze": Snooze(60)}[error]

    for error in ("retry", "discard", "snooze"):
        control.enqueue(error)
    assert [job.outcome for job in drain(app, raising=True)] == ["failed", "failed", "snoozed"]


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()])
def test_what_would_end_a_thread_is_recorded_as_a_worker_does(app: App, error: BaseException) -> None:
    @app.task(name="leave", max_attempts=1)
    def leave() -> None:
        raise error

    @app.task(name="leave_async", max_attempts=1)
    async def leave_async() -> None:
        raise error

    leave.enqueue()
    leave_async.enqueue()
    assert ended(drain(app)) == [("leave", "failed"), ("leave_async", "failed")]


@pytest.mark.parametrize("is_async", [False, True])
def test_what_ends_a_test_ends_the_drain_and_the_next_one_works(app: App, is_async: bool) -> None:
    @app.task(name="stop")
    def stop(really: bool) -> None:
        if really:
            pytest.fail("from inside a handler")

    @app.task(name="stop_async")
    async def stop_async(really: bool) -> None:
        await asyncio.sleep(0)
        stop(really)

    task = stop_async if is_async else stop
    task.enqueue(True)
    with pytest.raises(pytest.fail.Exception, match="from inside a handler"):
        drain(app)
    task.enqueue(False)
    assert [job.outcome for job in drain(app)] == ["succeeded"]


def test_a_child_that_a_handler_has_forked_ends_with_it(app: App) -> None:
    @app.task(name="fork")
    def fork() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from Python 3.12 on
            return os.fork()

    fork.enqueue()
    [job] = drain(app)
    assert os.waitstatus_to_exitcode(os.waitpid(job.result, 0)[1]) != 0, "the child has not come this far"


def test_a_dead_letter_runs_its_hook(app: App) -> None:
    heard: list[str] = []

    @app.task(name="doomed", discard_on=(KeyError,))
    def doomed(order: int) -> None:
        raise KeyError(order)

    @doomed.on_dead_letter
    def bury(ctx: Context, dead: DeadLetter) -> None:
        heard.append(f"{dead.payload} {dead.reason}")

    doomed.enqueue(7)
    assert ended(drain(app)) == [("doomed", "failed"), ("doomed:dead_letter", "succeeded")]
    assert heard == ["{'order': 7} KeyError: 7"]


# -- all that a handler has


def test_transactions_commit_with_the_success_of_their_job_or_not_at_all(
    app: App, connection: psycopg.Connection[Any]
) -> None:
    @app.task(name="write_sync", max_attempts=1)
    def write_sync(ctx: Context, what: str, *, after: bool = False) -> None:
        with ctx.transaction() as own:
            own.execute("insert into effects values (%s, %s)", [what, ctx.job.id])
            follow.using(own).enqueue(what)
            if what == "undone":
                raise ValueError(what)
        if after:
            raise ValueError("too late")

    @app.task(name="write_async", max_attempts=1)
    async def write_async(ctx: Context, what: str) -> None:
        async with ctx.transaction_async() as own:
            await own.execute("insert into effects values (%s, %s)", [what, ctx.job.id])
            await follow.using(own).enqueue_async(what)
            if what == "undone":
                raise ValueError(what)

    @app.task(name="follow", queue="later")
    def follow(what: str) -> str:
        return what

    for what in ("done", "undone", "done again"):
        write_sync.enqueue(what)
        write_async.enqueue(what)
    late = write_sync.enqueue("late", after=True)
    ran = drain(app, queues=["default"])
    outcomes = {(job.job.task, job.job.payload["what"]): job.outcome.value for job in ran}
    assert outcomes == {
        (task, what): "failed" if what == "undone" else "succeeded"
        for task in ("write_sync", "write_async")
        for what in ("done", "undone", "done again", "late")
        if (task, what) != ("write_async", "late")
    }
    assert effects(connection) == ["done", "done", "done again", "done again", "late"]
    assert late.status() is Status.SUCCEEDED
    assert sorted(job.result for job in drain(app)) == ["done", "done", "done again", "done again", "late"]


def test_what_comes_after_the_commit_of_a_job_can_be_raised_too(app: App) -> None:
    @app.task(name="late")
    def late(ctx: Context) -> None:
        with ctx.transaction():
            pass
        raise ValueError("too late")

    late.enqueue()
    with pytest.raises(ValueError, match="too late"):
        drain(app, raising=True)
    assert drain(app) == []


def test_a_job_cancelled_while_it_waits_never_runs_and_one_that_runs_hears_of_it(app: App) -> None:
    heard: list[str] = []

    @app.task(name="work")
    def work(ctx: Context, how: str) -> None:
        assert not ctx.cancelled
        app.job(ctx.job.id).cancel()
        heard.append(f"{how} {ctx.cancel_reason.name if how != 'deaf' else ''}")
        if how == "raises":
            ctx.raise_if_cancelled()
        if how == "deaf":
            raise ValueError("what has it to do with it?")

    @app.task(name="work_async")
    async def work_async(ctx: Context) -> None:
        await asyncio.to_thread(app.job(ctx.job.id).cancel)
        assert await ctx.wait_cancelled_async(20)

    work.options(run_at=later(hours=1)).enqueue("waits").cancel()
    for how in ("raises", "returns", "deaf"):
        work.enqueue(how)
    work_async.enqueue()
    ran = drain(app, until=later(days=1))
    assert ended(ran) == [*[("work", "cancelled")] * 3, ("work_async", "cancelled")]
    assert heard == ["raises CANCELLED", "returns CANCELLED", "deaf "]


def test_a_handler_whose_time_is_up_hears_of_it(app: App) -> None:
    @app.task(name="slow", timeout=0.05, max_attempts=1)
    def slow(ctx: Context) -> None:
        assert ctx.wait_cancelled(20)
        ctx.raise_if_cancelled()

    slow.enqueue()
    assert ended(drain(app)) == [("slow", "timed_out")]


def test_progress_is_stored_and_the_next_execution_gets_the_checkpoint(app: App) -> None:
    begun: list[Any] = []

    @app.task(name="steps")
    def steps(ctx: Context) -> None:
        begun.append(ctx.checkpoint)
        if ctx.checkpoint is None:
            ctx.progress(0.5, "half", checkpoint={"page": 3})
            raise Retry(after=0)

    steps.enqueue()
    assert [job.outcome for job in drain(app)] == ["failed", "succeeded"]
    assert begun == [None, {"page": 3}]


def test_middleware_orgs_and_headers_are_those_of_the_job_not_of_the_test(
    app: App, connection: psycopg.Connection[Any]
) -> None:
    seen: list[tuple[str, str | None]] = []

    async def note_async(job: Job, ctx: Context, call_next: Callable[[], Any]) -> Any:
        seen.append((job.task, ctx.org.id if ctx.org else None))
        return await call_next()

    @app.middleware(twin=note_async)
    def note(job: Job, ctx: Context, call_next: Callable[[], Any]) -> Any:
        seen.append((job.task, ctx.org.id if ctx.org else None))
        return call_next()

    @app.task(name="parent")
    def parent() -> None:
        child.enqueue()

    @app.task(name="child")
    async def child(ctx: Context) -> str:
        async with ctx.transaction_async() as own:
            row = await (await own.execute("select current_setting('pgworker.org_id', true)")).fetchone()
            seen.append(("setting", row[0] if row else None))
        return ""

    with app.org("acme"):
        parent.enqueue()
    parent.enqueue()
    with app.org("of the test"):
        drain(app)
    assert seen == [
        *[("parent", "acme"), ("parent", None)],
        *[("child", "acme"), ("setting", "acme"), ("child", None), ("setting", "")],
    ]


def test_state_is_made_by_the_hooks_or_given(app: App) -> None:
    calls: list[str] = []

    @app.on_worker_start
    def start(state: SimpleNamespace) -> None:
        calls.append("start")
        state.client = "real"

    @app.on_worker_stop
    def stop(state: SimpleNamespace) -> None:
        calls.append(f"stop {state.client}")

    @app.task(name="use", max_attempts=1)
    def use(ctx: Context) -> str:
        return str(ctx.state.client)

    use.enqueue()
    assert [job.result for job in drain(app)] == ["real"]
    assert calls == ["start", "stop real"]
    use.enqueue()
    assert [job.result for job in drain(app, state=SimpleNamespace(client="fake"))] == ["fake"]
    assert calls == ["start", "stop real"]


def test_a_start_hook_that_fails_fails_the_drain(app: App) -> None:
    @app.on_worker_start
    def start(state: SimpleNamespace) -> None:
        raise OSError("no such host")

    with pytest.raises(ConfigurationError, match=r"start hook .*no such host"):
        drain(app)


# -- nothing is left


def test_nothing_is_left_of_a_drain(app: App, connection: psycopg.Connection[Any]) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")
    woken: list[bool] = []

    @app.task(name="leaves")
    async def leaves(ctx: Context) -> None:
        async def linger() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                woken.append(True)

        async def generate() -> Any:
            yield 1
            yield 2

        variable.set("left")
        ctx.state.task = asyncio.create_task(linger())
        ctx.state.generator = generate()
        await anext(ctx.state.generator)
        await asyncio.to_thread(time.sleep, 0)
        async with ctx.transaction_async() as own:
            await own.execute("select 1")

    @app.task(name="leaves_sync")
    def leaves_sync(ctx: Context) -> None:
        variable.set("left")
        with ctx.transaction() as own:
            own.execute("set session my.setting = 'left'")

    ours = "select count(*) from pg_stat_activity where application_name like 'pgworker drain%'"
    before = {thread.ident for thread in threading.enumerate()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            leaves.enqueue()
            leaves_sync.enqueue()
            assert [job.outcome for job in drain(app)] == ["succeeded"] * 2
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert woken == [True] * 3
    assert variable.get() == ""
    app.close()
    eventually(lambda: connection.execute(ours).fetchall() == [(0,)], "no connection left")
    eventually(lambda: not {t.ident for t in threading.enumerate()} - before, lambda: f"only {before}")
    held = "select (select count(*) from pgworker.job_leases) + (select count(*) from pgworker.job_queue)"
    assert connection.execute(held).fetchall() == [(0,)]


def test_in_an_event_loop_drain_says_what_to_use_instead(app: App) -> None:
    @app.task(name="tick")
    async def tick() -> str:
        return "tock"

    async def test() -> list[DrainedJob]:
        await tick.enqueue_async()
        with pytest.raises(RuntimeError, match=r"await drain_async\(app\)"):
            drain(app)
        return await drain_async(app)

    assert [job.result for job in asyncio.run(test())] == ["tock"]


# -- assert_enqueued


def test_assert_enqueued_finds_jobs_by_task_arguments_and_options(app: App) -> None:
    @app.task(name="mail", queue="mails")
    def mail(to: str, sent: datetime, copies: int = 1) -> None:
        pass

    when, noon = later(days=1), datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
    mail.enqueue("ada", noon)
    mail.options(run_at=when, priority=9, org_id="acme").enqueue("bob", noon, copies=2)
    assert len(assert_enqueued(mail)) == 2
    assert [job.payload["to"] for job in assert_enqueued(mail, {"sent": noon}, count=2)] == ["ada", "bob"]
    assert_enqueued(mail, {"to": "ada", "copies": 1}, count=1)
    assert_enqueued("mail", {"to": "bob"}, queue="mails", priority=9, run_at=when, org_id="acme", count=1)
    assert_enqueued(mail, {"to": "eve"}, count=0)
    for wrong in ({"run_at": noon}, {"priority": 1}, {"queue": "default"}, {"org_id": "bolt"}, {"count": 3}):
        with pytest.raises(AssertionError):
            assert_enqueued(mail, **wrong)
    with pytest.raises(AssertionError) as told:
        assert_enqueued(mail, {"to": "eve"}, priority=9)
    assert "should wait a job of mail with {'to': 'eve'}, priority=9; found 0. What waits:\n  mail {" in str(told.value)
    drain(app)
    assert_enqueued(mail, count=1)


def test_assert_enqueued_sees_what_a_transaction_has_not_committed(app: App, pgworker_database: str) -> None:
    @app.task(name="mail")
    def mail() -> None:
        pass

    with psycopg.connect(pgworker_database, row_factory=psycopg.rows.dict_row) as own:
        mail.using(own).enqueue()
        assert_enqueued(mail, count=1, using=own)
        assert_enqueued(mail, count=1, using=own.cursor())
        assert_enqueued(mail, count=0)
        own.rollback()
    assert_enqueued(mail, count=0)


# -- the App of a module, and a database for each test

shared = App()


@shared.task(name="shared")
def shared_task(number: int) -> int:
    return number


@pytest.mark.parametrize("number", range(3))
def test_an_app_made_at_import_goes_to_the_database_of_the_test(pgworker_database: str, number: int) -> None:
    assert os.environ["PGWORKER_DSN"] == shared.dsn == pgworker_database
    shared_task.enqueue(number)
    assert [job.result for job in drain(shared)] == [number], "nothing of the other tests is here"


def test_a_thread_that_is_slow_to_see_a_new_dsn_closes_nothing_that_another_has_opened(
    pgworker_database: str, dsn: str
) -> None:
    now, looks, may_go_on = [dsn], threading.Event(), threading.Event()

    def named() -> str:
        if threading.current_thread() is slow and not looks.is_set():
            looks.set()
            may_go_on.wait(30)
        return now[0]

    def backend() -> int:
        with connections.connection() as connection:
            return connection.info.backend_pid

    backends: list[int] = []
    slow = threading.Thread(target=lambda: backends.append(backend()))
    connections = Connections(named)
    old = backend()
    now[0] = pgworker_database
    slow.start()
    assert looks.wait(30)
    new = backend()
    may_go_on.set()
    slow.join()
    connections.close()
    assert old != new
    assert backends == [new]


def test_the_logger_of_a_drain_says_no_more_than_what_failed(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    @app.task(name="quiet")
    async def quiet() -> None:
        pass

    quiet.enqueue()
    drain(app)
    assert caplog.messages == []
