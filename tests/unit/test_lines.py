"""When the monitor takes back what a worker has claimed: behind jobs that keep its clerk from it, not otherwise."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from pgworker.linux.board import Board
from pgworker.linux.row import BoardRow
from pgworker.monitor.renewals import draw_lines

SECOND = 1_000_000_000
NOW = 1000 * SECOND


@pytest.fixture
def board() -> Board:
    """One worker with two slots; in the first, a job has run for a minute, under a lease of its own."""
    board = Board(1, 1, slots=2)
    row = board.rows[0]
    row.reset(uuid4(), NOW - 100 * SECOND)
    row.pid = 1
    entry = row.show_lease(uuid4(), 1, NOW - 60 * SECOND)
    row.show_started(entry, 1)
    row.start_run(0, entry, 1, NOW - 60 * SECOND, 0, 7)
    return board


def claim(row: BoardRow, seconds_ago: float) -> int:
    return row.show_lease(uuid4(), 3, int(NOW - seconds_ago * SECOND))


def released(board: Board) -> list[int]:
    """The first positions that go back now."""
    first: list[int] = []

    def release(_lease: UUID, position: int) -> bool:
        first.append(position)
        return True

    draw_lines(board, NOW, SECOND, release, set())
    return first


def test_what_nobody_has_started_for_long_goes_back(board: Board) -> None:
    entry = claim(board.rows[0], seconds_ago=5)
    assert released(board) == [1]
    assert board.rows[0].line(entry) == 0


def test_what_was_claimed_this_moment_stays_for_the_slot_that_is_free(board: Board) -> None:
    claim(board.rows[0], seconds_ago=0.001)
    assert released(board) == []


def test_between_two_short_jobs_the_next_ones_stay(board: Board) -> None:
    row = board.rows[0]
    entry = claim(row, seconds_ago=5)
    row.show_started(entry, 1)
    row.end_run(1, row.start_run(1, entry, 1, NOW - SECOND // 100, 0, 8))
    assert released(board) == []


def test_where_nothing_runs_nothing_goes_back(board: Board) -> None:
    row = board.rows[0]
    row.end_run(0, row.runs()[0].sequence)
    claim(row, seconds_ago=5)
    assert released(board) == []


def test_a_release_without_an_answer_keeps_its_line_and_is_asked_for_again(board: Board) -> None:
    row = board.rows[0]
    entries = [claim(row, seconds_ago=5), claim(row, seconds_ago=5)]
    unanswered: set[UUID] = set()
    asked: list[UUID] = []

    def lose_answer(lease_id: UUID, _position: int) -> bool:
        asked.append(lease_id)
        raise ConnectionError("it may have committed")

    def answer(lease_id: UUID, _position: int) -> bool:
        asked.append(lease_id)
        return True

    with pytest.raises(ConnectionError):
        draw_lines(board, NOW, SECOND, lose_answer, unanswered)
    assert [row.line(entry) for entry in entries] == [0, 0]
    draw_lines(board, NOW, SECOND, answer, unanswered)
    draw_lines(board, NOW, SECOND, answer, unanswered)
    assert [row.line(entry) for entry in entries] == [0, 0]
    shown = [lease.lease_id for lease in row.leases()][1:]
    assert (asked, unanswered) == ([shown[0], *shown], set())


def test_a_lease_that_somebody_else_has_locked_loses_its_line_again(board: Board) -> None:
    entry = claim(board.rows[0], seconds_ago=5)
    unanswered: set[UUID] = set()
    draw_lines(board, NOW, SECOND, lambda *_: False, unanswered)
    assert (board.rows[0].line(entry), unanswered) == (None, set())
