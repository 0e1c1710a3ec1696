"""Failpoints: named places of a running pool at which a process kills, stops or delays itself, or loses its connection.

    settle_jobs.sent=kill@p0.01; take_lease.after=kill@n3; *.commit_sent=cut@p0.001,once; handler.before=delay:0.2

They are off unless a process was started by `tests.chaos.launch`, which hears of them by the environment, and pgworker
has no line for them: `tests.chaos.boundaries` puts them around the driver and a few functions. What a name may be is
printed by `python -m tests.chaos.failpoints --list`.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn, Protocol

import psycopg
import setproctitle
from psycopg.pq.abc import PGconn

FAILPOINTS = "PGWORKER_CHAOS_FAILPOINTS"
"""The variable that arms: failpoints as above. Once there is a file `failpoints` in the directory, that one counts."""
DIRECTORY = "PGWORKER_CHAOS_DIRECTORY"
"""Where the armed processes write what they did, and count together."""
SEED = "PGWORKER_CHAOS_SEED"
"""The dice; each process has its own, of the seed and the order in which the processes came."""

ACTIONS = ("kill", "stop", "delay", "raise", "confuse", "cut", "exit")
ON_CONNECTIONS = ("raise", "confuse", "cut")
"""Actions that need a connection."""
EXIT_CODE = 3
ROLES = ("master", "monitor", "worker", "client")

_SPEC = re.compile(r"(?P<point>[a-z_.*?]+)=(?P<action>[a-z]+)(:(?P<seconds>[0-9.]+))?(@(?P<when>[a-z0-9.,=]+))?")
_CONDITION = re.compile(r"(once)|p([0-9.]+)|n([0-9]+)|in=([a-z]+)|after=([0-9.]+)")


class Misspelt(ValueError):
    """What should be a failpoint is none."""


@dataclass(frozen=True, slots=True)
class Failpoint:
    """What happens at the points whose names match, and when: with a probability, at the nth time that any process of
    the pool comes there, once in the life of the pool, in processes of one role, after so many seconds."""

    point: str
    action: str
    seconds: float = 0.1
    """How long a delay is."""
    probability: float = 1.0
    nth: int = 0
    once: bool = False
    role: str = ""
    after: float = 0.0

    def __str__(self) -> str:
        """As `parse` reads it."""
        conditions = [f"p{self.probability:g}"] * (self.probability < 1) + [f"n{self.nth}"] * (self.nth > 0)
        conditions += ["once"] * self.once + [f"in={self.role}"] * bool(self.role)
        conditions += [f"after={self.after:g}"] * (self.after > 0)
        seconds = f":{self.seconds:g}" if self.action == "delay" else ""
        return f"{self.point}={self.action}{seconds}{'@' if conditions else ''}{','.join(conditions)}"


def parse(text: str) -> tuple[Failpoint, ...]:
    """The failpoints of a variable or file, separated by semicolons or lines. Misspelt: one of them can't be read."""
    return tuple(_read(part.strip()) for part in re.split("[;\n]", text) if part.strip())


def _read(text: str) -> Failpoint:
    found = _SPEC.fullmatch(text)
    if not found or found["action"] not in ACTIONS:
        raise Misspelt(f"{text!r} is not POINT=ACTION[:SECONDS][@CONDITION,...]; actions: {', '.join(ACTIONS)}")
    read: dict[str, object] = {}
    for condition in (found["when"] or "").split(",") if found["when"] else ():
        known = _CONDITION.fullmatch(condition)
        if not known or (known[4] and known[4] not in ROLES):
            raise Misspelt(f"{condition!r} is no condition: p0.01, n3, once, in=monitor, after=2.5")
        once, probability, nth, role, after = known.groups()
        read |= {"once": True} if once else {}
        read |= {"probability": float(probability)} if probability else {}
        read |= {"nth": int(nth)} if nth else {}
        read |= {"role": role} if role else {}
        read |= {"after": float(after)} if after else {}
    if found["seconds"]:
        read["seconds"] = float(found["seconds"])
    return Failpoint(found["point"], found["action"], **read)  # type: ignore[arg-type]  # each has its own type above


class Reach(Protocol):
    """What a boundary calls when it is crossed. Without a connection for points that are not the driver's."""

    def __call__(self, point: str, pgconn: PGconn | None = None) -> None: ...


