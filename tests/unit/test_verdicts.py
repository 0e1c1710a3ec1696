"""What an execution that raised counts as, and how its job goes on."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from uuid import uuid4

import pytest

from pgworker import App, Backoff, Cancelled, CancelReason, Discard, InvalidJob, Job, Retry, Snooze
from pgworker.app.verdict import Verdict, judge
from pgworker.lifecycle.settle import Next
from pgworker.model.durations import MAX_SECONDS
from pgworker.model.state import Outcome

NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)

app = App()


@app.task(name="plain", backoff=Backoff(base=2, cap=60, jitter=0), discard_on=(LookupError,))
def plain() -> None: ...


@app.task(name="picky", should_retry=lambda _job, error: "again" in str(error))
def picky() -> None: ...


def no_job() -> Job:
    raise AssertionError("only should_retry needs the job")


def verdict(
    error: BaseException,
    *,
    reason: CancelReason = CancelReason.NONE,
    seen: bool = False,
    failures: int = 0,
    max_attempts: int = 3,
) -> Verdict:
    return judge(error, reason, seen, failures, max_attempts, plain, no_job)


def short(found: Verdict) -> tuple[Outcome, Next, float]:
    return found.outcome, found.next, found.delay


@pytest.mark.parametrize(("failures", "delay"), [(0, 2.0), (1, 4.0)])
def test_an_error_is_charged_and_the_job_runs_again_after_its_backoff(failures: int, delay: float) -> None:
    assert short(verdict(ValueError(), failures=failures)) == (Outcome.FAILED, Next.REQUEUE, delay)


def test_the_last_attempt_makes_a_dead_letter() -> None:
    assert short(verdict(ValueError(), failures=2)) == (Outcome.FAILED, Next.BURY, 0.0)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError(), RecursionError()])
def test_whatever_a_handler_raises_is_an_ordinary_failure(error: BaseException) -> None:
    assert short(verdict(error)) == (Outcome.FAILED, Next.REQUEUE, 2.0)


def test_an_error_named_in_discard_on_is_never_retried() -> None:
    assert short(verdict(KeyError("gone"))) == (Outcome.FAILED, Next.BURY, 0.0)


def test_should_retry_decides_over_errors_but_not_over_what_the_handler_asks_for() -> None:
    job = Job(
        id=uuid4(), task="picky", queue="default", payload={}, priority=5, execution=1, failures=0, max_attempts=3,
        timeout=None, run_at=NOW, created_at=NOW, org_id=None, headers={},
    )  # fmt: skip

    def judged(error: Exception) -> Next:
        return judge(error, CancelReason.NONE, False, 0, 3, picky, lambda: job).next

    assert judged(ValueError("again")) is Next.REQUEUE
    assert judged(ValueError("never")) is Next.BURY
    assert judged(Retry("later")) is Next.REQUEUE


def test_retry_names_its_own_delay() -> None:
    assert short(verdict(Retry(after=timedelta(minutes=1)))) == (Outcome.FAILED, Next.REQUEUE, 60.0)


def test_discard_is_a_dead_letter_at_once() -> None:
    assert short(verdict(Discard("no such user"))) == (Outcome.FAILED, Next.BURY, 0.0)


def test_snooze_charges_nothing_however_often() -> None:
    assert short(verdict(Snooze(90), failures=2)) == (Outcome.SNOOZED, Next.REQUEUE, 90.0)


def test_a_handler_that_raises_cancelled_by_itself_is_cancelled() -> None:
    assert short(verdict(Cancelled())) == (Outcome.CANCELLED, Next.END, 0.0)


@pytest.mark.parametrize(
    ("reason", "outcome", "then"),
    [
        (CancelReason.CANCELLED, Outcome.CANCELLED, Next.END),
        (CancelReason.SHUTDOWN, Outcome.RELEASED, Next.REQUEUE),
        (CancelReason.LEASE_LOST, Outcome.LOST, Next.REQUEUE),
        (CancelReason.DEADLINE, Outcome.TIMED_OUT, Next.REQUEUE),
    ],
)
@pytest.mark.parametrize("error", [Cancelled(), ValueError("in the middle of it")])
def test_a_handler_that_stops_as_asked_ends_for_the_reason_it_was_asked(
    error: Exception, reason: CancelReason, outcome: Outcome, then: Next
) -> None:
    found = verdict(error, reason=reason, seen=True)
    assert (found.outcome, found.next) == (outcome, then)


def test_an_error_after_a_cancel_that_the_handler_has_not_seen_is_an_ordinary_failure() -> None:
    assert verdict(ValueError(), reason=CancelReason.CANCELLED).outcome is Outcome.FAILED


def test_an_error_after_the_deadline_is_a_timeout_whether_seen_or_not() -> None:
    assert verdict(ValueError(), reason=CancelReason.DEADLINE).outcome is Outcome.TIMED_OUT


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry(after=-1),
        lambda: Retry(after=float("nan")),
        lambda: Retry(after="soon"),  # type: ignore[arg-type]
        lambda: Retry(60),  # type: ignore[arg-type]
        lambda: Snooze(datetime(2030, 1, 1)),  # noqa: DTZ001  that is the mistake
        lambda: Snooze(timedelta(seconds=-1)),
        lambda: Snooze(True),
    ],
)
def test_a_delay_that_is_none_is_refused_where_it_is_written(make: object) -> None:
    assert callable(make)
    with pytest.raises((TypeError, ValueError), match=r"Retry|Snooze"):
        make()


class Odd(Backoff):
    """A backoff of one's own, which answers what it was made with."""

    answer: object

    def delay(self, failures: int, random: float) -> float:  # noqa: ARG002
        return self.answer  # type: ignore[return-value]  # the mistake that is meant


class Liar(int):
    """Compares as it likes."""

    __lt__ = __le__ = __gt__ = __ge__ = lambda _self, _other: True


@pytest.mark.parametrize("answer", [float("nan"), float("-inf"), -1, "soon", None], ids=repr)
def test_a_backoff_that_answers_no_delay_is_refused_before_a_settle_has_to_store_it(answer: object) -> None:
    backoff = Odd()
    object.__setattr__(backoff, "answer", answer)
    odd = App().task(name="odd", backoff=backoff)(lambda: None)
    with pytest.raises(InvalidJob):
        judge(ValueError(), CancelReason.NONE, False, 0, 3, odd, no_job)


@pytest.mark.parametrize("answer", [float("inf"), Liar(10**40)])
def test_a_backoff_that_answers_more_than_a_century_is_cut_to_one(answer: float) -> None:
    backoff = Odd()
    object.__setattr__(backoff, "answer", answer)
    odd = App().task(name="odd", backoff=backoff)(lambda: None)
    assert judge(ValueError(), CancelReason.NONE, False, 0, 3, odd, no_job).delay == MAX_SECONDS


@pytest.mark.parametrize("error", [Retry(after=Liar(10**40)), Snooze(Liar(10**40))])
def test_a_delay_that_lies_of_its_size_is_refused_before_a_settle_has_to_store_it(error: BaseException) -> None:
    with pytest.raises(InvalidJob, match="between 0 seconds and 100 years"):
        verdict(error)
