"""What master and monitor say to each other, and what the master hands to its children.

JSON in packets over a socket pair: a message is whole or not there, and a closed end means that the other one is gone.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any

from pgworker.linux.board import Board
from pgworker.linux.stacks import StackFile

_PACKET = 128 * 1024


@dataclass(frozen=True, slots=True)
class Death:
    """A worker process has ended: who it was, how it ended, and what that means for the job it ran.

    `verdict` is what its end counts as, `verdicts` what the running execution in each slot does. `stack` is what
    faulthandler or the kill ladder left.
    """

    row: int
    pid: int
    worker_id: str
    how: str
    verdict: str
    verdicts: list[str]
    stack: str


class ControlChannel:
    """One end of the pair. Sending never blocks: a message that doesn't fit is sent again by its sender."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self.is_closed = False

    @classmethod
    def pair(cls) -> tuple[ControlChannel, ControlChannel]:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(left), cls(right)

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, kind: str, **values: Any) -> bool:
        """False: not sent, the other end is full or gone."""
        try:
            packet = json.dumps({"kind": kind, **values}, ensure_ascii=False)  # \ufffd would be six bytes, not three
            self._end.send(packet.encode(), socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def send_death(self, death: Death) -> bool:
        return self.send("death", **asdict(death))

    def receive(self) -> list[dict[str, Any]]:
        """Every message that is there; afterwards `is_closed` tells whether the other end is gone."""
        messages: list[dict[str, Any]] = []
        while True:
            try:
                packet = self._end.recv(_PACKET)
            except BlockingIOError:
                return messages
            except ConnectionError:
                packet = b""
            if not packet:
                self.is_closed = True
                return messages
            messages.append(json.loads(packet))

    def close(self) -> None:
        self._end.close()


@dataclass(frozen=True, slots=True)
class Shared:
    """What all processes of a pool have in common, made by the master before the first fork.

    `wakes` is a pipe and `stacks` a file per place for a worker, spare ones too: nothing can be shared with a monitor
    that was forked before it was made. `events` goes from the workers to the monitor; `listening` is the socket of the
    metrics port, bound once for every monitor that there will be; `app_fds` is what a preloaded app has opened.
    """

    board: Board
    wakes: tuple[tuple[int, int], ...]
    stacks: tuple[StackFile, ...]
    monitor_stack: StackFile
    events_in: socket.socket
    events_out: socket.socket
    listening: socket.socket | None
    app_fds: frozenset[int] = frozenset()
