"""A network between pgworker and PostgreSQL that can be made bad: a TCP proxy that understands their protocol.

    with Proxy.before(dsn) as proxy:
        connection = psycopg.connect(proxy.dsn(dsn), application_name="pgworker worker 0")
        proxy.drop_reply("^commit")           # the next commit happens, and nobody hears of it
        proxy.blackhole("pgworker worker *")  # silence for workers, from now on
        proxy.heal()

Every fault takes `only`, a pattern of application names as in file names: which connections it is for. The proxy runs
in a thread of its own; its methods may be called from any other, and have taken effect when they return. It offers no
encryption. What it swallows is acknowledged by the kernel, as by a peer that hangs; a cable that is pulled is `hosts`'.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.chaos.wire import CANCEL, GSS, NO_ENCRYPTION, SSL, Conversation, Frames, Round, application_name_of, code_of

Match = str | Callable[[str], bool]
"""Of a statement: a regular expression that is found in its text, whatever the case; or a predicate, called in the
thread of the proxy."""
Loss = Literal["reply", "request", "silence"]
Answer = TypeVar("Answer")

_CHUNK = 1 << 16
_SLICE = 0.05  # seconds of a throttled connection that go at once
_START = 10.0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A round whose reply, or whose request, never arrived."""

    application_name: str
    texts: tuple[str, ...]
    has_failed: bool
    """The server answered with an error: nothing of it was committed."""
    before: tuple[str, ...] = ()
    """What the same transaction had executed before, if it was a reply."""


