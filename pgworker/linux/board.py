"""The board: what every process of a pool can see of the others without asking them.

One anonymous shared mapping, made before the first fork: a few words for the pool, two words per claim lane, a row of
words per worker. It gives the master hard deadlines and the monitor something to renew and reclaim by, even while a
worker holds its GIL in C or lies dead.

Every word is 64 bits, written by item assignment to a memoryview cast to 'Q': one aligned store, never seen torn
(struct.pack_into is: 12-19 % of reads in an experiment).
"""

from __future__ import annotations

import mmap

from pgworker.linux.floors import LANE_WORDS, Floors
from pgworker.linux.row import BoardRow, row_words

# words of the pool
_MONITOR_BEAT_NS, _SWEEP_DUE_NS, _FULL_SWEEP_DUE_NS, _CONNECTED, _OUTAGE_LINE_DUE_NS, _PAUSED, _WANTED = range(7)
_RUSH_UNTIL_NS, _LISTENS, _LOOK_DUE_NS, _MORE = 7, 8, 9, 10
_POOL_WORDS = 11


class Board:
    """The mapping of one pool: `workers` rows with `slots` slots each, and `lanes` claim lanes."""

    def __init__(self, workers: int, lanes: int, slots: int = 1) -> None:
        first_row, size = _POOL_WORDS + lanes * LANE_WORDS, row_words(slots)
        self._words = memoryview(mmap.mmap(-1, 8 * (first_row + workers * size))).cast("Q")
        self.floors = Floors(self._words, _POOL_WORDS, lanes)
        self.rows = tuple(BoardRow(self._words, first_row + index * size, index, slots) for index in range(workers))

    @property
    def monitor_beat_ns(self) -> int:
        """When the monitor last went round its loop, or on to the next statement of a round."""
        return self._words[_MONITOR_BEAT_NS]

    @monitor_beat_ns.setter
    def monitor_beat_ns(self, now_ns: int) -> None:
        self._words[_MONITOR_BEAT_NS] = now_ns

    @property
    def is_connected(self) -> bool:
        """Whether the monitor reached the database at its last beat."""
        return self._words[_CONNECTED] == 1

    @is_connected.setter
    def is_connected(self, connected: bool) -> None:
        self._words[_CONNECTED] = int(connected)

    @property
    def is_paused(self) -> bool:
        """Whether the master was told that nothing more is to be claimed."""
        return self._words[_PAUSED] == 1

    @is_paused.setter
    def is_paused(self, paused: bool) -> None:
        self._words[_PAUSED] = int(paused)

    @property
    def workers_wanted(self) -> int:
        """How many workers there should be; 0 while the pool drains."""
        return self._words[_WANTED]

    @workers_wanted.setter
    def workers_wanted(self, workers: int) -> None:
        self._words[_WANTED] = workers

    @property
    def serves_one_app(self) -> bool:
        """Whether all workers that claim have the same tasks: during a rolling deploy one may serve what another
        doesn't know."""
        return len({row.tasks_hash for row in self.rows if row.takes_jobs}) <= 1

    @property
    def rush_until_ns(self) -> int:
        """Until then enqueuers tell nobody of their jobs, which come too often for that: idle workers look for them."""
        return self._words[_RUSH_UNTIL_NS]

    @rush_until_ns.setter
    def rush_until_ns(self, until_ns: int) -> None:
        self._words[_RUSH_UNTIL_NS] = until_ns

    @property
    def listens(self) -> bool:
        """Whether the monitor hears of new jobs, and tells idle workers."""
        return self._words[_LISTENS] == 1

    @listens.setter
    def listens(self, listens: bool) -> None:
        self._words[_LISTENS] = int(listens)

    def take_look(self, now_ns: int, interval_ns: int) -> bool:
        """Whether the caller, who sleeps and was not told of anything, is to look for jobs that are due by now: one of
        the pool does, every `interval_ns`."""
        return self._take_turn(_LOOK_DUE_NS, now_ns, interval_ns)

    def tell_of_more(self) -> None:
        """Who has looked for all found something: the monitor is to wake the others."""
        self._words[_MORE] = 1

    def take_more(self) -> bool:
        """Whether somebody has called `tell_of_more` since the last time."""
        if not self._words[_MORE]:
            return False
        self._words[_MORE] = 0
        return True

    def take_outage_line(self, now_ns: int) -> bool:
        """Whether the caller is to log that the database is away: one line a second for the whole pool."""
        return self._take_turn(_OUTAGE_LINE_DUE_NS, now_ns, 1_000_000_000)

    def take_sweep(self, now_ns: int, interval_ns: int) -> bool:
        """Whether the caller is to look behind the floors now; the next one is due `interval_ns` later."""
        return self._take_turn(_SWEEP_DUE_NS, now_ns, interval_ns)

    def take_full_sweep(self, now_ns: int, provisional_ns: int) -> bool:
        """As `take_sweep`, for the look from the very beginning; once its cost is known, `put_off_full_sweep`."""
        return self._take_turn(_FULL_SWEEP_DUE_NS, now_ns, provisional_ns)

    def put_off_full_sweep(self, due_ns: int) -> None:
        self._words[_FULL_SWEEP_DUE_NS] = due_ns

    def _take_turn(self, word: int, now_ns: int, interval_ns: int) -> bool:
        """Two that ask at the same instant may both be told yes: whatever has turns may be done twice."""
        if now_ns < self._words[word]:
            return False
        self._words[word] = now_ns + interval_ns
        return True
