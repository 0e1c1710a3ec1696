"""What a connection to PostgreSQL says, message by message: enough to know which statements end with which reply.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

CANCEL, SSL, GSS = 80877102, 80877103, 80877104
"""What a first packet asks for, where it is no startup: a version of the protocol that there is not."""
NO_ENCRYPTION = b"N"

_LENGTH = struct.Struct("!i")
_HEAD = 5  # the kind, and the length of what follows, itself included


def code_of(first: bytes) -> int:
    """The version of the protocol, or what else a first packet asks for."""
    return int(_LENGTH.unpack_from(first, 4)[0])


def application_name_of(startup: bytes) -> str:
    """As a startup packet names it; empty if it does not."""
    words = startup[8:].split(b"\0")
    return dict(zip(words[::2], words[1::2], strict=False)).get(b"application_name", b"").decode(errors="replace")


class Frames:
    """Cuts a stream of bytes into messages, whole ones only."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that these bytes complete, each with its kind and its length in front."""
        self._rest += data
        begin = 0
        try:
            while len(self._rest) - begin >= _HEAD:
                end = begin + 1 + int(_LENGTH.unpack_from(self._rest, begin + 1)[0])
                if end > len(self._rest):
                    break
                message = bytes(self._rest[begin:end])
                begin = end
                yield message
        finally:
            del self._rest[:begin]


@dataclass(slots=True)
class Round:
    """What the server answers with one ReadyForQuery: a simple query, or a pipeline up to its Sync."""

    texts: list[str] = field(default_factory=list)
    """The statements that it executes."""
    has_failed: bool = False


class Conversation:
    """Follows one connection: the texts of its prepared statements, the rounds on their way, and its transaction."""

    def __init__(self) -> None:
        self._statements: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        self._rounds: deque[Round] = deque()
        self._open: Round | None = None  # the last one, until its Sync
        self._before: list[str] = []

    @property
    def answered(self) -> Round | None:
        """The round that the server's next message belongs to."""
        return self._rounds[0] if self._rounds else None

    def is_open(self, round_: Round | None) -> bool:
        """Whether the client has not sent the Sync of this pipeline yet."""
        return round_ is not None and round_ is self._open

    @property
    def transaction(self) -> list[str]:
        """The statements of the transaction so far, with what is on its way."""
        return [*self._before, *(text for round_ in self._rounds for text in round_.texts)]

    def hear_client(self, message: bytes) -> tuple[Round, str] | None:
        """The statement that this message executes, and the round that it is in; None: it executes nothing."""
        kind, body = message[:1], message[_HEAD:]
        if kind == b"Q":
            self._rounds.append(asked := Round([_text(body.partition(b"\0")[0])]))
            return asked, asked.texts[0]
        if kind == b"F":
            self._rounds.append(Round(["(function call)"]))
        elif kind == b"S":
            self._open_round()
            self._open = None
        elif kind == b"P":
            name, sql, _ = body.split(b"\0", 2)
            self._statements[name] = _text(sql)
        elif kind == b"B":
            portal, name, _ = body.split(b"\0", 2)
            self._portals[portal] = self._statements.get(name, "")
        elif kind == b"C" and body[:1] == b"S":
            self._statements.pop(body[1:-1], None)
        if kind in (b"P", b"B", b"D", b"C"):
            self._open_round()
        if kind != b"E":
            return None
        text = self._portals.get(body.partition(b"\0")[0], "")
        executing = self._open_round()
        executing.texts.append(text)
        return executing, text

    def hear_server(self, message: bytes) -> Round | None:
        """The round that this message, a ReadyForQuery, ends."""
        kind = message[:1]
        if kind == b"E" and self._rounds:
            self._rounds[0].has_failed = True
        if kind != b"Z":
            return None
        ended = self._rounds.popleft() if self._rounds else Round()
        self._before = [] if message[_HEAD:] == b"I" else self._before + ended.texts
        return ended

    def _open_round(self) -> Round:
        if self._open is None:
            self._rounds.append(opened := Round())
            self._open = opened
        return self._open


def _text(sql: bytes) -> str:
    return sql.decode(errors="replace")
