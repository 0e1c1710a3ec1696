"""When a place gets its next worker."""

from __future__ import annotations

import time

import pytest

from pgworker.errors import EXIT_BUG
from pgworker.linux.board import Board
from pgworker.linux.pidfd import Exit
from pgworker.master.children import WorkerChild
from pgworker.master.restarts import Restarts
from pgworker.model.retry import Backoff


@pytest.mark.parametrize(
    ("code", "done", "lived", "again"),
    [
        (3, 5, 1, ["at once"] * 3),
        (3, 0, 1, ["in 1 s", "in 2 s", "in 4 s"]),
        (EXIT_BUG, 5, 1, ["in 1 s", "in 2 s", "in 4 s"]),
        (EXIT_BUG, 5, 3600, ["at once"] * 3),
        (EXIT_BUG, 0, 3600, ["in 1 s", "in 2 s", "in 4 s"]),
    ],
)
def test_only_workers_that_do_nothing_or_soon_end_by_a_bug_of_ours_are_waited_for(
    code: int, done: int, lived: float, again: list[str]
) -> None:
    restarts = Restarts(Backoff(base=1, cap=60))
    child = WorkerChild(Board(1, 10).rows[0], wake_pipe=-1, is_wanted=True, forked_at=time.monotonic() - lived)
    ends = [restarts.plan(child, Exit(1, code, None, core=False), done=done, clean=False) for _ in again]
    assert ends == again
