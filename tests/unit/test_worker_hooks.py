"""What a worker process opens when it starts and closes when it ends."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pgworker import App, ConfigurationError, RegistrationError


@pytest.fixture
def app() -> App:
    return App("")


def test_start_hooks_run_in_order_on_one_state_and_stop_hooks_in_reverse(app: App) -> None:
    ran: list[str] = []

    @app.on_worker_start
    def settings(state: SimpleNamespace) -> None:
        state.url = "db"

    @app.on_worker_start
    def client(state: SimpleNamespace) -> None:
        state.client = f"client of {state.url}"

    @app.on_worker_stop
    def close_first(state: SimpleNamespace) -> None:
        ran.append(f"first {state.client}")

    @app.on_worker_stop
    def close_second(state: SimpleNamespace) -> None:
        ran.append("second")

    assert callable(settings), "a hook is still a function"
    state = app.start_worker()
    assert state == SimpleNamespace(url="db", client="client of db")
    assert app.start_worker() is not state
    assert ran == []
    app.stop_worker(state)
    assert ran == ["second", "first client of db"]


def test_an_app_without_hooks_starts_with_an_empty_state(app: App) -> None:
    state = app.start_worker()
    assert state == SimpleNamespace()
    app.stop_worker(state)


@pytest.mark.parametrize("error", [KeyError("URL"), ValueError("two\nlines"), SystemExit("no config")])
def test_a_start_hook_that_raises_ends_the_start_with_one_line_that_says_where(app: App, error: BaseException) -> None:
    after: list[object] = []

    @app.on_worker_start
    def connect(state: Any) -> None:
        raise error

    app.on_worker_start(after.append)
    with pytest.raises(ConfigurationError) as caught:
        app.start_worker()
    said = str(caught.value)
    assert "the start hook " in said
    assert f"connect failed: {type(error).__name__}: " in said
    assert f"({__file__}:" in said
    assert "\n" not in said
    assert caught.value.exit_code == 78
    assert after == []


def test_a_stop_hook_that_raises_is_logged_and_the_others_run(app: App, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[object] = []
    app.on_worker_stop(ran.append)

    @app.on_worker_stop
    def broken(state: Any) -> None:
        sys.exit(3)

    with caplog.at_level(logging.ERROR):
        app.stop_worker(SimpleNamespace(last=True))
    assert ran == [SimpleNamespace(last=True)]
    [record] = caplog.records
    assert record.getMessage() == "a stop hook failed; the others run all the same"
    assert record.__dict__["fields"]["hook"].endswith("broken")
    assert record.exc_info


async def asynchronous(state: Any) -> None: ...
def of_two(state: Any, more: Any) -> None: ...


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        (asynchronous, r"the hook asynchronous is async, .*write `def f\(state\)`"),
        (lambda: None, "must take one argument, the worker's state"),
        (of_two, "must take one argument"),
        (None, "takes a function, not None"),
        (App, "takes a function"),
    ],
)
def test_what_is_no_hook_is_refused(app: App, hook: Any, sentence: str) -> None:
    for register in (app.on_worker_start, app.on_worker_stop):
        with pytest.raises(RegistrationError, match=sentence):
            register(hook)
    assert app.start_worker() == SimpleNamespace()
