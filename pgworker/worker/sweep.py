"""The sweep: what stands behind the claim floors, and what the floors need not stop at any more.

One worker of the pool looks every second. It lowers a floor to a due job below it (a late commit, a claim that was
rolled back, a job given back) and raises one over waiting jobs of tasks that nobody serves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.db.patience import limit_of
from pgworker.lifecycle.claim import Lanes, find_below_floor, find_dry_lanes
from pgworker.lifecycle.transaction import one_trip
from pgworker.linux.board import Board

_INTERVAL_NS = 800_000_000  # between two sweeps of a pool: they come with the polls, which are about a second apart
_REACH = 60.0  # seconds below the floor that the frequent look covers
_FULL_COST_SHARE = 20  # the look from the very beginning may cost one part in so many
_LONGEST_MS = 2000  # that each of the two statements of a look may take; of a full one that was too long, longer
_MARGIN = 5.0  # seconds that a floor stays behind the clock where it rises


class Sweeper:
    """The part of one worker in it; the board tells whose turn it is."""

    def __init__(self, board: Board, tasks: Sequence[str], lanes: Lanes) -> None:
        self._board = board
        self._tasks = list(tasks)
        self._lanes = lanes
        self._full_ms = _LONGEST_MS

    def sweep(self, connection: Connection[Any]) -> bool:
        """Look, if it is our turn; True if a job was found behind a floor."""
        if not self._tasks or not self._board.take_sweep(time.monotonic_ns(), _INTERVAL_NS):
            return False
        before = time.monotonic_ns()
        if not self._board.take_full_sweep(before, provisional_ns=60 * _INTERVAL_NS):
            return self._look(connection, _REACH, _LONGEST_MS)[0]
        found, is_done = self._look(connection, None, self._full_ms)
        twice = 2 * self._full_ms
        self._full_ms = _LONGEST_MS if is_done else min(twice, limit_of(connection) or twice)
        now = time.monotonic_ns()
        self._board.put_off_full_sweep(now + max(_INTERVAL_NS, _FULL_COST_SHARE * (now - before)))
        return found

    def _look(self, connection: Connection[Any], reach: float | None, limit_ms: int) -> tuple[bool, bool]:
        """Not for long: this thread has jobs to settle. Dead entries by the million, which an old transaction keeps
        from being removed, cost a second or more. Whether a job was found behind a floor, and whether all was looked
        at: else a full look may take longer the next time, which comes the later for it, or it would never get on."""
        found = is_done = False
        with suppress(psycopg.errors.QueryCanceled):
            with one_trip(connection, limit_ms=limit_ms):
                found = self._look_behind(connection, reach)
                self._raise_floors(connection)
            is_done = True
        return found, is_done

    def _look_behind(self, connection: Connection[Any], reach: float | None) -> bool:
        floors = self._board.floors
        with connection.cursor(binary=True) as cursor:
            found = find_below_floor(cursor, tasks=self._tasks, lanes=self._lanes, floors=floors.read(), reach=reach)
        for lane, place in found:
            floors.lower(lane, place)
        return bool(found)

    def _raise_floors(self, connection: Connection[Any]) -> None:
        """Or every poll would step over the same jobs again."""
        if not self._board.serves_one_app:
            return
        seen = self._board.floors.read()
        with connection.cursor(binary=True) as cursor:
            dry = find_dry_lanes(cursor, tasks=self._tasks, lanes=self._lanes, floors=seen, margin=_MARGIN)
        for lane, place in dry:
            self._board.floors.advance(lane, seen.of(lane), place)
