from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Optional

import pytest

import pgworker
from pgworker import App, Backoff, ConfigurationError, Context, Job, RegistrationError
from pgworker.app.registry import load_app


def charge(ctx: Context, order_id: int) -> int:
    """Take the money."""
    return order_id


def refuse(function: Callable[..., Any], name: str | None = "task") -> str:
    """The one line that says why `function` can't be a task."""
    app = App()
    with pytest.raises(RegistrationError) as caught:
        app.task(name=name)(function)
    assert not app.tasks
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_task_is_named_after_module_and_function_and_is_still_that_function() -> None:
    app = App()
    task = app.task(charge)
    assert task.name == f"{__name__}.charge"
    assert dict(app.tasks) == {task.name: task}
    assert (task.__name__, task.__doc__, task.__wrapped__) == ("charge", "Take the money.", charge)  # type: ignore[attr-defined]
    assert task(None, 7) == 7  # type: ignore[call-overload]


def test_a_task_has_the_documented_defaults_and_durations_as_seconds() -> None:
    app = App()
    task = app.task(charge)
    assert (task.queue, task.priority, task.max_attempts, task.timeout) == ("default", 5, 25, 1800.0)
    assert (task.backoff, task.discard_on, task.should_retry) == (Backoff(), (), None)
    assert app.task(name="short", timeout=timedelta(minutes=1))(charge).timeout == 60.0
    assert app.task(name="endless", timeout=None)(charge).timeout is None


def test_the_tasks_of_an_app_are_read_only() -> None:
    app = App()
    app.task(charge)
    with pytest.raises(TypeError):
        app.tasks["other"] = app.tasks[f"{__name__}.charge"]  # type: ignore[index]


def test_a_name_is_given_once() -> None:
    app = App()
    app.task(name="mail")(charge)
    with pytest.raises(RegistrationError, match="mail is registered already; pass another one with name="):
        app.task(name="mail")(lambda: None)
    assert len(app.tasks) == 1


def test_a_function_that_no_worker_could_find_by_name_needs_a_name() -> None:
    def local() -> None: ...

    for function in (local, lambda: None, functools.partial(charge, order_id=1)):
        assert "name=" in refuse(function, name=None)
    assert App().task(name="local")(local).name == "local"
    assert "'a b' can't name a task" in refuse(charge, name="a b")


