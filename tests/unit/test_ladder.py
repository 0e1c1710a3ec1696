"""Deadlines and the kill ladder; the real kills are in tests/process."""

from __future__ import annotations

import signal
from uuid import uuid4

import pytest

from pgworker.linux.board import Board
from pgworker.linux.pidfd import Exit
from pgworker.linux.row import Run
from pgworker.master.causes import explain_exit, judge_slots
from pgworker.master.deadlines import find_overdue
from pgworker.model.graces import Graces
from pgworker.model.state import CancelReason, Outcome

SECOND = 1_000_000_000


def overdue(run_for: float, *, timeout: float = 0, renewed_ago: float = 0, ttl: float = 60) -> CancelReason:
    row = Board(1, 1).rows[0]
    row.reset(uuid4(), 0)
    now = 1000 * SECOND
    index = row.show_lease(uuid4(), 1, now - int(renewed_ago * SECOND))
    since = now - int(run_for * SECOND)
    run = Run(0, 1, index, 1, since, since + int(timeout * SECOND) if timeout else 0, 1, 0)
    return find_overdue(row, run, now, ttl)


@pytest.mark.parametrize(
    ("reason", "run_for", "timeout", "renewed_ago"),
    [
        (CancelReason.NONE, 10, 11, 0),
        (CancelReason.DEADLINE, 11, 11, 0),
        (CancelReason.NONE, 1e6, 0, 0),
        (CancelReason.NONE, 100, 0, 54),
        (CancelReason.LEASE_LOST, 100, 0, 55),
    ],
)
def test_a_run_is_overdue_at_its_deadline_or_five_seconds_before_its_lease_ends(
    reason: CancelReason, run_for: float, timeout: float, renewed_ago: float
) -> None:
    assert overdue(run_for, timeout=timeout, renewed_ago=renewed_ago) is reason


def test_a_job_without_a_lease_is_gone_before_its_lease_is_over() -> None:
    graces = Graces(cancel=10, term=5, lease_ttl=60)
    reason = CancelReason.LEASE_LOST
    assert graces.before_term_ns(reason, is_async=False) + graces.before_kill_ns(reason) < 5 * SECOND


def test_a_job_that_does_not_stop_gets_the_grace_then_sigterm_and_its_grace() -> None:
    graces = Graces(cancel=10, term=5, lease_ttl=60)
    for reason in (CancelReason.CANCELLED, CancelReason.DEADLINE):
        assert (graces.before_term_ns(reason, is_async=False), graces.before_kill_ns(reason)) == (
            10 * SECOND,
            5 * SECOND,
        )


@pytest.mark.parametrize("reason", [reason for reason in CancelReason if reason is not CancelReason.NONE])
def test_a_task_on_the_event_loop_is_cancelled_before_its_worker_is_told(reason: CancelReason) -> None:
    graces = Graces(cancel=10, term=5, lease_ttl=60)
    assert 0 < graces.before_cancel_ns(reason) < graces.before_term_ns(reason, is_async=True)
    assert graces.before_cancel_ns(reason) <= graces.before_term_ns(reason, is_async=False)


def run_in(slot: int, thread: int, since: int = 0, trial_until: int = 0) -> Run:
    return Run(slot, 1, 0, slot + 1, since, 0, thread, 0, trial_until)


RUNS = [run_in(0, 0xABC), run_in(2, 0xDEF)]
SEGFAULT = """Fatal Python error: Segmentation fault

Thread 0x0000000000000abc (most recent call first):
  File "shop.py", line 1 in wait

Current thread 0x0000000000000def (most recent call first):
  File "shop.py", line 2 in crash
"""


@pytest.mark.parametrize(
    ("culprits", "verdict", "stack", "outcomes"),
    [
        ({2: Outcome.TIMED_OUT}, Outcome.TIMED_OUT, "", ["lost", "lost", "timed_out"]),
        (
            {0: Outcome.CANCELLED, 2: Outcome.TIMED_OUT},
            Outcome.CANCELLED,
            "",
            ["cancelled", "lost", "timed_out"],
        ),
        ({}, Outcome.CRASHED, SEGFAULT, ["lost", "lost", "crashed"]),
        ({}, Outcome.CRASHED, SEGFAULT.replace("def", "123"), ["crashed"] * 3),
        ({}, Outcome.CRASHED, "", ["crashed"] * 3),
        ({}, Outcome.CRASHED, SEGFAULT.partition("\n")[2], ["crashed"] * 3),
        ({}, Outcome.RELEASED, "", ["released"] * 3),
    ],
)
def test_the_neighbours_of_a_culprit_are_not_charged(
    culprits: dict[int, Outcome], verdict: Outcome, stack: str, outcomes: list[str]
) -> None:
    assert judge_slots(3, RUNS, culprits, verdict, stack, 10) == outcomes


