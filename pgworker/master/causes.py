"""What a death means: words for people, and the outcome of the execution that the worker was running."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence

from pgworker.linux.pidfd import Exit
from pgworker.linux.row import Run
from pgworker.model.state import CancelReason, Outcome
from pgworker.model.trial import is_at_once, is_in_doubt

_WHY = {
    CancelReason.DEADLINE: "its time was up and it did not stop when asked",
    CancelReason.CANCELLED: "it was cancelled and did not stop when asked",
    CancelReason.LEASE_LOST: "its lease could not be renewed, so that others may run it",
    CancelReason.SHUTDOWN: "the worker had to end and it did not stop in time",
}


def explain_exit(
    exit_: Exit,
    index: int,
    killed_for: CancelReason,
    out_of_memory: bool,
    *,
    in_a_job: bool,
    was_draining: bool,
    asked: str = "",
    given_up: str = "",
) -> tuple[str, Outcome]:
    """How worker `index` ended, in words, and what its running execution counts as.

    `killed_for` is NONE unless the master itself has sent the last signal; `in_a_job`: it ran one, or several;
    `was_draining`: it was about to end; `asked` is what the master had asked it to end for, `given_up` why it has
    killed it while it held nothing.
    """
    who = f"worker {index} (pid {exit_.pid})"
    if exit_.signal is not None and killed_for is not CancelReason.NONE:
        return f"{who} was killed with its job: {_WHY[killed_for]}", killed_for.outcome
    if exit_.signal == signal.SIGKILL and given_up:
        return f"{who} was killed: {given_up}", Outcome.LOST  # of a job that it began that moment nobody died
    if out_of_memory:
        return f"{who} was killed by the kernel: out of memory", Outcome.CRASHED
    if exit_.signal == signal.SIGKILL:
        return (
            f"{who} was killed by SIGKILL, not by pgworker (kill -9, or the kernel for want of memory)",
            Outcome.CRASHED,
        )
    if exit_.code == 0 and in_a_job:
        return f"{who} ended with code 0 in the middle of a job: does its handler call os._exit()?", Outcome.CRASHED
    if exit_.code == 0 and not was_draining:
        return f"{who} ended with code 0, and nobody had asked it to: does the app call os._exit()?", Outcome.CRASHED
    if exit_.code == 0:
        return f"{who} ended, as asked: {asked}" if asked else f"{who} ended", Outcome.CRASHED
    return f"{who} died: {exit_.describe()}", Outcome.CRASHED


def judge_slots(
    slots: int, runs: Sequence[Run], culprits: Mapping[int, Outcome], verdict: Outcome, stack: str, now_ns: int
) -> list[str]:
    """What the execution in each slot counts as, when the worker has died with `verdict`.

    Those that the worker was killed for (`culprits`) have outcomes of their own; their neighbours are lost, uncharged.
    A worker that died by itself died of the job in the thread that crashed, if the stack names one, or of the one that
    was on trial, or that is in doubt beside it; else of any that ran. Where that leaves several they are suspects, see
    `lifecycle.reclaim`.
    """
    if culprits:
        return [culprits.get(slot, Outcome.LOST).value for slot in range(slots)]
    crashed = _crashed_in(stack)
    in_thread = [run for run in runs if run.thread == crashed]
    guilty = [run.slot for run in _on_trial(in_thread or runs, now_ns) or in_thread]
    if verdict is not Outcome.CRASHED or not guilty:
        return [verdict.value] * slots
    return [(verdict if slot in guilty else Outcome.LOST).value for slot in range(slots)]


def _on_trial(runs: Sequence[Run], now_ns: int) -> list[Run]:
    """The one that was started last, if its worker was not to start another yet, and who is in doubt beside it."""
    youngest = max(runs, key=lambda run: run.since_ns, default=None)
    if youngest is None or now_ns >= youngest.trial_until_ns:
        return []
    if is_at_once(now_ns - youngest.since_ns, youngest.trial_ns):
        return [youngest]
    return [run for run in runs if run is youngest or is_in_doubt(now_ns - run.since_ns, run.trial_ns)]


def _crashed_in(stack: str) -> int | None:
    """The thread in which a fatal signal arrived, by what faulthandler wrote of it; None: it wrote nothing."""
    if not stack.startswith("Fatal Python error"):
        return None
    found = re.search(r"^Current thread 0x([0-9a-f]+)", stack, re.MULTILINE)
    return int(found[1], 16) if found else None