@pytest.mark.parametrize(("options", "name"), [(["-m"], "shop.tasks"), ([], "tasks")])
def test_tasks_of_the_running_program_get_the_name_that_a_worker_imports(
    options: list[str], name: str, tmp_path: Path
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/tasks.py").write_text(
        "from pgworker import App\napp = App()\n@app.task\ndef mail(): ...\nprint(mail.name)\n"
    )
    program = [*options, "shop.tasks"] if options else ["shop/tasks.py"]
    done = subprocess.run(
        [sys.executable, *program], cwd=tmp_path, env={"PYTHONPATH": root()}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{name}.mail\n", "")


def root() -> str:
    return str(Path(pgworker.__file__).parents[1])


class OwnContext(Context): ...


async def async_generator(order_id: int) -> AsyncIterator[int]:
    yield order_id


def generator(order_id: int) -> Iterator[int]:
    yield order_id


def with_args(*orders: int) -> None: ...
def with_kwargs(**orders: int) -> None: ...
def positional(order_id: int, /) -> None: ...
def context_second(order_id: int, ctx: Context) -> None: ...
def context_by_name(*, ctx: Context) -> None: ...
def two_contexts(ctx: Context, other: Context) -> None: ...
def context_perhaps(ctx: Context | None) -> None: ...
def context_optional(ctx: Optional[Context] = None) -> None: ...  # noqa: UP045  as older code has it
def context_annotated(ctx: Annotated[Context, "mine"]) -> None: ...
def context_of_ones_own(ctx: OwnContext) -> None: ...
def contexts(ctx: list[Context]) -> None: ...
def context_inside(order_id: int, callback: Callable[[Context], None]) -> None: ...
def bare_ctx(ctx, order_id: int) -> None: ...  # type: ignore[no-untyped-def]
def bare_context(context) -> None: ...  # type: ignore[no-untyped-def]
def bare_ctx_later(order_id: int, ctx) -> None: ...  # type: ignore[no-untyped-def]
def unresolvable(order: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def unsupported(path: Path) -> None: ...
def nested(orders: dict[str, list[App | None]]) -> None: ...
def ambiguous(order: bytes | str) -> None: ...


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (async_generator, "return a result"),
        (functools.partial(generator, order_id=1), "return a result"),
        (generator, "return a result"),
        (with_args, r"\*orders has no name in a payload; take a list"),
        (with_kwargs, r"\*\*orders could be anything; name the parameters"),
        (positional, "'order_id' can't be passed by name; remove the /"),
        (context_second, "'ctx' is a Context that must be the first parameter: move 'ctx' to the front"),
        (context_by_name, "move 'ctx' to the front, before any \\*"),
        (two_contexts, "'other' is a second Context, and an execution has one: remove it"),
        (context_perhaps, "every execution has a Context, whole and alone: write `ctx: Context`, as the first"),
        (context_optional, "write `ctx: Context`, as the first parameter"),
        (context_annotated, "write `ctx: Context`, as the first parameter"),
        (context_of_ones_own, "is a OwnContext, and workers make nothing but a Context: write `ctx: Context`"),
        (contexts, "write `ctx: Context`, as the first parameter"),
        (context_inside, "'callback' .* write `ctx: Context`"),
        (bare_ctx, "'ctx' has no annotation: for the Context write `ctx: Context`, as the first parameter"),
        (bare_context, "'context' has no annotation"),
        (bare_ctx_later, "'ctx' has no annotation: .* for an argument of the job, annotate it so"),
        (unresolvable, "annotation 'Missing' of parameter 'order' can't be resolved .*; import or define it"),
        (unsupported, "parameter 'path' of type Path can't be read from JSON .*; use what JSON has"),
        (nested, "parameter 'orders' of type .*App.* can't be read from JSON"),
        (ambiguous, "parameter 'order' of type bytes | str can't be read from JSON"),
        (print, "has no name in a payload|can't be read"),
        (Path, "takes a function"),
        ("mail", "takes a function"),
    ],
)
def test_what_cannot_be_called_from_a_payload_is_refused_with_what_to_write_instead(
    function: Callable[..., Any], advice: str
) -> None:
    assert re.search(advice, refuse(function))


def test_a_return_annotation_and_a_context_before_the_slash_are_no_hindrance() -> None:
    def hand_over(ctx: Context, /, order_id: int) -> Missing: ...  # type: ignore[name-defined]  # noqa: F821

    task = App().task(name="hand_over")(hand_over)
    assert task.needs_context
    assert task.job(order_id=7).payload == '{"order_id":7}'


def test_an_argument_may_be_called_ctx_if_it_is_annotated_as_something_else() -> None:
    def render(context: dict[str, str], ctx: int = 1) -> None: ...

    task = App().task(name="render")(render)
    assert not task.needs_context
    assert task.job({"a": "b"}, ctx=2).payload == '{"context":{"a":"b"},"ctx":2}'


def test_a_function_is_decorated_once() -> None:
    app = App()
    task = app.task(charge)
    with pytest.raises(RegistrationError, match="is a task already"):
        app.task(name="again")(task)


async def judge_async(_job: Job, _error: BaseException) -> bool:
    return True


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"queue": "a b"}, "ASCII letters"),
        ({"queue": None}, "must be a string"),
        ({"priority": 10}, "from 0 to 9"),
        ({"priority": True}, "from 0 to 9"),
        ({"max_attempts": 0}, "from 1 to 32767"),
        ({"timeout": 0}, "timeout=None means"),
        ({"timeout": "30"}, "a number of seconds or a timedelta"),
        ({"timeout": -1}, "between 0 seconds"),
        ({"backoff": 30}, r"Backoff\(base=1, cap=30\)"),
        ({"discard_on": LookupError}, r"\(LookupError,\)"),
        ({"discard_on": ("LookupError",)}, r"\(LookupError,\)"),
        ({"should_retry": True}, "a plain function of job and error"),
        ({"should_retry": judge_async}, "a plain function of job and error"),
    ],
)
def test_an_option_of_a_task_that_cannot_be_is_refused_with_what_is_allowed(
    options: dict[str, Any], allowed: str
) -> None:
    with pytest.raises(RegistrationError, match=allowed):
        App().task(**options)
    with pytest.raises(RegistrationError, match=allowed):
        App().register(Purge(), **options)


