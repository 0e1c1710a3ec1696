"""What a death means: words for people, and the outcome of the execution that the worker was running."""

from __future__ import annotations

import signal

from pgworker.linux.pidfd import Exit
from pgworker.model.state import CancelReason, Outcome

_WHY = {
    CancelReason.DEADLINE: "its time was up and it did not stop when asked",
    CancelReason.CANCELLED: "it was cancelled and did not stop when asked",
    CancelReason.LEASE_LOST: "its lease could not be renewed, so that others may run it",
    CancelReason.SHUTDOWN: "the pool was stopped and it did not end in time",
}


def explain_exit(
    exit_: Exit, index: int, killed_for: CancelReason, out_of_memory: bool, asked: str = ""
) -> tuple[str, Outcome]:
    """How worker `index` ended, in words, and what its running execution counts as.

    `killed_for` is NONE unless the master itself has sent the last signal; `asked` is what it had asked it to end for.
    """
    who = f"worker {index} (pid {exit_.pid})"
    if exit_.signal is not None and killed_for is not CancelReason.NONE:
        return f"{who} was killed with its job: {_WHY[killed_for]}", killed_for.outcome
    if out_of_memory:
        return f"{who} was killed by the kernel: out of memory", Outcome.CRASHED
    if exit_.signal == signal.SIGKILL:
        return (
            f"{who} was killed by SIGKILL, not by pgworker (kill -9, or the kernel for want of memory)",
            Outcome.CRASHED,
        )
    if exit_.code == 0:
        return f"{who} ended, as asked: {asked}" if asked else f"{who} ended", Outcome.CRASHED
    return f"{who} died: {exit_.describe()}", Outcome.CRASHED
