"""Wake-ups: one LISTEN for the pool, a pipe to each worker, and the lock that tells enqueuers that somebody sleeps.

Commits that notify wait for each other, fsync and all: 16 connections enqueued a third of what they could without. So
when notifications come in a rush the lock is let go for a while, and idle workers look for jobs by themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from uuid import UUID

import psycopg

from pgworker.db.connect import explain
from pgworker.db.listen import Listener
from pgworker.errors import PgworkerError
from pgworker.linux.board import Board
from pgworker.linux.wake import wake
from pgworker.observe.logs import Throttle, fields, logger

_STAY_ALERT = 2.0  # seconds that enqueuers go on notifying after the last worker was seen idle
_MANY = 20  # notifications within `_SPELL` that make a rush
_SPELL = 0.1  # seconds
_RUSH = 1.0  # seconds that it is taken to last; then it shows again whether it does, and lasts twice as long
_LONGEST_RUSH = 8.0  # seconds, after some that followed each other
_AGAIN = 0.5  # seconds after the end of one in which another counts as going on with it
_OVERLAP = 0.5  # seconds that workers go on looking by themselves after each tick of a rush
_RETRY = 1.0  # seconds between two tries to listen
_DIGITS = 9  # of a number of jobs
_DOUBT = 10.0  # seconds after which a connection that has said nothing is asked whether it lives

log = logger("monitor.wakeups")


class Wakeups:
    """The listening connection, opened and reopened as needed; with `listens` False there is none."""

    def __init__(
        self,
        dsn: str,
        queues: Sequence[str],
        board: Board,
        pipes: Sequence[int],
        *,
        listens: bool,
        patience: float,
        between: Callable[[], None],
    ) -> None:
        """`patience`: seconds that one waits for an answer. `between` is called between two of them."""
        self._dsn = dsn
        self._patience = patience
        self._between = between
        self._heard_at = 0.0
        self._queues = tuple(queues)
        self._board = board
        self._pipes = tuple(pipes)
        self._listens = listens
        self._throttle = Throttle(interval=60.0)
        self._next_try = 0.0
        self._alert_until = 0.0
        self._spell_since = self._calm_at = 0.0
        self._rush = _RUSH
        self._is_rush = False
        self._told = 0
        self._next = 0
        self.listener: Listener | None = None

    @property
    def is_deaf(self) -> bool:
        """Whether the listening connection is lost."""
        return self._listens and self.listener is None

    def tick(self, now: float) -> bool:
        """Listen if we don't, and say or unsay that somebody sleeps. Whether we have just begun to."""
        was_deaf = self.is_deaf
        try:
            if self.is_deaf and now >= self._next_try:
                self._next_try = now + _RETRY
                self.listener = Listener(
                    self._dsn, application_name="pgworker monitor listener", patience=self._patience
                )
                self._heard_at = now
                self.wake_all()  # what was enqueued while nobody listened
            if self.listener is not None:
                self._see_rush(self.listener, now)
                if now >= self._calm_at:
                    self._say_who_sleeps(self.listener, now)
                if now - self._heard_at > _DOUBT:
                    self.listener.ask_whether_it_lives()
                    self._heard_at = now
        except (psycopg.Error, OSError, PgworkerError) as error:
            self._lose(error)
        self._board.listens = self.listener is not None
        if self._board.take_more():
            self.wake(len(self._board.rows))
        return was_deaf and not self.is_deaf

    def read(self) -> list[UUID]:
        """Act on what was notified; returns the leases that a cancelled job is in."""
        if self.listener is None:
            return []
        try:
            payloads = self.listener.read()
        except (psycopg.Error, OSError) as error:
            self._lose(error)
            return []
        cancelled = []
        for payload in payloads:
            if payload.startswith("!cancel "):
                with contextlib.suppress(ValueError):
                    cancelled.append(UUID(payload.removeprefix("!cancel ")))
            elif jobs := sum(jobs for queue, jobs in _enqueued(payload) if queue in self._queues):
                self._told += 1
                self.wake(jobs)
        return cancelled

    def wake(self, workers: int) -> None:
        """Wake up to so many idle workers, in turns."""
        rows, first = self._board.rows, self._next
        for offset in range(len(rows)):
            if workers <= 0:
                return
            row = rows[(first + offset) % len(rows)]
            if row.pid and row.is_idle:
                self._poke(row.index)
                self._next = row.index + 1
                workers -= 1

    def wake_all(self) -> None:
        for row in self._board.rows:
            if row.pid:
                self._poke(row.index)

    def close(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def _poke(self, index: int) -> None:
        wake(self._pipes[index])

    def _say_who_sleeps(self, listener: Listener, now: float) -> None:
        if any(row.pid and row.is_idle for row in self._board.rows):
            locked = [self._tell(listener.sleep_lock, queue) for queue in self._queues]
            if not all(locked):  # an enqueuer is just asking for one: again at the next tick
                return
            if now >= self._alert_until:
                self.wake(len(self._board.rows))  # a job committed just before the lock notified nobody
            self._alert_until, self._is_rush = now + _STAY_ALERT, False
        elif now >= self._alert_until:
            self._unsay(listener)

    def _see_rush(self, listener: Listener, now: float) -> None:
        """Workers look by themselves from its begin until the locks are held again, and `_OVERLAP` beyond each tick."""
        begins = self._told >= _MANY
        if begins:
            if now >= self._calm_at:  # before that they are of the same one, which only lasts longer
                self._rush = min(2 * self._rush, _LONGEST_RUSH) if now < self._calm_at + _AGAIN else _RUSH
            self._is_rush, self._calm_at, self._alert_until = True, now + self._rush, 0.0
            self._unsay(listener)
        if self._is_rush:
            self._board.rush_until_ns = int((now + _OVERLAP) * 1e9)
        if begins:
            self.wake(len(self._board.rows))  # who fell asleep a moment ago has not heard of it
        if begins or now - self._spell_since >= _SPELL:
            self._told, self._spell_since = 0, now

    def _unsay(self, listener: Listener) -> None:
        for queue in self._queues:
            self._tell(listener.sleep_unlock, queue)

    def _tell(self, say: Callable[[str], bool], queue: str) -> bool:
        self._between()
        return say(queue)

    def _lose(self, error: psycopg.Error | OSError | PgworkerError) -> None:
        self.close()
        self._alert_until = 0.0  # the next session's locks are new
        if (more := self._throttle.admit("listen")) is not None:
            said = explain(error, self._dsn)
            log.warning(
                "%s Not listening for new jobs, workers poll every second instead.%s",
                said,
                more,
                extra=fields("listening_lost"),
            )


def _enqueued(payload: str) -> list[tuple[str, int]]:
    """Queues and how many jobs each has got. Anybody may notify, so what is none of ours is passed over, quickly."""
    parts = [part.partition("=") for part in payload.split(",")]
    return [
        (queue, int(jobs)) for queue, _, jobs in parts if len(jobs) <= _DIGITS and jobs.isascii() and jobs.isdigit()
    ]
