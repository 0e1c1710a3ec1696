"""From a call to a payload and back: what is stored of arguments, what a handler gets, who is told what otherwise."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworker import App, Context, InvalidJob, InvalidPayload, Job, JobRequest, RegistrationError, Task
from pgworker.model.payload import encode_result

app = App()
SHARED: list[int] = []


class Colour(Enum):
    RED = "red"


@dataclass
class Address:
    street: str
    lines: list[Address] | None = None


class Line(TypedDict):
    sku: str
    count: int


@app.task
def plain(a: int, b: str = "b", *, c: bool = False) -> tuple[object, ...]:
    return a, b, c


@app.task
def untyped(a, b=SHARED):  # type: ignore[no-untyped-def]
    return a, b


@app.task
def rich(
    ctx: Context,
    at: datetime,
    key: UUID,
    price: Decimal,
    colour: Colour,
    address: Address,
    lines: list[Line],
    extra: Mapping[str, object],
    pair: tuple[int, str],
    kind: Literal["new", "old"],
    delay: timedelta | None = None,
) -> dict[str, Any]:
    return {name: value for name, value in locals().items() if name != "ctx"}


RICH: dict[str, Any] = {
    "at": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc),
    "key": uuid.uuid4(),
    "price": Decimal("1.10"),
    "colour": Colour.RED,
    "address": Address("Hill 1", [Address("Back")]),
    "lines": [{"sku": "a", "count": 2}],
    "extra": {"any": [1, None, "x"]},
    "pair": (1, "x"),
    "kind": "old",
}


@app.task(name="named")
def named(name: str) -> str:
    return name


def no_job() -> Job:
    raise AssertionError("nobody asked for the job")


def run(task: Task[..., Any], payload: str) -> Any:
    return task.invoke(payload, None, no_job)


def test_arguments_are_stored_by_name_and_defaults_are_not() -> None:
    assert [json.loads(request.payload) for request in (plain.job(1), plain.job(1, "b"), plain.job(c=True, a=1))] == [
        {"a": 1},
        {"a": 1, "b": "b"},
        {"a": 1, "c": True},
    ]


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: plain.job(), "missing a required argument: 'a'"),  # type: ignore[call-arg]
        (lambda: plain.job(1, "b", True), "too many positional arguments"),  # type: ignore[call-arg]
        (lambda: plain.job(1, d=2), "unexpected keyword argument 'd'"),  # type: ignore[call-arg]
        (lambda: named.job(nme="x"), r"named\(\): got an unexpected keyword argument 'nme'; did you mean 'name'\?"),  # type: ignore[call-arg]
        (lambda: plain.options(prio=2), "unexpected keyword argument 'prio'"),  # type: ignore[call-arg]
        (lambda: plain.using("postgresql://"), "psycopg 3, .* or django.db.connection, not str"),  # type: ignore[arg-type]
        (lambda: app.enqueue_many([plain]), r"made by task.job\(...\), not Task"),  # type: ignore[list-item]
    ],
)
def test_a_call_that_does_not_fit_is_a_type_error_before_anything_is_sent(
    call: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint):
        call()


def three(a, b=1, *, c=2):  # type: ignore[no-untyped-def]
    return a, b, c


@given(st.lists(st.integers(), max_size=4), st.dictionaries(st.sampled_from("abcd"), st.integers()))
def test_arguments_are_named_as_python_names_them_and_what_is_unexpected_is_named_first(
    args: list[int], kwargs: dict[str, int]
) -> None:
    task = App("").task(name="three")(three)
    try:
        expected = inspect.signature(three).bind(*args, **kwargs).arguments
    except TypeError as error:
        said = "got an unexpected keyword argument 'd'" if "d" in kwargs else str(error)
        with pytest.raises(TypeError, match=re.escape(said)):
            task.job(*args, **kwargs)
    else:
        assert json.loads(task.job(*args, **kwargs).payload) == expected


def test_an_argument_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(InvalidPayload, match="'b'"):
        plain.job(1, "nul \0")


def test_a_handler_gets_what_its_annotations_say_and_its_own_defaults() -> None:
    stored = rich.job(**RICH).payload
    assert rich.decode(stored) == {**RICH, "delay": None}
    assert run(rich, stored) == {**RICH, "delay": None}


def test_a_default_is_the_very_object_of_the_definition() -> None:
    assert run(untyped, '{"a": {"any": [1, 2.5]}}') == ({"any": [1, 2.5]}, SHARED)
    assert untyped.decode('{"a": 1}')["b"] is SHARED


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ("{}", "missing required field `a`"),
        ('{"a": "1"}', r"Expected `int`, got `str` - at `\$.a`"),
        ('{"a": 1, "d": 2}', "unknown field `d`"),
        ("[1]", "Expected `object`, got `array`"),
    ],
)
def test_stored_arguments_that_no_longer_fit_are_an_ordinary_readable_error(payload: str, complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=complaint):
        run(plain, payload)


def test_no_parameters_take_the_empty_object_only() -> None:
    ran: list[bool] = []
    task = App().task(name="none")(lambda: ran.append(True))
    assert task.job().payload == "{}"
    run(task, "{}")
    assert ran == [True]
    with pytest.raises(msgspec.ValidationError, match="unknown field `a`"):
        run(task, '{"a": 1}')


def test_types_that_json_has_anyway_need_no_conversion() -> None:
    def loose(b: Iterable[int], c: list[object], a: object) -> tuple[object, ...]:
        return a, b, c

    task = App().task(name="loose")(loose)
    assert run(task, task.job([1], [{}], "x").payload) == ("x", [1], [{}])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # jsonb has neither U+0000 nor surrogates
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda values: st.lists(values) | st.dictionaries(st.text(st.characters(codec="ascii", min_codepoint=1)), values),
    max_leaves=20,
)


@given(json_values, json_values)
def test_whatever_json_can_express_arrives_as_it_was_given(a: Any, b: Any) -> None:
    assert run(untyped, untyped.job(a, b).payload) == (a, b)


class Purge:
    name = "purge"

    def handle(self, job: Job, ctx: Context) -> tuple[Job, Context]:
        return job, ctx


def test_an_object_is_handed_the_job_and_the_context() -> None:
    ctx = SimpleNamespace(job=object())
    result = app.register(Purge()).invoke("{}", ctx, no_job)  # type: ignore[arg-type]
    assert result == (ctx.job, ctx)


async def answer() -> int:
    return 42


def test_a_coroutine_that_nobody_awaits_is_a_failure() -> None:
    task = App().task(name="hidden")(lambda: answer())
    with pytest.raises(TypeError, match="hidden returned a coroutine"):
        run(task, "{}")


def test_options_are_set_on_a_copy_and_add_up() -> None:
    at = datetime.now(timezone.utc) + timedelta(hours=1)
    key = UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")
    urgent = plain.options(priority=9, queue="fast")
    later = urgent.options(
        run_at=at, timeout=timedelta(seconds=90), max_attempts=1, org_id="acme", headers={"trace": "1"}, id=key
    )
    name = f"{__name__}.plain"
    assert plain.job(1) == JobRequest(name, '{"a":1}')
    assert urgent.job(1) == JobRequest(name, '{"a":1}', queue="fast", priority=9)
    assert later.job(1) == JobRequest(name, '{"a":1}', "fast", 9, at, 1, 90.0, "acme", '{"trace":"1"}', key)
    assert later.options(timeout=None, run_at=None).job(1).timeout is None


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90)])
def test_a_delay_counts_from_the_moment_that_each_job_is_made(delay: float | timedelta) -> None:
    later = plain.options(delay=delay).options(priority=9)
    moments = [datetime.now(timezone.utc)]
    for _ in range(2):
        run_at = later.job(1).run_at
        assert run_at is not None
        moments += [run_at - timedelta(seconds=90), datetime.now(timezone.utc)]
    assert moments == sorted(moments)


def test_of_a_delay_and_a_time_the_one_that_was_set_last_counts() -> None:
    at = datetime.now(timezone.utc) + timedelta(hours=1)
    assert plain.options(delay=5).options(run_at=at).job(1).run_at == at
    assert plain.options(delay=5).options(run_at=None).job(1).run_at is None
    assert plain.options(run_at=at).options(delay=None).job(1).run_at is None
    delayed = plain.options(run_at=at).options(delay=5).job(1).run_at
    assert delayed is not None
    assert delayed < at
    with pytest.raises(InvalidJob, match="run_at and delay exclude each other"):
        plain.options(run_at=at, delay=5)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"priority": -1}, "from 0 to 9, where 9 runs first, not -1"),
        ({"priority": 1.0}, "a whole number"),
        ({"queue": "a/b"}, "ASCII letters"),
        ({"max_attempts": 40_000}, "from 1 to 32767, not 40000"),
        ({"timeout": float("nan")}, "between 0 seconds and 100 years"),
        ({"timeout": 0.0001}, "at least a millisecond"),
        ({"run_at": datetime(2030, 1, 1)}, "not a datetime without a time zone"),  # noqa: DTZ001
        ({"run_at": 60}, "an aware datetime .* for a time from now on there is delay"),
        ({"delay": -1}, "delay must be between 0 seconds and 100 years, not -1"),
        ({"delay": "1h"}, "delay must be a number of seconds or a timedelta, not str"),
        ({"run_at": datetime.max.replace(tzinfo=timezone.utc)}, "before the year 9999"),
        ({"run_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-2)))}, "before the year 9999"),
        ({"org_id": ""}, "1 to 256 characters"),
        ({"org_id": "x" * 257}, "1 to 256 characters, not one of"),
        ({"org_id": 7}, "a string"),
        ({"org_id": "a\0b"}, r"U\+0000"),
        ({"org_id": "\ud800"}, "surrogates"),
        ({"headers": [1]}, "a mapping"),
        ({"headers": {"trace": float("inf")}}, "headers: .*'trace'"),
        ({"headers": {"trace": "x" * 5000}}, "at most 4096 bytes"),
        ({"id": uuid.uuid4()}, "of version 7"),
        ({"id": "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"}, "a uuid.UUID"),
    ],
)
def test_an_option_of_a_job_that_cannot_be_is_refused_with_what_is_allowed(
    options: dict[str, Any], allowed: str
) -> None:
    with pytest.raises(InvalidJob, match=allowed):
        plain.options(**options)


class Point(NamedTuple):
    x: int
    y: int = 0


class Parcel(msgspec.Struct):
    address: Address
    weight: Decimal = Decimal(1)


class Customer(pydantic.BaseModel):
    name: str = pydantic.Field(alias="Name", min_length=1)
    born: date
    favourites: list[Point] = []


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    at: datetime
    colour: Colour


class Tags(pydantic.RootModel[dict[str, int]]): ...


@dataclass
class Visit:
    customer: Customer
    before: list[Customer] | None = None


@app.task
def typed(point: Point, parcel: Parcel, day: date, days: frozenset[int], flag: Colour | None = None) -> list[Any]:
    return list(locals().values())


@app.task
def modelled(
    customer: Customer, strict: Strict, tags: Tags, visit: Visit, others: dict[str, Customer], none: Customer | None
) -> list[Any]:
    return list(locals().values())


ADA = Customer(Name="Ada", born=date(1815, 12, 10), favourites=[Point(1, 2)])
TYPED = [Point(1), Parcel(Address("Hill 1"), Decimal("2.5")), date(2026, 1, 2), frozenset({1, 2}), Colour.RED]
MODELLED: list[Any] = [
    ADA,
    Strict(at=datetime(2026, 1, 2, tzinfo=timezone.utc), colour=Colour.RED),
    Tags({"a": 1}),
    Visit(ADA, [ADA]),
    {"x": ADA},
    None,
]


@pytest.mark.parametrize(("task", "arguments"), [(typed, TYPED), (modelled, MODELLED)])
def test_structs_tuples_and_models_arrive_as_they_were_given_however_deep(
    task: Task[..., Any], arguments: list[Any]
) -> None:
    assert run(task, task.job(*arguments).payload) == arguments


def test_a_model_among_untyped_arguments_and_in_a_result_is_stored_as_its_json() -> None:
    assert json.loads(untyped.job(ADA).payload) == {
        "a": {"Name": "Ada", "born": "1815-12-10", "favourites": [[1, 2]]},
    }
    result = encode_result({"customer": ADA})
    assert result.problem is None
    assert json.loads(result.json or b"") == {
        "customer": {"Name": "Ada", "born": "1815-12-10", "favourites": [[1, 2]]},
    }


def test_a_stored_model_that_no_longer_fits_is_an_ordinary_readable_error() -> None:
    payload = json.loads(modelled.job(*MODELLED).payload)
    payload["visit"]["before"][0]["Name"] = ""
    with pytest.raises(msgspec.ValidationError, match=r"(?s)at least 1 character.*\$\.visit\.before"):
        run(modelled, json.dumps(payload))


@dataclass
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ArithmeticError(f"{self.number} is odd")


@app.task
def even(number: int, even: Even | None = None, customer: Customer | None = None) -> None: ...


def odd() -> Even:
    made = Even(2)
    made.number = 3
    return made


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"number": "1"},
            r"argument 'number' would not decode as int when the job runs \(Expected `int`, got `str`.*not",
        ),
        ({"number": 1.5}, "argument 'number' would not decode as int"),
        ({"number": None}, "argument 'number' .* pass what its annotation says, not NoneType"),
        ({"number": 1, "even": odd()}, r"argument 'even' would not decode as .*Even.*\(3 is odd\)"),
        ({"number": 1, "customer": {"Name": "Ada"}}, r"argument 'customer' .*born Field required.*not dict"),
        ({"number": 1, "customer": ADA.model_copy(update={"name": ""})}, r"argument 'customer' .*at least 1 character"),
    ],
)
def test_an_argument_that_would_not_decode_is_refused_at_once_by_name(arguments: Any, sentence: str) -> None:
    with pytest.raises(InvalidPayload, match=sentence) as caught:
        even.job(**arguments)
    assert "\n" not in str(caught.value)


def test_what_decodes_need_not_be_of_the_very_type() -> None:
    assert rich.decode(rich.options().job(**{**RICH, "key": str(RICH["key"]), "pair": [1, "x"]}).payload) == {
        **RICH,
        "delay": None,
    }


def test_a_model_beside_another_type_is_refused_when_it_is_registered() -> None:
    def either(who: Customer | int) -> None: ...

    with pytest.raises(RegistrationError, match=r"parameter 'who' .* may not contain any additional types"):
        App().task(name="either")(either)


def test_pydantic_is_not_imported_unless_the_app_does() -> None:
    program = """
import dataclasses, sys
from pgworker import App

@dataclasses.dataclass
class Address: street: str

app = App("")
@app.task(name="move")
def move(to: Address) -> Address: return to

move.invoke(move.job(Address("Hill 1")).payload, None, None)
sys.exit("pydantic" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
