"""USR2: claiming is paused; once more: it goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pgworker.linux.board import Board
from pgworker.master.children import WorkerChild
from pgworker.master.fields import fields

log = logging.getLogger("pgworker.master")


def pause_or_resume(board: Board, workers: Iterable[WorkerChild]) -> None:
    """Do the other one than last time; those who sleep are woken to hear of it."""
    board.is_paused = not board.is_paused
    if board.is_paused:
        log.info(
            "USR2: claiming is paused; what runs goes on, what waits goes back; USR2 again resumes it",
            extra=fields("claiming_paused"),
        )
    else:
        log.info("USR2: claiming again", extra=fields("claiming_resumed"))
    for child in workers:
        if child.pid:
            child.wake()
