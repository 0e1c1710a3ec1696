"""Dead-letter hooks as they are registered: what one is called, what it takes, what is refused."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import msgspec
import pytest

from pgworker import App, Context, DeadLetter, JobRequest, RegistrationError, Task
from pgworker.lifecycle.dead_letter_hooks import DeadLetterHook
from pgworker.model.state import Outcome
from tests.unit.executions import Execution

AT = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
LETTER = DeadLetter(
    id=UUID(int=7),
    task="charge",
    queue="billing",
    payload={"order_id": 1},
    org_id="acme",
    headers={"trace": "1"},
    execution=3,
    failures=2,
    max_attempts=2,
    outcome=Outcome.FAILED,
    error={"type": "ValueError", "message": "no", "traceback": "…"},
    cause=None,
    created_at=AT,
    died_at=AT,
)
PAYLOAD = msgspec.json.encode({"dead": LETTER}).decode()


@pytest.fixture
def app() -> App:
    return App("")


@pytest.fixture
def charge(app: App) -> Task[[int], None]:
    @app.task(name="charge", queue="billing", priority=7)
    def charge(order_id: int) -> None: ...

    return charge


def test_a_hook_is_a_task_of_its_own_on_the_same_queue(app: App, charge: Task[..., Any]) -> None:
    @charge.on_dead_letter
    def gave_up(dead: DeadLetter) -> tuple[object, ...]:
        return dead.id, dead.payload, dead.reason

    hook = app.tasks["charge:dead_letter"]
    assert hook is gave_up
    assert (hook.queue, hook.priority, hook.max_attempts, hook.timeout) == ("billing", 7, 25, 1800.0)
    assert app.dead_letter_hooks == (DeadLetterHook("charge", "charge:dead_letter", "billing", 7, 25, 1800.0),)
    assert Execution(app).run(hook, PAYLOAD) == (UUID(int=7), {"order_id": 1}, "ValueError: no")
    assert gave_up(LETTER) == (UUID(int=7), {"order_id": 1}, "ValueError: no")
    assert hook.job(LETTER) == JobRequest("charge:dead_letter", PAYLOAD, "billing", 7)


def test_it_may_take_a_context_first_and_be_async_and_call_its_argument_what_it_likes(
    app: App, charge: Task[..., Any]
) -> None:
    @charge.on_dead_letter
    async def gave_up(ctx: Context, letter: DeadLetter) -> tuple[str, DeadLetter]:
        return ctx.idempotency_key, letter

    assert asyncio.run(Execution(app).run_async(gave_up, PAYLOAD)) == (str(UUID(int=7)), LETTER)


def test_what_a_later_release_adds_to_a_dead_letter_is_no_error(app: App, charge: Task[..., Any]) -> None:
    hook = charge.on_dead_letter(lambda letter: letter)
    later = msgspec.json.decode(PAYLOAD)
    later["dead"]["mood"] = "sad"
    assert Execution(app).run(hook, msgspec.json.encode(later).decode()) == LETTER


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        ({"type": "pgworker.crashed", "message": "killed by signal 9"}, "killed by signal 9", "killed by signal 9"),
        ({"type": "ValueError", "message": "no such\norder"}, None, "ValueError: no such order"),
        ({"type": "pgworker.errors.Discard", "message": "no such order"}, None, "no such order"),
        ({"type": "KeyError"}, None, "KeyError"),
        ({"type": 7, "message": ["x"]}, None, "crashed"),
        ({"note": "x"}, "killed by signal 9", "killed by signal 9"),
        (None, None, "crashed"),
    ],
)
def test_the_reason_is_the_cause_or_the_error_or_the_outcome(error: Any, cause: Any, reason: str) -> None:
    given = {**msgspec.to_builtins(LETTER), "error": error, "cause": cause, "outcome": "crashed"}
    assert msgspec.convert(given, DeadLetter).reason == reason


def says_nothing(dead: DeadLetter) -> None: ...
def no_argument() -> None: ...
def two_arguments(dead: DeadLetter, more: int) -> None: ...
def of_a_dict(dead: dict[str, Any]) -> None: ...
def context_last(dead: DeadLetter, ctx: Context) -> None: ...


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (no_argument, r"takes the DeadLetter and nothing else; write `def f\(dead: DeadLetter\)`"),
        (two_arguments, "takes the DeadLetter and nothing else"),
        (of_a_dict, "takes the DeadLetter and nothing else"),
        (context_last, "'ctx' is a Context that must be the first parameter"),
        (None, "on_dead_letter takes a function, not None"),
        (DeadLetter, "on_dead_letter takes a function"),
    ],
)
def test_what_is_no_hook_is_refused(app: App, charge: Task[..., Any], function: Any, sentence: str) -> None:
    with pytest.raises(RegistrationError, match=sentence):
        charge.on_dead_letter(function)
    assert (list(app.tasks), app.dead_letter_hooks) == (["charge"], ())


def test_a_task_has_one_hook_and_a_hook_has_none(app: App, charge: Task[..., Any]) -> None:
    hook = charge.on_dead_letter(says_nothing)
    with pytest.raises(RegistrationError, match="charge has a dead-letter hook already"):
        charge.on_dead_letter(says_nothing)
    other = app.task(name="other")(lambda: None)
    with pytest.raises(RegistrationError, match="charge:dead_letter is a task already; write a function of its own"):
        other.on_dead_letter(hook)
    with pytest.raises(RegistrationError, match="charge:dead_letter is a dead-letter hook itself"):
        hook.on_dead_letter(says_nothing)


def test_a_task_whose_name_leaves_no_room_for_its_hooks_is_told(app: App) -> None:
    task = app.task(name="t" * 250)(lambda: None)
    with pytest.raises(RegistrationError, match="can't name a task: use 1 to 256"):
        task.on_dead_letter(says_nothing)


def test_the_hook_of_an_app_that_requires_orgs_runs_for_a_job_that_died_of_having_none() -> None:
    app = App("", require_org=True)
    task = app.task(name="t")(lambda: None)
    hook = task.on_dead_letter(lambda dead: dead.id)
    assert Execution(app).run(hook, PAYLOAD) == UUID(int=7)