@dataclass(slots=True)
class _Rule:
    kind: Loss
    matches: Callable[[str], bool]
    during: Callable[[str], bool] | None
    only: str
    times: int | None

    def catches(self, name: str, text: str, talk: Conversation) -> bool:
        if self.times == 0 or not fnmatchcase(name, self.only) or not self.matches(text):
            return False
        if self.during is not None and not any(map(self.during, talk.transaction)):
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Proxy:
    """Listens on 127.0.0.1 or another address, and passes on to `target`: (host, port); a host "/…" has Unix sockets.

    A new `target` is for the connections to come, such as after a failover; `cut` the others.
    """

    def __init__(self, host: str, port: int, *, listen: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self.counts: Counter[str] = Counter()
        """What was done: connections `accepted`, `cut` and `refused`, replies `reply` and requests `request` dropped,
        bytes `swallowed`; `unreachable`: the target did not answer."""
        self.dropped: list[Dropped] = []
        self._listening = socket.create_server((listen, 0), backlog=1000)
        self.address, self.port = self._listening.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._links: set[_Link] = set()
        self._rules: list[_Rule] = []
        self._silenced: list[str] = []
        self._delays: list[tuple[str, float]] = []
        self._rates: list[tuple[str, float]] = []
        self._is_refusing = False
        self._healed = asyncio.Event()

    @classmethod
    def before(cls, dsn: str, *, listen: str = "127.0.0.1") -> Proxy:
        """A proxy for the server that this conninfo string names."""
        given = conninfo_to_dict(dsn)
        return cls(str(given["host"]), int(given.get("port") or 5432), listen=listen)

    def dsn(self, dsn: str) -> str:
        """The same database, user and so on through this proxy."""
        return make_conninfo(dsn, host=self.address, port=self.port)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START)
        assert not self._thread.is_alive()
        self._loop.close()

    # -- faults

    def cut(self, only: str = "*", *, how: Literal["rst", "fin"] = "rst") -> int:
        """End the connections there are, on both sides; how many."""

        async def cut() -> int:
            links = [link for link in self._links if link.is_one_of(only)]
            for link in links:
                link.cut(how)
            self.counts["cut"] += len(links)
            return len(links)

        return self._do(cut)

    def refuse(self) -> None:
        """Reset new connections at once, until `heal`."""
        self._set(lambda: setattr(self, "_is_refusing", True))

    def blackhole(self, only: str = "*", *, accepts: bool = True) -> None:
        """Swallow all bytes in both directions; connections stay open, and nobody hears of an end. Until `heal`, and
        for connections that have lost something even longer. `accepts`: new ones are accepted, and hear nothing."""

        def silence() -> None:
            self._silenced.append(only)
            self._healed.clear()
            self._is_refusing |= not accepts

        self._set(silence)

    def delay(self, seconds: float, only: str = "*") -> None:
        """Make round trips take so much longer, half of it in each direction."""
        self._set(lambda: self._delays.append((only, seconds / 2)))

    def throttle(self, bytes_per_second: float, only: str = "*") -> None:
        """Let so many bytes through, in each direction of each connection."""
        self._set(lambda: self._rates.append((only, bytes_per_second)))

    def drop_reply(self, match: Match, times: int | None = 1, *, only: str = "*", during: Match | None = None) -> None:
        """Let the server do the work of what matches, up to its ReadyForQuery, deliver nothing of that, and cut.

        A statement is found in a simple query and in a pipeline, by the text that was prepared; what is lost is the
        answer of the simple query, or of the pipeline from its Sync on. `during`: only in a transaction with such a
        statement. `times` None: always.
        """
        self._add_rule("reply", match, times, only, during)

    def drop_request(
        self, match: Match, times: int | None = 1, *, only: str = "*", during: Match | None = None
    ) -> None:
        """As `drop_reply`, but cut before the server sees what matches."""
        self._add_rule("request", match, times, only, during)

    def silence_from(self, match: Match, times: int | None = 1, *, only: str = "*") -> None:
        """Swallow what matches, and from there on all bytes of its connection, which stays open."""
        self._add_rule("silence", match, times, only, None)

    def heal(self) -> None:
        """End every fault; what is cut or has lost bytes stays so."""

        def heal() -> None:
            for faults in (self._rules, self._silenced, self._delays, self._rates):
                faults.clear()
            self._is_refusing = False
            self._healed.set()

        self._set(heal)

    def names(self) -> list[str]:
        """The application names of the connections there are, in order; empty for one that has not said so yet."""

        async def names() -> list[str]:
            return sorted(link.name for link in self._links)

        return self._do(names)

    # -- in the thread

    def _add_rule(self, kind: Loss, match: Match, times: int | None, only: str, during: Match | None) -> None:
        rule = _Rule(kind, _predicate(match), None if during is None else _predicate(during), only, times)
        self._set(lambda: self._rules.append(rule))

    def _set(self, change: Callable[[], object]) -> None:
        async def set_() -> None:
            change()

        self._do(set_)

    def _do(self, what: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        return asyncio.run_coroutine_threadsafe(what(), self._loop).result(_START)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._listening, limit=_CHUNK)

    async def _close(self) -> None:
        self._server.close()
        for link in list(self._links):
            link.cut("rst")
        ours = asyncio.current_task()
        rest = [task for task in asyncio.all_tasks() if task is not ours]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            self.counts["refused"] += 1
            _abort(writer)
            return
        self.counts["accepted"] += 1
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side has gone, so the other goes too
        except asyncio.CancelledError:
            return  # the proxy ends
        finally:
            link.cut("fin")
            self._links.discard(link)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the target; OSError if it does not answer."""
        host, port = self.target
        try:
            if host.startswith("/"):
                return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}", limit=_CHUNK)
            return await asyncio.open_connection(host, port, limit=_CHUNK)
        except OSError:
            self.counts["unreachable"] += 1
            raise

    def is_silent(self, name: str) -> bool:
        return any(fnmatchcase(name, only) for only in self._silenced)

    def delay_of(self, name: str) -> float:
        """Seconds, in one direction."""
        return next((delay for only, delay in reversed(self._delays) if fnmatchcase(name, only)), 0.0)

    def rate_of(self, name: str) -> float | None:
        """Bytes per second, or None for as many as there are."""
        return next((rate for only, rate in reversed(self._rates) if fnmatchcase(name, only)), None)

    def rule_for(self, name: str, text: str, talk: Conversation) -> Loss | None:
        """What is to be dropped because of this statement."""
        return next((rule.kind for rule in self._rules if rule.catches(name, text, talk)), None)

    def note(self, kind: Loss, name: str, round_: Round) -> None:
        self.counts[kind] += 1
        self.dropped.append(Dropped(name, tuple(round_.texts), round_.has_failed, tuple(round_.before)))

    async def until_healed(self) -> None:
        await self._healed.wait()


class _Link:
    """One connection of a client, and the one to the server that it is passed on to."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = ""
        self._proxy = proxy
        self._client, self._to_client = reader, _Pipe(proxy, self, writer)
        self._to_server: _Pipe | None = None
        self._talk = Conversation()
        self._doomed: Round | None = None
        self._has_lost_bytes = False

    def is_one_of(self, only: str) -> bool:
        return fnmatchcase(self.name, only)

    def cut(self, how: Literal["rst", "fin"]) -> None:
        for pipe in (self._to_client, self._to_server):
            if pipe is not None:
                pipe.end(how)

    async def run(self) -> None:
        """Pass on in both directions until one of them has ended."""
        startup = await self._read_startup()
        if self._swallows(startup):
            await self._swallow_all()
            return
        server, writer = await self._proxy.connect()
        self._to_server = _Pipe(self._proxy, self, writer)
        await self._to_server.send(startup)
        ways = [asyncio.ensure_future(way) for way in (self._pass_requests(server), self._pass_replies(server))]
        if code_of(startup) == CANCEL:  # the server says no word, and closes when it has done so
            ways.pop(0).cancel()
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
            await self._to_client.flush()
            await self._to_server.flush()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._to_client.task.cancel()
            self._to_server.task.cancel()

    async def _read_startup(self) -> bytes:
        while True:
            head = await self._client.readexactly(4)
            packet = head + await self._client.readexactly(int(struct.unpack("!i", head)[0]) - 4)
            if code_of(packet) not in (SSL, GSS):
                self.name = application_name_of(packet) if code_of(packet) != CANCEL else ""
                return packet
            if not self._swallows(packet):
                await self._to_client.send(NO_ENCRYPTION)

    async def _swallow_all(self) -> None:
        while data := await self._client.read(_CHUNK):
            self._swallows(data)
        await self._proxy.until_healed()

    async def _pass_requests(self, _: asyncio.StreamReader) -> None:
        frames = Frames()
        assert self._to_server is not None
        while data := await self._client.read(_CHUNK):
            if self._swallows(data):
                continue
            passed = bytearray()
            for message in frames.feed(data):
                if not self._passes(message):
                    await self._to_server.send(bytes(passed))
                    if self._has_lost_bytes:
                        passed.clear()
                        break
                    return
                passed += message
            await self._to_server.send(bytes(passed))
        await self._until_heard()

    def _passes(self, message: bytes) -> bool:
        """Whether the server may see this message of the client."""
        executed = self._talk.hear_client(message)
        if executed is None:
            return True
        round_, text = executed
        dropped = self._proxy.rule_for(self.name, text, self._talk)
        if dropped == "request":
            self._proxy.note("request", self.name, round_)
            return False
        if dropped == "silence":
            self._has_lost_bytes = True
            return False
        if dropped == "reply" and self._doomed is None:
            self._doomed = round_
        return True

    async def _pass_replies(self, server: asyncio.StreamReader) -> None:
        frames = Frames()
        while data := await server.read(_CHUNK):
            if self._swallows(data):
                continue
            passed = bytearray()
            for message in frames.feed(data):
                is_withheld = self._doomed is not None and self._talk.answered is self._doomed
                is_withheld &= not self._talk.is_open(self._doomed)  # before its Sync nothing is committed
                ended = self._talk.hear_server(message)
                if not is_withheld:
                    passed += message
                elif ended is not None:
                    await self._to_client.send(bytes(passed))
                    self._proxy.note("reply", self.name, ended)
                    return
            await self._to_client.send(bytes(passed))
        await self._until_heard()

    def _swallows(self, data: bytes) -> bool:
        if not self._has_lost_bytes and not self._proxy.is_silent(self.name):
            return False
        self._has_lost_bytes = True
        self._proxy.counts["swallowed"] += len(data)
        return True

    async def _until_heard(self) -> None:
        """One side has ended, which the other hears of when the network lets it."""
        if self._proxy.is_silent(self.name):
            await self._proxy.until_healed()


