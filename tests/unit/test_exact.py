"""What is refused in a typed sentence though it lies of itself, or raises when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest

from pgworker import App, InvalidFilter, InvalidJob, InvalidPayload, JobNotFound
from pgworker.model import exact
from pgworker.model.payload import encode_payload
from pgworker.model.selection import JobFilter

app = App("host=/nowhere")


@app.task(name="t")
def t(value: Any = None) -> None: ...


class Nameless(type):
    """Of whose classes nobody learns the name."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__module__"):
            raise KeyError(name)
        return super().__getattribute__(name)


class Thing(metaclass=Nameless):
    """Of such a class."""


class Silent(str):
    """A str that raises when it is looked at."""

    __slots__ = ()

    def __len__(self) -> int:
        raise KeyError("no length")

    __str__ = __repr__ = __iter__ = __len__  # type: ignore[assignment]


class Pretender:
    """Says that it is a str."""

    @property
    def __class__(self) -> type:
        return str

    @__class__.setter
    def __class__(self, kind: type) -> None: ...


class Giant(int):
    """Says that it is small."""

    __lt__ = __le__ = __gt__ = __ge__ = lambda _self, _other: True


class Nowhere(tzinfo):
    """A time zone without an offset, as the standard library's own."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        raise NotImplementedError

    dst = tzname = utcoffset  # type: ignore[assignment]


class Unreadable(dict[str, Any]):
    """A mapping that can't be copied."""

    def keys(self) -> Any:
        raise KeyError("no keys")

    def __iter__(self) -> Iterator[str]:
        raise KeyError("no names")


def test_a_subclass_is_what_it_was_made_of() -> None:
    assert (exact.text(Silent("a")), type(exact.text(Silent("a")))) == ("a", str)
    assert (exact.number(Giant(7)), type(exact.number(Giant(7)))) == (7, int)
    assert [exact.text(Pretender()), exact.number("1"), exact.number(True)] == [None, None, None]
    assert exact.type_name(Thing()) == exact.full_type_name(Thing()) == "(a type without a name)"


@pytest.mark.parametrize(
    ("refuse", "kind"),
    [
        (lambda: t.options(queue=Thing()), InvalidJob),  # type: ignore[arg-type]
        (lambda: t.options(queue=Silent("a b")), InvalidJob),
        (lambda: t.options(priority=Giant(10**40)), InvalidJob),
        (lambda: t.options(max_attempts=Giant(10**40)), InvalidJob),
        (lambda: t.options(timeout=Giant(10**40)), InvalidJob),
        (lambda: t.options(timeout=Thing()), InvalidJob),  # type: ignore[arg-type]
        (lambda: t.options(run_at=datetime(2030, 1, 1, tzinfo=Nowhere())), InvalidJob),
        (lambda: t.options(run_at=Thing()), InvalidJob),  # type: ignore[arg-type]
        (lambda: t.options(delay=Giant(10**40)), InvalidJob),
        (lambda: t.options(org_id=Silent("\0")), InvalidJob),
        (lambda: t.options(org_id=Pretender()), InvalidJob),  # type: ignore[arg-type]
        (lambda: t.options(headers=Unreadable(a=1)), InvalidJob),
        (lambda: t.using(Thing()), TypeError),  # type: ignore[arg-type]
        (lambda: app.enqueue_many([Thing()]), TypeError),  # type: ignore[list-item]
        (lambda: JobFilter(queue=Pretender()), InvalidFilter),  # type: ignore[arg-type]
        (lambda: JobFilter(org_id=Pretender()), InvalidFilter),  # type: ignore[arg-type]
        (lambda: JobFilter(older_than=Thing()), InvalidFilter),  # type: ignore[arg-type]
        (lambda: app.job(Pretender()), TypeError),  # type: ignore[arg-type]
        (lambda: app.job(Silent("no id")), JobNotFound),
        (lambda: encode_payload(Unreadable(a=1)), InvalidPayload),
    ],
)
def test_what_lies_or_raises_is_refused_as_anything_else_is(
    refuse: Callable[[], object], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        refuse()
