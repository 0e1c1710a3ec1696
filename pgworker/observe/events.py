"""What workers tell the monitor about finished jobs: one datagram per settle, counted up by queue, task and outcome.

A datagram that finds the socket full is dropped and counted: measuring must never hold up the work.
"""

from __future__ import annotations

import socket
from bisect import bisect_left
from dataclasses import dataclass

import msgspec

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds, in seconds, of the histogram of durations; one more is above them all."""

_GROUPS_PER_DATAGRAM = 50
MAX_DATAGRAM = 65536


class Group(msgspec.Struct, array_like=True):
    """Jobs of one queue, task and outcome: how many, how long together, and how many in each bucket."""

    queue: str
    task: str
    outcome: str
    jobs: int
    seconds: float
    buckets: list[int]


class Report(msgspec.Struct, array_like=True):
    """One datagram. `dropped` counts those that were lost before it."""

    worker: int
    dropped: int
    groups: list[Group]


@dataclass(slots=True)
class Reporter:
    """The worker's end."""

    worker: int
    channel: socket.socket
    dropped: int = 0

    def report(self, finished: list[tuple[str, str, str, float]]) -> None:
        """Tell of jobs as (queue, task, outcome, seconds). Never blocks, never raises for a full or closed socket."""
        groups = _grouped(finished)
        for first in range(0, len(groups), _GROUPS_PER_DATAGRAM):
            report = Report(self.worker, self.dropped, groups[first : first + _GROUPS_PER_DATAGRAM])
            try:
                self.channel.send(msgspec.json.encode(report), socket.MSG_DONTWAIT)
                self.dropped = 0
            except OSError:
                self.dropped += 1


def receive(channel: socket.socket) -> list[Report]:
    """The monitor's end: every report that is there."""
    decoder = msgspec.json.Decoder(Report)
    reports: list[Report] = []
    while True:
        try:
            datagram = channel.recv(MAX_DATAGRAM, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return reports
        if not datagram:
            return reports
        reports.append(decoder.decode(datagram))


def _grouped(finished: list[tuple[str, str, str, float]]) -> list[Group]:
    groups: dict[tuple[str, str, str], Group] = {}
    for queue, task, outcome, seconds in finished:
        group = groups.get((queue, task, outcome))
        if group is None:
            group = Group(queue, task, outcome, 0, 0.0, [0] * (len(BUCKETS) + 1))
            groups[queue, task, outcome] = group
        group.jobs += 1
        group.seconds += seconds
        group.buckets[bisect_left(BUCKETS, seconds)] += 1
    return list(groups.values())
