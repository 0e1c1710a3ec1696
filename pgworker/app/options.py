"""The options of tasks and jobs: what is allowed, told in a sentence to whoever wrote something else.

Each check takes a value and the error to raise, since a task is refused with another one than a job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final
from uuid import UUID

from pgworker.app.callables import is_async
from pgworker.errors import InvalidJob, InvalidPayload, PgworkerError, RegistrationError
from pgworker.model import exact, names
from pgworker.model.durations import seconds
from pgworker.model.job import Job
from pgworker.model.payload import encode_payload
from pgworker.model.retry import Backoff

MAX_ATTEMPTS: Final = 32_767
MAX_HEADERS_BYTES: Final = 4096
"""As JSON. The database allows 512 KiB as jsonb, which takes up to twelve times the room of the text."""

Refusal = type[PgworkerError]
ShouldRetry = Callable[[Job, BaseException], bool]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How the jobs of a task are run. `timeout` is in seconds, None means none."""

    queue: str
    priority: int
    max_attempts: int
    timeout: float | None
    backoff: Backoff
    discard_on: tuple[type[BaseException], ...]
    should_retry: ShouldRetry | None


def task_options(
    *,
    queue: str,
    priority: int,
    max_attempts: int,
    timeout: float | timedelta | None,
    backoff: Backoff,
    discard_on: tuple[type[BaseException], ...],
    should_retry: ShouldRetry | None,
) -> TaskOptions:
    """The options, checked. RegistrationError for one that can't be."""
    return TaskOptions(
        queue=_queue(queue, RegistrationError),
        priority=_priority(priority, RegistrationError),
        max_attempts=_max_attempts(max_attempts, RegistrationError),
        timeout=_timeout(timeout, RegistrationError),
        backoff=_backoff(backoff),
        discard_on=_discard_on(discard_on),
        should_retry=_should_retry(should_retry),
    )


def job_options(given: Mapping[str, object]) -> dict[str, Any]:
    """The fields of a JobRequest for these options of a job. InvalidJob for one that can't be."""
    return {name: _OF_JOBS[name](value, InvalidJob) for name, value in given.items()}


def job_delay(value: object) -> timedelta | None:
    """A `delay`, None for none. InvalidJob for what is no duration."""
    return None if value is None else timedelta(seconds=seconds(value, "delay", error=InvalidJob))


def check_org(value: object) -> str:
    """`value` if an org may have this id; InvalidJob otherwise."""
    org_id = _org_id(value, InvalidJob)
    if org_id is None:
        raise InvalidJob("an org's id must be a string; a job for no org is enqueued with .options(org_id=None)")
    return org_id


def _queue(value: object, error: Refusal) -> str:
    try:
        return names.check_queue(value)
    except InvalidJob as problem:
        raise error(str(problem)) from None


def _priority(value: object, error: Refusal) -> int:
    number = exact.number(value)
    if not isinstance(number, int) or not 0 <= number <= 9:
        raise error(f"priority must be a whole number from 0 to 9, where 9 runs first, not {_shown(value)}")
    return number


def _max_attempts(value: object, error: Refusal) -> int:
    number = exact.number(value)
    if not isinstance(number, int) or not 1 <= number <= MAX_ATTEMPTS:
        raise error(f"max_attempts must be a whole number from 1 to {MAX_ATTEMPTS}, not {_shown(value)}")
    return number


def _timeout(value: object, error: Refusal) -> float | None:
    if value is None:
        return None
    limit = seconds(value, "timeout", error=error)
    if limit < 0.001:
        raise error("timeout must be at least a millisecond; timeout=None means that the job may run for ever")
    return limit


def _run_at(value: object, error: Refusal) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or _offset(value, error) is None:
        what = "a datetime without a time zone" if isinstance(value, datetime) else exact.type_name(value)
        raise error(
            f"run_at must be an aware datetime such as datetime.now(timezone.utc), not {what}; "
            "for a time from now on there is delay"
        )
    try:
        moment = value.astimezone(timezone.utc)
    except OverflowError:
        moment = value.replace(tzinfo=timezone.utc)
    if moment.year >= 9999:  # some time zone would print it with a year that Python can't read back
        raise error("run_at must be before the year 9999")
    return moment  # in UTC: a time zone is code of anybody, and the server doesn't take them all


def _offset(moment: datetime, error: Refusal) -> timedelta | None:
    try:
        return moment.utcoffset()
    except Exception as problem:  # noqa: BLE001  time zones are code of anybody
        raise error(f"run_at has a time zone that can't tell its offset: {exact.type_name(problem)}") from None


def _org_id(value: object, error: Refusal) -> str | None:
    if value is None:
        return None
    try:
        return names.check_org(value)
    except InvalidJob as problem:
        raise error(str(problem)) from None


def _headers(value: object, error: Refusal) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise error(f"headers must be a mapping of names to values, not {exact.type_name(value)}")
    try:
        text = encode_payload(value)
    except InvalidPayload as problem:
        raise error(f"headers: {problem}") from None
    if len(text) > MAX_HEADERS_BYTES:
        raise error(f"headers must have at most {MAX_HEADERS_BYTES} bytes as JSON, not {len(text)}")
    return text.decode()


def _id(value: object, error: Refusal) -> UUID | None:
    if value is None:
        return None
    if not isinstance(value, UUID) or value.version != 7:
        raise error(f"id must be a uuid.UUID of version 7, not {_shown(value)}; leave it out to have one made")
    return value


def _backoff(value: object) -> Backoff:
    if not isinstance(value, Backoff):
        raise RegistrationError(f"backoff must be a Backoff such as Backoff(base=1, cap=30), not {_shown(value)}")
    return value


def _discard_on(value: object) -> tuple[type[BaseException], ...]:
    if not isinstance(value, tuple) or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    ):
        raise RegistrationError(
            f"discard_on must be a tuple of exception classes such as (LookupError,), not {_shown(value)}"
        )
    return value


def _should_retry(value: Any) -> ShouldRetry | None:
    if value is not None and (not callable(value) or is_async(value)):
        raise RegistrationError(f"should_retry must be a plain function of job and error, not {_shown(value)}")
    judge: ShouldRetry | None = value
    return judge


def _shown(value: object) -> str:
    """The value where that is short and safe to print, else its type."""
    if type(value) in _SHORT and len(text := ascii(value)) <= 40:
        return text
    return exact.type_name(value)


_SHORT: Final = frozenset({str, int, float, bool, UUID, type(None)})
_OF_JOBS: Final[Mapping[str, Callable[[object, Refusal], Any]]] = {
    "queue": _queue,
    "priority": _priority,
    "max_attempts": _max_attempts,
    "timeout": _timeout,
    "run_at": _run_at,
    "org_id": _org_id,
    "headers": _headers,
    "id": _id,
}