@dataclass(slots=True)
class Armed:
    """The failpoints of this process and its children, and the directory in which all of them write and count."""

    failpoints: tuple[Failpoint, ...]
    directory: Path
    seed: str
    began: float = field(default_factory=time.monotonic)
    _file_ns: int = 0
    _noted: set[str] = field(default_factory=set)
    _dice: random.Random | None = None
    _pid: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def by_environment(cls, environment: Mapping[str, str]) -> Armed:
        """Misspelt: what is there can't be read. KeyError: nothing says where to write."""
        directory = Path(environment[DIRECTORY])
        directory.mkdir(parents=True, exist_ok=True)
        return cls(parse(environment.get(FAILPOINTS, "")), directory, environment.get(SEED, "0"))

    def reach(self, point: str, pgconn: PGconn | None = None) -> None:
        """Note that a process came here, and do what is armed for this point, if it is time."""
        if self._pid != os.getpid():
            self._begin_process()
        self._read_file()
        if point not in self._noted:
            self._noted.add(point)
            _append(self.directory / "reached", point)
        for failpoint in self.failpoints:
            if fnmatchcase(point, failpoint.point) and self._is_time(failpoint, point):
                self._tell(point, failpoint)
                act(failpoint, point, pgconn)

    def _begin_process(self) -> None:
        """After a fork: no lock of a thread that is not there, and dice of one's own."""
        self._pid, self._lock, self._noted = os.getpid(), threading.Lock(), set()
        self._dice = random.Random(f"{self.seed} {_append(self.directory / 'processes')}")

    def _read_file(self) -> None:
        try:
            changed_ns = os.stat(self.directory / "failpoints").st_mtime_ns  # noqa: PTH116  at each point, so quick
        except FileNotFoundError:
            return
        if changed_ns != self._file_ns:
            self._file_ns = changed_ns
            self.failpoints = parse((self.directory / "failpoints").read_text())

    def _is_time(self, failpoint: Failpoint, point: str) -> bool:
        if failpoint.role and role() != failpoint.role:
            return False
        if failpoint.after and time.monotonic() - self.began < failpoint.after:
            return False
        with self._lock:
            assert self._dice is not None
            if failpoint.probability < 1 and self._dice.random() >= failpoint.probability:
                return False
        name = re.sub(r"[^a-z_.]", "-", point)
        if failpoint.nth and _append(self.directory / f"hits.{name}.{failpoint.action}") != failpoint.nth:
            return False
        return not failpoint.once or self._is_first(f"once.{re.sub(r'[^a-z_.]', '-', failpoint.point)}")

    def _is_first(self, latch: str) -> bool:
        try:
            os.close(os.open(self.directory / latch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        return True

    def _tell(self, point: str, failpoint: Failpoint) -> None:
        told = {"at": time.time(), "pid": os.getpid(), "role": role(), "point": point, "failpoint": str(failpoint)}
        _append(self.directory / "faults", json.dumps(told))


def fired(directory: Path) -> list[dict[str, str]]:
    """What has happened so far, in order: `at`, `pid`, `role`, `point` and `failpoint` of each."""
    file = directory / "faults"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def reached(directory: Path) -> set[str]:
    """The points that any process came to."""
    file = directory / "reached"
    return set(file.read_text().split()) if file.exists() else set()


def role() -> str:
    """What this process is in its pool, or that it is none of one."""
    title = setproctitle.getproctitle()
    return next((name for name in ROLES if title.startswith(f"pgworker: {name}")), "client")


def act(failpoint: Failpoint, point: str, pgconn: PGconn | None) -> None:
    """Do it, to this process or to the connection."""
    if failpoint.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif failpoint.action == "stop":
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif failpoint.action == "delay":
        time.sleep(failpoint.seconds)
    elif failpoint.action == "exit":
        os._exit(EXIT_CODE)
    elif failpoint.action == "cut":
        _cut(pgconn)
    elif failpoint.action == "confuse":  # as the driver is by the server's farewell between an answer and its end
        raise psycopg.InternalError(f"received 2 results from failpoint {point}")
    elif failpoint.action == "raise":
        _raise(point, pgconn)


def _cut(pgconn: PGconn | None) -> None:
    """Close the connection's socket under the driver, for both sides: neither has been told."""
    if pgconn is None or pgconn.socket < 0:
        return
    with socket.socket(fileno=os.dup(pgconn.socket)) as end:
        end.shutdown(socket.SHUT_RDWR)


def _raise(point: str, pgconn: PGconn | None) -> NoReturn:
    """As when the connection breaks, for the driver; as when the kernel has nothing left, elsewhere.

    A driver that is in the middle of an answer has lost its connection.
    """
    if pgconn is None:
        raise OSError(f"failpoint {point}")
    if point.endswith(("sent", ".after", ".after_commit")):
        pgconn.finish()
    raise psycopg.OperationalError(f"failpoint {point}")


def _append(file: Path, line: str = "") -> int:
    """Write a line (without one: a byte), whole, behind what other processes write; how many bytes there are then."""
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(opened, f"{line}\n".encode() if line else b".")
        return os.lseek(opened, 0, os.SEEK_CUR)
    finally:
        os.close(opened)


def main(words: Sequence[str]) -> int:
    from tests.chaos.boundaries import POINTS

    if list(words) != ["--list"]:
        print("python -m tests.chaos.failpoints --list", file=sys.stderr)  # noqa: T201
        return 2
    for point in POINTS.values():
        print(f"{point.name:<44} {' '.join(point.actions):<36} {point.meaning}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
