"""Every error that pgworker raises, and what each means for the one who catches it.

PgworkerError
├── ConfigurationError        something the user wrote is wrong: DSN, option, app (exit 78)
│   ├── RegistrationError     a task that can't be registered as written
│   └── SchemaError           the database has no pgworker schema, or one of another version
├── DatabaseUnavailable       PostgreSQL can't be reached, or refuses us (exit 69): what was asked for was not done
│   └── OutcomeUnknown        ... or it was, or will be: the answer never came
├── InvalidJob                a job that must not be enqueued: payload, option, name
│   └── InvalidPayload        ... because of its arguments; or a checkpoint that can't be stored
├── InvalidFilter             a choice of jobs that means all of them, none, or what no job can have
├── JobNotFound               no job has this id
├── JobFailed                 waited for: the job was given up, it is a dead letter
├── JobCancelled              waited for: the job was cancelled
├── InvalidResult             waited for: the job succeeded, but its result is not of the type that its task promises
├── WaitTimeout               waited for: the time is up; the job goes on
├── AppClosed                 waited for, until somebody closed the App; the job goes on
└── LeaseLost                 this execution no longer owns its job; its result is not recorded

JobControl                    not errors: what a handler raises to say how its job goes on
├── Retry                     run it again, after the time named here
├── Discard                   never run it again: a dead letter with this reason
├── Snooze                    run it again at that time; nothing failed, nothing is charged
└── Cancelled                 stop, as somebody asked for
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_BUG = 70
EXIT_CRASH_LOOP = 71
EXIT_DRAIN_TIMED_OUT = 75
EXIT_CONFIGURATION = 78
EXIT_INTERRUPTED = 130

CHECK_PASSED = 113
"""The exit code of a child that has only tried the app, when all was well: an app that ends the process while it is
imported may well do so with 0."""


class PgworkerError(Exception):
    """The root: whatever pgworker raises on purpose. `exit_code` is what a command ends with."""

    exit_code = EXIT_BUG


class ConfigurationError(PgworkerError):
    """A DSN, option or app that can't work as given; the message says what to change."""

    exit_code = EXIT_CONFIGURATION


class RegistrationError(ConfigurationError):
    """A task that can't be registered: a taken name, or a signature that can't be called from a payload."""


class SchemaError(ConfigurationError):
    """The schema `pgworker` is missing, older or newer than this package."""


class DatabaseUnavailable(PgworkerError):
    """PostgreSQL can't be reached or refuses the connection, or it has undone the statement: try again."""

    exit_code = EXIT_UNAVAILABLE


class OutcomeUnknown(DatabaseUnavailable):
    """The connection broke, or fell silent, before the answer came: what was asked for may have been done, or be done
    yet. Who tries again may do it twice; a job with an id of its own is stored once."""


class InvalidJob(PgworkerError, ValueError):
    """A job that can't be: rejected before it reached the database, or by it."""

    exit_code = EXIT_USAGE


class InvalidPayload(InvalidJob):
    """Arguments, or a checkpoint, that can't be stored: not JSON, NUL or NaN inside, too deep or too large."""


class InvalidFilter(PgworkerError, ValueError):
    """A choice of jobs that would mean all of them or none, or names what no job can have."""

    exit_code = EXIT_USAGE


class JobNotFound(PgworkerError, LookupError):
    """No job has this id (yet: it is there once its transaction commits), or its partition was dropped by retention."""

    exit_code = EXIT_USAGE

    @classmethod
    def of(cls, job_id: object) -> JobNotFound:
        """In a sentence that names what may be behind it."""
        return cls(
            f"there is no job {job_id}: check the id, or commit the transaction that enqueues it, "
            "or its history was dropped by retention"
        )


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An error as it is stored: `type` with its module, what it said, and the traceback as text, stacks of a killed
    handler included."""

    type: str
    message: str
    traceback: str


class JobFailed(PgworkerError):
    """The job that was waited for is a dead letter.

    `outcome`, an `Outcome`, is how its last execution ended (failed, timed_out, crashed …), `error` what that raised
    if it did, and `cause` why it ended if it could not say so itself.
    """

    def __init__(
        self, message: str, *, outcome: str = "failed", error: ErrorRecord | None = None, cause: str | None = None
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.error = error
        self.cause = cause


class JobCancelled(PgworkerError):
    """The job that was waited for was cancelled."""


class InvalidResult(PgworkerError, ValueError):
    """What the job returned was stored, but can't be read as the type that its task is annotated to return."""


class WaitTimeout(PgworkerError, TimeoutError):
    """The time to wait is up. The job goes on, and can be waited for again."""


class AppClosed(PgworkerError):
    """`app.close()` was called while somebody waited. The job goes on."""


class LeaseLost(PgworkerError):
    """The lease of this execution is gone: somebody reclaimed it, so nothing of it may be recorded."""


class JobControl(Exception):
    """What a handler raises to say how its job goes on."""


class Retry(JobControl):
    """Run the job again after `after` (seconds or timedelta; default: the task's backoff). Charged as a failure."""

    def __init__(self, reason: str = "", *, after: float | timedelta | None = None) -> None:
        if not isinstance(reason, str):
            raise TypeError(f"Retry takes a reason first: write Retry(after={reason!r})")
        super().__init__(reason or "the handler asked for a retry")
        _check_delay("Retry(after=...)", after)
        self.after = after


class Discard(JobControl):
    """Never run the job again: it becomes a dead letter with this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class Snooze(JobControl):
    """Run the job again at `until` (an aware datetime) or after it (seconds or timedelta). Nothing is charged."""

    def __init__(self, until: float | timedelta | datetime) -> None:
        if isinstance(until, datetime):
            if until.tzinfo is None:
                raise ValueError("Snooze(until) needs a time with a time zone, such as datetime.now(timezone.utc)")
        else:
            _check_delay("Snooze(until)", until)
        super().__init__(f"snoozed until {until}" if isinstance(until, datetime) else f"snoozed for {until}")
        self.until = until


class Cancelled(JobControl):
    """The handler stops as it was asked to (a cancel, its deadline, a lost lease, the end of a drain), or cancels its
    own job. `ctx.raise_if_cancelled()` raises it."""

    def __init__(self, reason: str = "cancelled") -> None:
        super().__init__(reason)


def _check_delay(what: str, delay: object) -> None:
    """ValueError, in the handler that wrote it, for a delay that can't be one; `model.durations` converts it later."""
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _LONGEST_DELAY:
        raise ValueError(f"{what} takes seconds from 0 to {_LONGEST_DELAY} or a timedelta, not {_shown(delay)}")


def _shown(value: object) -> str:
    try:
        return repr(value)[:100]
    except Exception:  # noqa: BLE001  objects of anybody
        return "what can't be printed"


_LONGEST_DELAY = 3_153_600_000  # a hundred years