@pytest.mark.parametrize(
    ("runs", "stack", "outcomes"),
    [
        ([run_in(0, 0xABC, 5, 20), run_in(2, 0xDEF, 4)], "", ["crashed", "lost", "lost"]),
        ([run_in(0, 0xABC, 5, 10), run_in(2, 0xDEF, 4)], "", ["crashed"] * 3),  # it has stood its trial
        ([run_in(0, 0xABC, 8, 16), run_in(1, 0xAAA, 1, 4), run_in(2, 0xDEF, 0)], "", ["crashed", "crashed", "lost"]),
        ([run_in(0, 0xABC, 8, 16), run_in(1, 0xAAA, 2, 4), run_in(2, 0xDEF, 0)], "", ["crashed", "lost", "lost"]),
        ([run_in(0, 0xABC, 8, 25), run_in(1, 0xAAA, 1, 4), run_in(2, 0xDEF, 0)], "", ["crashed", "lost", "lost"]),
        ([run_in(0, 0xABC, 5, 20), run_in(2, 0xDEF, 6)], "", ["crashed"] * 3),  # somebody was started since
        ([run_in(0, 0xABC, 5, 20), run_in(2, 0xDEF, 4)], SEGFAULT, ["lost", "lost", "crashed"]),
        ([run_in(0, 0xDEF, 5, 20), run_in(2, 0xDEF, 4)], SEGFAULT, ["crashed", "lost", "lost"]),  # on the event loop
    ],
)
def test_a_job_on_trial_is_charged_for_the_end_of_its_worker_and_its_neighbours_are_not(
    runs: list[Run], stack: str, outcomes: list[str]
) -> None:
    assert judge_slots(3, runs, {}, Outcome.CRASHED, stack, 10) == outcomes


def test_a_job_that_a_worker_begins_the_moment_it_is_killed_for_holding_nothing_is_not_charged() -> None:
    exit_ = Exit(7, None, signal.SIGKILL, False)
    how, verdict = explain_exit(
        exit_, 2, CancelReason.NONE, out_of_memory=False, in_a_job=True, was_draining=False, given_up="it was not ready"
    )
    assert how == "worker 2 (pid 7) was killed: it was not ready"
    assert judge_slots(1, [run_in(0, 0xABC)], {}, verdict, "", 10) == ["lost"]


def test_an_end_with_code_0_between_two_jobs_is_an_ordinary_one_if_somebody_has_asked_for_it() -> None:
    def explain(*, was_draining: bool, asked: str = "") -> str:
        quietly = Exit(7, 0, None, False)
        told = explain_exit(
            quietly, 2, CancelReason.NONE, False, in_a_job=False, was_draining=was_draining, asked=asked
        )
        return told[0]

    assert explain(was_draining=True) == "worker 2 (pid 7) ended"
    assert explain(was_draining=True, asked="HUP") == "worker 2 (pid 7) ended, as asked: HUP"
    assert "nobody had asked it to" in explain(was_draining=False)


@pytest.mark.parametrize(
    ("exit_", "killed_for", "oom", "words", "outcome"),
    [
        (Exit(7, None, signal.SIGKILL, False), CancelReason.DEADLINE, False, "its time was up", Outcome.TIMED_OUT),
        (Exit(7, None, signal.SIGKILL, False), CancelReason.CANCELLED, False, "it was cancelled", Outcome.CANCELLED),
        (Exit(7, None, signal.SIGKILL, False), CancelReason.LEASE_LOST, False, "its lease", Outcome.LOST),
        (Exit(7, None, signal.SIGKILL, False), CancelReason.SHUTDOWN, False, "had to end", Outcome.RELEASED),
        (Exit(7, None, signal.SIGKILL, False), CancelReason.NONE, True, "out of memory", Outcome.CRASHED),
        (Exit(7, None, signal.SIGKILL, False), CancelReason.NONE, False, "not by pgworker", Outcome.CRASHED),
        (Exit(7, None, signal.SIGSEGV, True), CancelReason.NONE, False, "SIGSEGV (core dumped)", Outcome.CRASHED),
        (Exit(7, 3, None, False), CancelReason.NONE, False, "exit code 3", Outcome.CRASHED),
        (Exit(7, 3, None, False), CancelReason.DEADLINE, False, "exit code 3", Outcome.CRASHED),
        (Exit(7, 0, None, False), CancelReason.NONE, False, "code 0 in the middle of a job", Outcome.CRASHED),
    ],
)
def test_every_death_has_its_words_and_its_outcome(
    exit_: Exit, killed_for: CancelReason, oom: bool, words: str, outcome: Outcome
) -> None:
    how, verdict = explain_exit(exit_, 2, killed_for, oom, in_a_job=True, was_draining=False)
    assert words in how
    assert how.startswith("worker 2 (pid 7)")
    assert verdict is outcome