class _Pipe:
    """One direction of a connection, with its latency and its rate."""

    def __init__(self, proxy: Proxy, link: _Link, writer: asyncio.StreamWriter) -> None:
        self._proxy, self._link, self._writer = proxy, link, writer
        self._queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1000)
        self.task = asyncio.ensure_future(self._write_all())

    async def send(self, data: bytes) -> None:
        """Pass on, in order; waits while the other side does not read."""
        if data:
            await self._queue.put((time.monotonic() + self._proxy.delay_of(self._link.name), data))

    async def flush(self) -> None:
        await self._queue.join()

    def end(self, how: Literal["rst", "fin"]) -> None:
        self.task.cancel()
        if how == "rst":
            _abort(self._writer)
        else:
            self._writer.close()

    async def _write_all(self) -> None:
        while True:
            due, data = await self._queue.get()
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            with suppress(OSError):  # nobody reads any more: whoever reads from it hears of that
                await self._write(data)
            self._queue.task_done()

    async def _write(self, data: bytes) -> None:
        while data:
            rate = self._proxy.rate_of(self._link.name)
            now = len(data) if rate is None else max(1, round(rate * _SLICE))
            self._writer.write(data[:now])
            await self._writer.drain()
            if rate is not None:
                await asyncio.sleep(now / rate)
            data = data[now:]


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset."""
    if (wire := writer.get_extra_info("socket")) is not None and wire.family != socket.AF_UNIX:
        with suppress(OSError):
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _predicate(match: Match) -> Callable[[str], bool]:
    if callable(match):
        return match
    pattern = re.compile(match, re.IGNORECASE)
    return lambda text: pattern.search(text) is not None
