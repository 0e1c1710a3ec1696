"""A worker's row of the board: what it runs and holds, shown to the master and the monitor, and what they ask of it.

Words of a row are read and written as `linux.board` says. What takes several words is read with a check: a run by its
sequence number (odd while it runs, as in a seqlock), a lease by reading the first half of its id twice. A reader that
meets a change reads nothing this time and comes back at its next beat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from pgworker.model.recycle import RecycleReason
from pgworker.model.state import CancelReason

_LEASES_AHEAD = 3  # beside one for each slot: next, claimed ahead, and one whose end is on its way

_HALF = (1 << 64) - 1

# the first words, in front of those of the slots and leases
_ID_HIGH, _ID_LOW, _PID, _FORKED_NS, _READY, _IDLE, _DRAIN, _TASKS_HASH, _RECYCLE, _FAILED = range(10)
_ROW_WORDS = 10

# words of a slot
_RUN_SEQUENCE, _RUN_LEASE, _RUN_POSITION, _RUN_SINCE_NS, _RUN_DEADLINE_NS, _RUN_THREAD, _RUN_ON_LOOP = range(7)
_RUN_TRIAL_NS, _CANCEL_SEQUENCE, _CANCEL_REASON = 7, 8, 9
_SLOT_WORDS = 10

# words of a lease
_LEASE_HIGH, _LEASE_LOW, _LEASE_RENEWED_NS, _LEASE_COUNT, _LEASE_STARTED, _LEASE_KEEP, _LEASE_LOST = range(7)
_LEASE_CLAIMED_NS = 7
_LEASE_WORDS = 8


@dataclass(frozen=True, slots=True)
class Run:
    """A job that is running now, in one slot of its worker.

    `deadline_ns` is 0 when it has none; times are of the monotonic clock. `thread` is what threading.get_ident() gives
    in the thread that runs it; `on_loop`: whether that is the event loop's, which runs many. `trial_until_ns`: nothing
    else is started in its worker until then; 0: it is no suspect.
    """

    slot: int
    sequence: int
    lease: int
    position: int
    since_ns: int
    deadline_ns: int
    thread: int
    on_loop: int
    trial_until_ns: int = 0

    @property
    def trial_ns(self) -> int:
        """How long its trial was to be; 0: it is no suspect."""
        return max(0, self.trial_until_ns - self.since_ns)

    @property
    def is_async(self) -> bool:
        return self.on_loop == 1


@dataclass(frozen=True, slots=True)
class LeaseEntry:
    """A lease as its worker shows it: held in entry `index`, `count` positions, run up to `started`."""

    index: int
    lease_id: UUID
    renewed_ns: int
    count: int
    started: int
    is_lost: bool
    claimed_ns: int


def row_words(slots: int) -> int:
    """How many words the row of a worker with so many slots takes."""
    return _ROW_WORDS + slots * _SLOT_WORDS + (slots + _LEASES_AHEAD) * _LEASE_WORDS


class BoardRow:
    """One worker. The worker writes what it does; the master and the monitor write what is asked of it."""

    __slots__ = ("_at", "_leases_at", "_slots_at", "_words", "index", "leases_limit", "slots")

    def __init__(self, words: memoryview, at: int, index: int, slots: int) -> None:
        self._words = words
        self._at = at
        self._slots_at = at + _ROW_WORDS
        self._leases_at = self._slots_at + slots * _SLOT_WORDS
        self.index = index
        self.slots = slots
        self.leases_limit = slots + _LEASES_AHEAD
        """How many leases the worker may hold."""

    # -- the incarnation: written by the master around the fork

    def reset(self, worker_id: UUID, now_ns: int) -> None:
        """Begin a new incarnation: every word of the old one goes."""
        for word in range(self._at, self._leases_at + self.leases_limit * _LEASE_WORDS):
            self._words[word] = 0
        self._words[self._at + _ID_HIGH] = worker_id.int >> 64
        self._words[self._at + _ID_LOW] = worker_id.int & _HALF
        self._words[self._at + _FORKED_NS] = now_ns

    @property
    def worker_id(self) -> UUID:
        return UUID(int=self._words[self._at + _ID_HIGH] << 64 | self._words[self._at + _ID_LOW])

    @property
    def pid(self) -> int:
        """The process; 0: none."""
        return self._words[self._at + _PID]

    @pid.setter
    def pid(self, pid: int) -> None:
        self._words[self._at + _PID] = pid

    @property
    def forked_ns(self) -> int:
        return self._words[self._at + _FORKED_NS]

    # -- flags

    @property
    def is_ready(self) -> bool:
        """Whether the worker has its app, its start hooks have run, and it is about to claim."""
        return self._words[self._at + _READY] == 1

    def set_ready(self) -> None:
        self._words[self._at + _READY] = 1

    @property
    def tasks_hash(self) -> int:
        """A digest of the names of the tasks that the worker serves; during a rolling deploy they may differ."""
        return self._words[self._at + _TASKS_HASH]

    @tasks_hash.setter
    def tasks_hash(self, digest: int) -> None:
        self._words[self._at + _TASKS_HASH] = digest & _HALF

    @property
    def is_idle(self) -> bool:
        """Whether the worker found nothing to claim and sleeps."""
        return self._words[self._at + _IDLE] == 1

    @is_idle.setter
    def is_idle(self, idle: bool) -> None:
        self._words[self._at + _IDLE] = int(idle)

    @property
    def is_draining(self) -> bool:
        return self._words[self._at + _DRAIN] == 1

    def ask_drain(self) -> None:
        self._words[self._at + _DRAIN] = 1

    @property
    def takes_jobs(self) -> bool:
        """Whether there is a worker that is ready, and not about to end."""
        return bool(self.pid) and self.is_ready and not self.is_draining

    @property
    def recycle_reason(self) -> RecycleReason:
        """Why the worker wants to be replaced between two jobs; it works on until the master asks it to drain."""
        return RecycleReason(self._words[self._at + _RECYCLE])

    def want_recycle(self, reason: RecycleReason) -> None:
        self._words[self._at + _RECYCLE] = reason.value

    @property
    def jobs_done(self) -> int:
        return sum(self._words[self._slots_at + slot * _SLOT_WORDS + _RUN_SEQUENCE] // 2 for slot in range(self.slots))

    @property
    def runs_failed(self) -> int:
        """Of `jobs_done`, those that ended otherwise than succeeded, as far as the clerk has seen them."""
        return self._words[self._at + _FAILED]

    @runs_failed.setter
    def runs_failed(self, runs: int) -> None:
        self._words[self._at + _FAILED] = runs

    # -- the runs: each slot is written by whoever runs a job in it

    def start_run(
        self,
        slot: int,
        lease: int,
        position: int,
        now_ns: int,
        deadline_ns: int,
        thread: int,
        on_loop: int = 0,
        trial_until_ns: int = 0,
    ) -> int:
        """Show that a job starts; returns the sequence number that cancel requests must name."""
        words, at = self._words, self._slots_at + slot * _SLOT_WORDS
        sequence = words[at] + 1
        words[at + _RUN_LEASE] = lease
        words[at + _RUN_POSITION] = position
        words[at + _RUN_SINCE_NS] = now_ns
        words[at + _RUN_DEADLINE_NS] = deadline_ns
        words[at + _RUN_THREAD] = thread
        words[at + _RUN_ON_LOOP] = on_loop
        words[at + _RUN_TRIAL_NS] = trial_until_ns
        words[at] = sequence
        return sequence

    def end_run(self, slot: int, sequence: int) -> None:
        self._words[self._slots_at + slot * _SLOT_WORDS] = sequence + 1

    def run(self, slot: int) -> Run | None:
        """The job that runs in this slot now; None also when it changed while being read."""
        at = self._slots_at + slot * _SLOT_WORDS
        sequence = self._words[at]
        if sequence % 2 == 0:
            return None
        seen = Run(slot, sequence, *self._words[at + _RUN_LEASE : at + _RUN_TRIAL_NS + 1].tolist())
        return seen if self._words[at] == sequence else None

    def runs(self) -> tuple[Run, ...]:
        """All that run now."""
        return tuple(run for slot in range(self.slots) if (run := self.run(slot)) is not None)

    def runs_of(self, entry: LeaseEntry) -> tuple[Run, ...]:
        """Those of this lease. None if it is not shown any more: the runs may be of the next one in its entry."""
        runs = tuple(run for run in self.runs() if run.lease == entry.index)
        return runs if self._still_shows(entry) else ()

    @property
    def last_run(self) -> tuple[int, int]:
        """The entry of the lease, and the position, of the job that was started last, whether it still runs or not. Of
        a process that is dead: its words change no more."""
        at = self._last_started_at
        return self._words[at + _RUN_LEASE], self._words[at + _RUN_POSITION]

    @property
    def last_start_ns(self) -> int:
        """When a job was last started in any slot, whether it still runs or not; 0: never."""
        return self._words[self._last_started_at + _RUN_SINCE_NS]

    @property
    def _last_started_at(self) -> int:
        """Where the words begin of the slot in which a job was started last."""
        slots = range(self._slots_at, self._leases_at, _SLOT_WORDS)
        return max(slots, key=lambda at: self._words[at + _RUN_SINCE_NS])

    # -- cancel requests: written by master and monitor, read by the handler's context

    def ask_cancel(self, run: Run, reason: CancelReason) -> None:
        """Ask this run to stop, unless it has ended: the words are then the slot's next. The first reason wins."""
        at = self._slots_at + run.slot * _SLOT_WORDS
        if self._words[at] == run.sequence and self.cancel_reason(run.slot, run.sequence) is CancelReason.NONE:
            self._words[at + _CANCEL_REASON] = reason.value
            self._words[at + _CANCEL_SEQUENCE] = run.sequence

    def cancel_reason(self, slot: int, sequence: int) -> CancelReason:
        words, at = self._words, self._slots_at + slot * _SLOT_WORDS
        if words[at + _CANCEL_SEQUENCE] != sequence:
            return CancelReason.NONE
        return CancelReason(words[at + _CANCEL_REASON])

    # -- leases: shown by the clerk, stamped by the monitor

    def show_lease(self, lease_id: UUID, count: int, sent_ns: int) -> int:
        """Show a claimed lease; returns its entry. ValueError when all entries are taken."""
        for index in range(self.leases_limit):
            at = self._lease_at(index)
            if self._words[at + _LEASE_HIGH] == 0:
                self._words[at + _LEASE_LOW] = lease_id.int & _HALF
                self._words[at + _LEASE_RENEWED_NS] = sent_ns
                self._words[at + _LEASE_CLAIMED_NS] = sent_ns
                self._words[at + _LEASE_COUNT] = count
                self._words[at + _LEASE_STARTED] = 0
                self._words[at + _LEASE_KEEP] = 0
                self._words[at + _LEASE_LOST] = 0
                self._words[at + _LEASE_HIGH] = lease_id.int >> 64
                return index
        raise ValueError(f"a worker holds at most {self.leases_limit} leases")

    def hide_lease(self, index: int) -> None:
        """Stop showing a lease: it is settled, released or lost, and must not be renewed any more."""
        self._words[self._lease_at(index) + _LEASE_HIGH] = 0

    def leases(self) -> Iterator[LeaseEntry]:
        words = self._words
        for index in range(self.leases_limit):
            at = self._lease_at(index)
            high = words[at + _LEASE_HIGH]
            if high == 0:
                continue
            entry = LeaseEntry(
                index,
                UUID(int=high << 64 | words[at + _LEASE_LOW]),
                words[at + _LEASE_RENEWED_NS],
                words[at + _LEASE_COUNT],
                words[at + _LEASE_STARTED],
                words[at + _LEASE_LOST] == 1,
                words[at + _LEASE_CLAIMED_NS],
            )
            if words[at + _LEASE_HIGH] == high:
                yield entry

    def renewed_ns(self, index: int) -> int:
        """When the claim or the last renewal that succeeded was *sent*: the lease is ours for its TTL from then."""
        return self._words[self._lease_at(index) + _LEASE_RENEWED_NS]

    def stamp_renewal(self, entry: LeaseEntry, sent_ns: int) -> None:
        if self._still_shows(entry):
            self._words[self._lease_at(entry.index) + _LEASE_RENEWED_NS] = sent_ns

    def mark_lost(self, entry: LeaseEntry) -> None:
        if self._still_shows(entry):
            self._words[self._lease_at(entry.index) + _LEASE_LOST] = 1

    def lose(self, index: int) -> None:
        """Said by the worker itself, which has found its lease gone: what else runs of it is to stop."""
        self._words[self._lease_at(index) + _LEASE_LOST] = 1
        for run in self.runs():
            if run.lease == index:
                self.ask_cancel(run, CancelReason.LEASE_LOST)

    def is_lost(self, index: int) -> bool:
        return self._words[self._lease_at(index) + _LEASE_LOST] == 1

    def show_count(self, index: int, count: int) -> None:
        self._words[self._lease_at(index) + _LEASE_COUNT] = count

    # -- who may start: the runner says where it is, the monitor may draw a line

    def may_start(self, index: int, position: int, renewed_since_ns: int) -> bool:
        """Show that a position starts, then look whether anybody objects; in this order, see `draw_line`.

        False, and not shown any more: it is beyond a line, or the lease is lost, or was not renewed since then.
        """
        words, at = self._words, self._leases_at + index * _LEASE_WORDS
        words[at + _LEASE_STARTED] = position
        beyond = words[at + _LEASE_KEEP]
        if (
            (not beyond or position < beyond)
            and not words[at + _LEASE_LOST]
            and words[at + _LEASE_RENEWED_NS] > renewed_since_ns
        ):
            return True
        words[at + _LEASE_STARTED] = position - 1
        return False

    def show_started(self, index: int, position: int) -> None:
        self._words[self._lease_at(index) + _LEASE_STARTED] = position

    def started(self, index: int) -> int:
        return self._words[self._lease_at(index) + _LEASE_STARTED]

    def draw_line(self, entry: LeaseEntry, keep: int) -> None:
        """Forbid to start positions of a lease beyond `keep`: they are going back.

        The line and the runner's `may_start` are Dekker's algorithm: each writes its own word, then reads the
        other's. The runner's two steps follow each other at once; the one who draws the line waits some milliseconds
        between its own two, far longer than a store stays in a CPU's buffer, so no fence is needed on the hot path.
        """
        if self._still_shows(entry):
            self._words[self._lease_at(entry.index) + _LEASE_KEEP] = keep + 1

    def erase_line(self, index: int) -> None:
        self._words[self._lease_at(index) + _LEASE_KEEP] = 0

    def line(self, index: int) -> int | None:
        """The last position that may start; None: no line."""
        keep = self._words[self._lease_at(index) + _LEASE_KEEP]
        return keep - 1 if keep else None

    def _lease_at(self, index: int) -> int:
        return self._leases_at + index * _LEASE_WORDS

    def _still_shows(self, entry: LeaseEntry) -> bool:
        at = self._lease_at(entry.index)
        shown = self._words[at + _LEASE_HIGH] << 64 | self._words[at + _LEASE_LOW]
        return shown == entry.lease_id.int
