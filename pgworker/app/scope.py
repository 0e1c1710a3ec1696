"""What a job inherits from where it is enqueued: org and headers of the running job, or the org of `app.org(...)`.

One contextvar holds it, so it follows `await` and `asyncio.to_thread` as contextvars do, and no other thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from pgworker.model.job import Job
from pgworker.model.payload import encode_payload
from pgworker.observe.logs import job_fields

Returned = TypeVar("Returned")
MakeJob = Callable[[], Job]


@dataclass(frozen=True, slots=True)
class Scope:
    """`headers` are JSON text, as in a JobRequest; `job` is the one that runs here, if any."""

    org_id: str | None = None
    headers: str | None = None
    job: Job | None = None


_NOWHERE: Final = Scope()

# Inside a handler first the function that makes its job: most handlers enqueue nothing, so nobody asks.
_scope: ContextVar[Scope | MakeJob] = ContextVar("pgworker_scope", default=_NOWHERE)


def scope_here() -> Scope:
    """What a job that is enqueued here inherits."""
    found = _scope.get()
    if not isinstance(found, Scope):
        job = found()
        found = Scope(job.org_id, encode_payload(job.headers).decode() if job.headers else None, job)
        _scope.set(found)
    return found


def job_here() -> dict[str, object] | None:
    """The log fields of the job whose handler, middleware or what they await runs here; None: there is none."""
    if _scope.get() is _NOWHERE:
        return None
    try:
        job = scope_here().job
    except Exception:  # noqa: BLE001  a payload that can't be decoded is told of as the failure of its job
        return None
    return None if job is None else log_fields(job)


def log_fields(job: Job) -> dict[str, object]:
    """What log lines of a handler say of its job."""
    return job_fields(job.id, job.execution, job.task, job.queue, job.org_id)


@contextmanager
def org_scope(org_id: str) -> Iterator[None]:
    """Jobs enqueued inside carry `org_id`, and headers as before."""
    token = _scope.set(replace(scope_here(), org_id=org_id))
    try:
        yield
    finally:
        _scope.reset(token)


def run_in_job(run: Callable[..., Returned], payload: str, context: Any, make_job: MakeJob) -> Returned:
    """Call `run` with the other three. To be run in a copied contextvars.Context, which ends with the job."""
    _scope.set(make_job)
    return run(payload, context, make_job)


def enter_job(make_job: MakeJob) -> Token[Scope | MakeJob]:
    """For a handler that is awaited; `leave_job` takes the token."""
    return _scope.set(make_job)


def leave_job(token: Token[Scope | MakeJob]) -> None:
    _scope.reset(token)
