"""Orgs at the level of the app: which jobs carry one, which inherit it, what a handler knows of its own."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pgworker import App, ConfigurationError, Context, Discard, InvalidJob, JobRequest, Task
from pgworker.model.job import Job
from tests.unit.executions import Execution

Label = tuple[str | None, str | None]


@pytest.fixture
def app() -> App:
    return App("")


@pytest.fixture
def mail(app: App) -> Task[[], None]:
    @app.task(name="mail")
    def mail() -> None: ...

    return mail


def label(task: Any) -> Label:
    """Org and headers that a job enqueued here would carry."""
    request = task.job()
    return request.org_id, request.headers


def test_jobs_inside_an_org_carry_it_unless_their_options_say_otherwise(app: App, mail: Task[..., Any]) -> None:
    assert label(mail) == (None, None)
    with app.org("acme") as org:
        assert org.id == "acme"
        assert label(mail) == ("acme", None)
        assert label(mail.options(priority=9)) == ("acme", None)
        assert label(mail.options(org_id="other")) == ("other", None)
        assert label(mail.options(org_id=None).options(queue="q")) == (None, None)
        with app.org("inner"):
            assert label(mail) == ("inner", None)
        assert label(mail) == ("acme", None)
    assert label(mail) == (None, None)


def test_an_org_ends_with_its_block_however_that_ends(app: App, mail: Task[..., Any]) -> None:
    with pytest.raises(KeyError), app.org("acme"):
        raise KeyError
    assert label(mail) == (None, None)


@pytest.mark.parametrize("org_id", ["", "x" * 257, 7, "a\0", None])
def test_an_org_is_checked_as_the_option_is(app: App, org_id: Any) -> None:
    with pytest.raises(InvalidJob, match="org"), app.org(org_id):
        pass


def test_an_org_follows_awaits_and_to_thread_and_reaches_no_other_thread(app: App, mail: Task[..., Any]) -> None:
    async def child(org: str, mine: asyncio.Event, other: asyncio.Event) -> Label:
        with app.org(org):
            mine.set()
            await other.wait()
            return await asyncio.to_thread(label, mail)

    async def parent() -> list[Label]:
        one, two = asyncio.Event(), asyncio.Event()
        with app.org("parent"):
            found = await asyncio.gather(child("a", one, two), child("b", two, one))
            return [*found, label(mail)]

    assert asyncio.run(parent()) == [("a", None), ("b", None), ("parent", None)]
    with app.org("acme"), ThreadPoolExecutor(1) as threads:
        assert threads.submit(label, mail).result() == (None, None)


def test_jobs_of_a_handler_inherit_org_and_headers_of_its_own(app: App, mail: Task[..., Any]) -> None:
    seen: list[Label] = []

    @app.task(name="order")
    def order() -> None:
        seen.append(label(mail))
        seen.append(label(mail.options(org_id="other")))
        seen.append(label(mail.options(headers={"b": 2})))
        seen.append(label(mail.options(headers=None)))
        with app.org("inside"):
            seen.append(label(mail))

    execution = Execution(app, org_id="acme", headers={"traceparent": "00-1"})
    execution.run(order)
    trace = '{"traceparent":"00-1"}'
    assert seen == [("acme", trace), ("other", trace), ("acme", '{"b":2}'), ("acme", None), ("inside", trace)]
    assert execution.jobs_made == 1
    assert label(mail) == (None, None)


def test_a_handler_of_a_job_without_an_org_passes_none_on_whoever_runs_it(app: App, mail: Task[..., Any]) -> None:
    seen: list[Label] = []
    task = app.task(name="order")(lambda: seen.append(label(mail)))
    with app.org("somebody"):
        Execution(app).run(task)
    assert seen == [(None, None)]


@pytest.mark.usefixtures("mail")
def test_the_job_is_made_only_for_handlers_that_enqueue(app: App) -> None:
    execution = Execution(app, org_id="acme")
    execution.run(app.tasks["mail"])
    assert execution.jobs_made == 0


def test_jobs_of_async_handlers_on_one_loop_inherit_each_its_own(app: App, mail: Task[..., Any]) -> None:
    gates = [asyncio.Event(), asyncio.Event()]

    @app.task(name="order")
    async def order(turn: int) -> Label:
        gates[turn].set()
        await gates[1 - turn].wait()
        return label(mail)

    async def both() -> list[Any]:
        runs = (Execution(app, org_id=f"o{turn}").run_async(order, f'{{"turn": {turn}}}') for turn in (0, 1))
        return list(await asyncio.gather(*runs))

    assert asyncio.run(both()) == [("o0", None), ("o1", None)]

    async def alone() -> Label:
        await Execution(app, org_id="acme").run_async(app.task(name="idle")(asyncio.sleep), '{"delay": 0}')
        return label(mail)

    assert asyncio.run(alone()) == (None, None)


def test_contextvars_that_a_handler_sets_do_not_reach_the_next(app: App) -> None:
    user = contextvars.ContextVar("user", default="nobody")

    @app.task(name="login")
    def login(name: str) -> str:
        before = user.get()
        user.set(name)
        return before

    assert [Execution(app).run(login, f'{{"name": "{name}"}}') for name in ("ada", "eve")] == ["nobody", "nobody"]


def test_a_context_knows_the_org_of_its_job(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    def config(org_id: str) -> dict[str, str]:
        asked.append(org_id)
        return {"of": org_id}

    app = App("", org_config=config)
    context = Execution(app, org_id="acme").context
    assert context.org is context.org
    assert context.org is not None
    assert (context.org.id, repr(context.org), asked) == ("acme", "<Org acme>", [])
    assert context.org.config is context.org.config
    assert asked == ["acme"]
    assert Execution(app).context.org is None
    with caplog.at_level(logging.INFO):
        context.logger.info("hello")
        Execution(app).context.logger.info("hello")
    assert [record.__dict__["fields"].get("org", "no field") for record in caplog.records] == ["acme", "no field"]
    with app.org("other") as org:
        assert org.config == {"of": "other"}


def test_a_config_that_nobody_provides_is_told_in_a_sentence(app: App) -> None:
    org = Execution(app, org_id="acme").context.org
    assert org is not None
    with pytest.raises(ConfigurationError, match=r"App\(org_config=...\)"):
        assert org.config


async def config_async(org_id: str) -> str:
    return org_id


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"require_org": 1}, "require_org must be True or False, not 1"),
        ({"org_config": {}}, "org_config must be a plain function of an org's id"),
        ({"org_config": config_async}, "org_config must be a plain function of an org's id"),
    ],
)
def test_an_option_of_an_app_that_cannot_be_is_refused(options: dict[str, Any], allowed: str) -> None:
    with pytest.raises(ConfigurationError, match=allowed):
        App("", **options)


def test_an_app_that_requires_orgs_refuses_a_job_without_one_before_anything_is_sent() -> None:
    app = App("", require_org=True)

    @app.task(name="mail")
    def mail() -> None: ...

    advice = r"a job of mail needs an org, .* `with app.org\(...\)`, or with .options\(org_id=...\)"
    for refused in (
        mail.job,
        mail.enqueue,
        mail.options(org_id=None).job,
        lambda: app.enqueue_many([JobRequest("mail", "{}")]),
        lambda: asyncio.run(mail.enqueue_async()),
    ):
        with pytest.raises(InvalidJob, match=advice):
            refused()
    assert mail.options(org_id="acme").job().org_id == "acme"
    with app.org("acme"):
        assert mail.job().org_id == "acme"


@pytest.mark.parametrize("has_middleware", [False, True])
def test_a_job_without_an_org_that_reaches_such_an_app_is_given_up_before_anything_runs(has_middleware: bool) -> None:
    app = App("", require_org=True)
    ran: list[str] = []

    def handler(ctx: Context) -> None:
        ran.append(f"handler {ctx.org}")

    async def async_handler() -> None:
        ran.append("async handler")

    def layer(job: Job, ctx: Context, call_next: Any) -> Any:
        ran.append("middleware")
        return call_next()

    async def async_layer(job: Job, ctx: Context, call_next: Any) -> Any:
        return await call_next()

    task, async_task = app.task(name="t")(handler), app.task(name="a")(async_handler)
    if has_middleware:
        app.middleware(twin=async_layer)(layer)
    sentence = "the app requires an org and this job has none"
    with pytest.raises(Discard, match=sentence):
        Execution(app).run(task)
    with pytest.raises(Discard, match=sentence):
        asyncio.run(Execution(app).run_async(async_task))
    assert ran == []
    Execution(app, org_id="acme").run(task)
    asyncio.run(Execution(app, org_id="acme").run_async(async_task))
    assert ran == ["middleware"] * has_middleware + ["handler <Org acme>", "async handler"]


def test_threads_of_one_app_have_each_their_own_org(app: App, mail: Task[..., Any]) -> None:
    gate = threading.Barrier(2)

    def work(org_id: str) -> Label:
        with app.org(org_id):
            gate.wait(30)
            return label(mail)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(work, ["a", "b"])) == [("a", None), ("b", None)]
