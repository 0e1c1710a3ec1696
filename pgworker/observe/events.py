"""What workers tell the monitor of the executions that they have ended: fixed-size records over a socket pair.

One record per queue and task and trip to the database: how many executions by outcome, how long they took, and how long
their jobs had waited. A datagram that finds the socket full is dropped and counted: measuring must never hold up work.
"""

from __future__ import annotations

import socket
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from pgworker.model.names import MAX_QUEUE_LENGTH, MAX_TASK_LENGTH
from pgworker.model.state import Outcome

DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds, in seconds, of the histogram of how long handlers ran; one more is above them all."""

WAIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Likewise, of how long jobs waited."""

OUTCOMES = tuple(Outcome)
"""The outcomes in the order in which a tally counts them."""

_PLACE = {outcome: place for place, outcome in enumerate(OUTCOMES)}
_SUCCEEDED = _PLACE[Outcome.SUCCEEDED]

# A tally is one list of numbers, so that adding and packing it are one step each.
_SECONDS = len(OUTCOMES)
_WAITED = _SECONDS + 1
_DURATIONS = _WAITED + 1
_WAITS = _DURATIONS + len(DURATION_BUCKETS) + 1
_NUMBERS = _WAITS + len(WAIT_BUCKETS) + 1

_HEAD = struct.Struct("<HHI")
_RECORD = struct.Struct(f"<{MAX_QUEUE_LENGTH}s{MAX_TASK_LENGTH}s{len(OUTCOMES)}I2d{_NUMBERS - _DURATIONS}I")
_MOST_RECORDS = 32
_MOST_LEASES = (1 << 16) - 1
_LARGEST = _HEAD.size + _MOST_RECORDS * _RECORD.size


class Tally:
    """Executions of one queue and task, counted. Times are in seconds."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: list[float] | None = None) -> None:
        self.numbers: list[float] = [0] * _NUMBERS if numbers is None else numbers

    def add(self, other: Tally) -> None:
        self.numbers = [have + more for have, more in zip(self.numbers, other.numbers, strict=True)]

    def end(self, outcome: Outcome) -> None:
        """Count one that ended elsewhere: nobody knows how long it took."""
        self.numbers[_PLACE[outcome]] += 1

    @property
    def executions(self) -> int:
        return int(sum(self.numbers[:_SECONDS]))

    @property
    def by_outcome(self) -> list[float]:
        """In the order of `OUTCOMES`."""
        return self.numbers[:_SECONDS]

    @property
    def durations(self) -> tuple[list[float], float]:
        """How many in each of `DURATION_BUCKETS` and above them, and how long all together."""
        return self.numbers[_DURATIONS:_WAITS], self.numbers[_SECONDS]

    @property
    def waits(self) -> tuple[list[float], float]:
        """Likewise for `WAIT_BUCKETS`."""
        return self.numbers[_WAITS:], self.numbers[_WAITED]


class Record(NamedTuple):
    queue: str
    task: str
    tally: Tally


class Report(NamedTuple):
    """One datagram. `dropped`: executions of this worker that were in datagrams which were lost before it.

    `leases_lost`: so many leases it has found gone when it settled.
    """

    worker: int
    leases_lost: int
    dropped: int
    records: list[Record]


@dataclass(slots=True)
class Reporter:
    """The worker's end: count what has ended, then send it."""

    worker: int
    channel: socket.socket
    dropped: int = 0
    leases_lost: int = 0
    _tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    _last: tuple[str, str, list[float]] = ("", "", [])

    def count(self, queue: str, task: str, outcome: Outcome, seconds: float, waited: float) -> None:
        """An execution has ended: how long its handler ran, and how long its job had been due before that."""
        last_queue, last_task, numbers = self._last
        if task != last_task or queue != last_queue:  # cheaper than the dict: most are as the one before
            numbers = self._tallies.setdefault((queue, task), Tally()).numbers
            self._last = queue, task, numbers
        numbers[_SUCCEEDED if outcome is Outcome.SUCCEEDED else _PLACE[outcome]] += 1
        numbers[_SECONDS] += seconds
        numbers[_WAITED] += waited
        numbers[_DURATIONS + bisect_left(DURATION_BUCKETS, seconds)] += 1
        numbers[_WAITS + bisect_left(WAIT_BUCKETS, waited)] += 1

    def lose(self, queue: str, task: str, outcome: Outcome) -> None:
        """One that was counted since the last `send` could not be recorded: it counts as lost instead."""
        numbers = self._tallies.setdefault((queue, task), Tally()).numbers
        if numbers[_PLACE[outcome]]:
            numbers[_PLACE[outcome]] -= 1
            numbers[_PLACE[Outcome.LOST]] += 1

    def lose_lease(self) -> None:
        self.leases_lost = min(self.leases_lost + 1, _MOST_LEASES)

    def send(self) -> None:
        """Tell what was counted since the last time. Never blocks, never raises for a full or closed socket."""
        if not self._tallies:
            return
        tallies, self._tallies, self._last = self._tallies, {}, ("", "", [])
        entries = iter(tallies.items())
        while some := list(islice(entries, _MOST_RECORDS)):
            packed = [_RECORD.pack(queue.encode(), task.encode(), *one.numbers) for (queue, task), one in some]
            try:
                self.channel.send(
                    b"".join((_HEAD.pack(self.worker, self.leases_lost, self.dropped), *packed)), socket.MSG_DONTWAIT
                )
                self.leases_lost = self.dropped = 0
            except OSError:
                self.dropped += sum(one.executions for _, one in some)


def receive(channel: socket.socket) -> Iterator[Report]:
    """The monitor's end: waits for reports, until every worker's end is closed. What is no report is passed over."""
    while datagram := channel.recv(_LARGEST):
        if len(datagram) >= _HEAD.size and (len(datagram) - _HEAD.size) % _RECORD.size == 0:
            yield _unpacked(datagram)


def _unpacked(datagram: bytes) -> Report:
    worker, leases_lost, dropped = _HEAD.unpack_from(datagram)
    records = [
        Record(_name(queue), _name(task), Tally(numbers))
        for queue, task, *numbers in _RECORD.iter_unpack(datagram[_HEAD.size :])
    ]
    return Report(worker, leases_lost, dropped, records)


def _name(field_: bytes) -> str:
    return field_.rstrip(b"\0").decode(errors="replace")