class Purge:
    name = "purge"

    def handle(self, job: Job, ctx: Context) -> dict[str, Any]:
        return {"job": job, "ctx": ctx}


def test_an_object_with_name_and_handle_is_a_task_whose_arguments_are_named_freely() -> None:
    app = App()
    task = app.register(Purge(), queue="night", max_attempts=3)
    assert (task.name, task.queue, task.max_attempts, task.needs_context) == ("purge", "night", 3, True)
    assert app.tasks["purge"] is task
    assert task.job(older_than=7).payload == '{"older_than":7}'
    with pytest.raises(TypeError, match="pass its arguments by name"):
        task.job(7)


class Nameless:
    def handle(self, job: Job, ctx: Context) -> None: ...


class Handless:
    name = "handless"


class Generating:
    name = "generating"

    def handle(self, job: Job, ctx: Context) -> Iterator[object]:
        yield job, ctx


class OneParameter:
    name = "one"

    def handle(self, job: Job) -> None: ...


@pytest.mark.parametrize(
    ("handler", "advice"),
    [
        (Nameless(), "a string `name`"),
        (Handless(), r"a method handle\(job, ctx\)"),
        (Generating(), "return a result"),
        (OneParameter(), r"must be handle\(self, job, ctx\)"),
        (Purge, r"write app.register\(Purge\(\)\)"),
        (charge, "a string `name`"),
    ],
)
def test_an_object_that_is_no_handler_is_refused(handler: Any, advice: str) -> None:
    with pytest.raises(RegistrationError, match=advice):
        App().register(handler)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a module that is fine and some that are not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    good = "import pgworker\nworkers = pgworker.App()\ndef application(): ...\n"
    (tmp_path / "shop_fine.py").write_text(good)
    (tmp_path / "shop_needs.py").write_text("import json\n\nimport shop_nothing\n")
    (tmp_path / "shop_fails.py").write_text("def load():\n    {}['secret']\n\nload()\n")
    (tmp_path / "shop_exits.py").write_text("import sys\nsys.exit('no config')\n")
    (tmp_path / "shop_syntax.py").write_text("x = 1\ndef (:\n")
    (tmp_path / "shop_twice.py").write_text(
        good + "@workers.task\ndef mail(): ...\nworkers.task(name='shop_twice.mail')(application)\n"
    )
    return tmp_path


def test_an_app_is_found_in_the_current_directory(project: Path) -> None:
    assert isinstance(load_app("shop_fine:workers"), App)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("shop_fine", "'shop_fine' names no app: write module:app"),
        ("shop_fine.py:app", "there is no module shop_fine.py here"),
        ("../shop_fine:app", "write module:app"),
        (":app", "write module:app"),
        ("shop_absent:app", "there is no module shop_absent here"),
        ("shop_absent.tasks:app", "there is no module shop_absent here"),
        ("shop_fine.tasks:app", "there is no module shop_fine.tasks here"),
        ("shop_needs:app", r"No module named 'shop_nothing' \(.*shop_needs.py:3\). Is it installed"),
        ("shop_fails:app", r"can't import shop_fails: KeyError: 'secret' \(.*shop_fails.py:2\)"),
        ("shop_exits:app", r"SystemExit: no config \(.*shop_exits.py:2\)"),
        ("shop_syntax:app", r"SyntaxError: .*shop_syntax.py:2\)"),
        ("shop_twice:app", r"RegistrationError: a task named shop_twice.mail .*shop_twice.py:6\)"),
        ("shop_fine:app", "has no app; did you mean shop_fine:workers?"),
        ("shop_fine:application", "is a function, not an App; did you mean shop_fine:workers?"),
        ("shop_fine:pgworker", "is a module, not an App"),
        ("json:load", "is a function, not an App$"),
        ("json:lods", "did you mean loads?"),
        ("pgworker:App", "is the class App, not an App"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_told_in_one_sentence(project: Path, target: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        load_app(target)
    assert "\n" not in str(caught.value)
