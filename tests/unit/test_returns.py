"""What is read of a stored result: the annotated type where JSON can be read as it, else plain JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import wraps
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest

from pgworker import App, Context, InvalidResult, Job
from pgworker.model.payload import encode_result

if TYPE_CHECKING:
    from decimal import Decimal

app = App()


@dataclass(frozen=True)
class Line:
    sku: str
    amount: int


class Basket(msgspec.Struct):
    lines: list[Line]
    at: datetime


class Opaque:
    """What only Python can read."""


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: object, **kwargs: object) -> object:
        return function(*args, **kwargs)

    return wrapper


@app.task
def a_line() -> Line: ...  # type: ignore[empty-body]  # what it would return is stored by the tests


@app.task
def a_basket() -> Basket: ...  # type: ignore[empty-body]  # likewise


@app.task
def maybe_an_id() -> UUID | None: ...


@app.task
def pairs() -> dict[str, tuple[int, Line]]: ...  # type: ignore[empty-body]  # likewise


@app.task
def nothing() -> None: ...


@app.task
def anything(): ...  # type: ignore[no-untyped-def]  # on purpose


@app.task
def unknown_at_run_time() -> Decimal: ...  # type: ignore[empty-body]  # likewise


@app.task
def opaque() -> list[Opaque]: ...  # type: ignore[empty-body]  # likewise


@app.task
@logged
def decorated() -> Line: ...  # type: ignore[empty-body]  # likewise


class Handler:
    name = "handler"

    def handle(self, job: Job, ctx: Context) -> Line: ...  # type: ignore[empty-body]  # likewise


handler = app.register(Handler())

AT = datetime(2030, 1, 31, 8, tzinfo=timezone.utc)
LINE = Line("x", 2)


@pytest.mark.parametrize(
    ("task", "value"),
    [
        (a_line, LINE),
        (a_basket, Basket([LINE], AT)),
        (maybe_an_id, UUID(int=7)),
        (maybe_an_id, None),
        (pairs, {"a": (1, LINE)}),
        (nothing, None),
        (anything, {"a": [1, None]}),
        (decorated, LINE),
        (handler, LINE),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_value_of_the_annotated_type_comes_back_as_it_was(task: Any, value: object) -> None:
    stored = encode_result(value).json
    read = task.read_result(None if stored is None else stored.decode())
    assert (read, type(read)) == (value, type(value))


def test_null_is_none_whatever_was_promised() -> None:
    assert a_line.read_result(None) is None
    assert a_line.read_result("null") is None


@pytest.mark.parametrize("task", [anything, unknown_at_run_time, opaque], ids=lambda task: task.name)
def test_where_json_can_not_be_read_as_the_type_it_is_plain_json(task: Any) -> None:
    assert task.read_result('[{"a": 1.5}]') == [{"a": 1.5}]


def test_what_does_not_fit_is_an_error_that_names_the_type_and_the_place() -> None:
    with pytest.raises(InvalidResult, match=r"can't be read as .*Line.*Expected `int`, got `str` - at `\$\.amount`"):
        a_line.read_result('{"sku": "x", "amount": "two"}')
