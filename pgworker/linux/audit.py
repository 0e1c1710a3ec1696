"""What a fork would pass on: looked at before the first fork, when an app has been imported in the parent.

A child has one thread, whatever the parent has, and a connection of which every child has the same end talks nonsense.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from pgworker.linux.fork import lasting_threads


@dataclass(frozen=True, slots=True)
class Obstacles:
    """What is in the way of a fork, in words; and the descriptors that children may share."""

    obstacles: tuple[str, ...]
    opened: frozenset[int]


def open_descriptors() -> frozenset[int]:
    """The descriptors of this process that are open now."""
    found = frozenset(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    return frozenset(fd for fd in found if _is_open(fd))  # not the one that listed the directory


def audit(before: frozenset[int]) -> Obstacles:
    """Threads beside this one, and what was opened since `open_descriptors` gave `before`."""
    opened = open_descriptors() - before
    threads = [f"a thread ({name})" for name in lasting_threads()]
    connections = [found for fd in sorted(opened) if (found := _connection(fd)) is not None]
    return Obstacles((*threads, *connections), opened)


def _is_open(fd: int) -> bool:
    with suppress(OSError):
        os.fstat(fd)
        return True
    return False


def _connection(fd: int) -> str | None:
    """None if this is no connected socket. Listening ones, and those that wait for a first datagram, can be shared."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return None
    with closing(socket.socket(fileno=os.dup(fd))) as end:
        try:
            peer = end.getpeername()
        except OSError:  # not connected
            return None
    return f"a connection to {_address(peer)} (descriptor {fd})"


def _address(peer: object) -> str:
    if isinstance(peer, tuple) and len(peer) >= 2:
        return f"{peer[0]}:{peer[1]}"
    text = peer.decode(errors="replace") if isinstance(peer, bytes) else str(peer)
    return text.lstrip("\0") or "its own other end"
