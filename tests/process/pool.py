"""A pool under test: `pgworker start` in a session of its own, what it logs, and the processes it consists of."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[2]
APP = "tests.process.jobs:app"
DEADLINE = 30.0
"""Seconds that anything may take; a test that waits so long has failed."""

Seen = TypeVar("Seen")

_ONLY_SETTINGS = {"beat_interval", "heartbeat_interval", "prefetch_seconds", "restart_backoff"}
"""What `pgworker start` has no option for."""

_WITH_ALL_SETTINGS = """
import json, sys
from pgworker.cli.pool import start_pool
from pgworker.config.settings import PoolSettings
dsn, app, given = sys.argv[1:]
settings = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(given).items()}
sys.exit(start_pool(dsn, app, PoolSettings(**settings), starts_server=False))
"""
_SESSION = 3  # of /proc/PID/stat, counted from behind the name; the state is the first


def eventually(look: Callable[[], Seen], what: str | Callable[[], str], within: float = DEADLINE) -> Seen:
    """What `look` returns once that is true; fails when it isn't within so many seconds."""
    ends = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < ends, f"not within {within:g} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.01)
    return seen


def share_asleep(pid: int, looks: int = 200) -> float:
    """In which part of so many looks all threads of a process slept: a busy one doesn't, however little CPU it gets."""
    seen: list[bool] = []

    def look() -> bool:
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            stats = [task.joinpath("stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
            seen.append(all(stat.rpartition(") ")[2].startswith("S") for stat in stats))
        return len(seen) == looks

    eventually(look, f"{looks} looks at process {pid}")
    return sum(seen) / looks


@contextmanager
def no_descriptor_left(pid: int) -> Iterator[None]:
    """The process can open nothing more meanwhile."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lowest_free = next(number for number in itertools.count() if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has a moment ago."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Pool:
    """The processes of one `pgworker start`, and its log."""

    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def master(self) -> int:
        return self.process.pid

    @property
    def monitor(self) -> int:
        """The pid of the monitor, as soon as there is one."""
        return eventually(lambda: self._titled("pgworker: monitor"), "a monitor")[0]

    @property
    def workers(self) -> list[int]:
        return self._titled("pgworker: worker")

    def processes(self) -> dict[int, str]:
        """Title by pid of everything alive in the session of the pool, whatever its parent is by now."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = entry.joinpath("stat").read_text(errors="replace").rpartition(") ")[2].split()
                if fields[_SESSION] == str(self.master) and fields[0] not in "ZX":
                    title = entry.joinpath("cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                    found[int(entry.name)] = title.decode(errors="replace")
        return found

    def send(self, number: int) -> None:
        """Send a signal to the master."""
        self.process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """Send a signal to every process: if it stops them to the master first, else last, so that it replaces none."""
        for pid in sorted(self.processes(), key=lambda pid: (pid == self.master) == (number != signal.SIGSTOP)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, within: float = DEADLINE) -> int:
        """Its exit code, once it has ended and left no process behind."""
        code = self.process.wait(within)
        eventually(lambda: not self.processes(), lambda: f"nothing left of the pool, not {self.processes()}", 5)
        return code

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for_log(self, pattern: str, within: float = DEADLINE) -> str:
        """The line of the log, once there is one in which the pattern is found."""

        def look() -> str | None:
            found = re.search(f"^.*(?:{pattern}).*$", self.log(), re.MULTILINE)
            return found[0] if found else None

        line = eventually(look, f"{pattern!r} in the log", within)
        assert line is not None
        return line

    def complaints(self) -> set[str]:
        """The events of warnings and errors, but for a line that is slow: so is any on a busy machine."""
        told = re.findall(r"^\S+ (?:WARNING|ERROR) .*?(?: event=(\w+).*)?$", self.log(), re.MULTILINE)
        return set(told) - {"line_slow"}

    def kill(self) -> None:
        """End whatever is left, the stopped ones too."""
        while self.processes():
            self.signal_all(signal.SIGSTOP)
            self.signal_all(signal.SIGKILL)
        self.process.wait()

    def _titled(self, title: str) -> list[int]:
        return sorted(pid for pid, found in self.processes().items() if found.startswith(title))


@contextmanager
def start(dsn: str, log_file: Path, *, app: str = APP, cwd: Path = ROOT, **settings: object) -> Iterator[Pool]:
    """Start a pool, by `pgworker start` if its flags suffice for these settings; kill what is left at the end.

    With a setting `stderr`, a descriptor, the file has only what is printed to standard output. `prefix` is a command
    that runs the pool, such as unshare. `quiet`: the log is not printed at the end.
    """
    stderr = settings.pop("stderr", None)
    quiet = settings.pop("quiet", False)
    prefix = settings.pop("prefix", ())
    assert isinstance(prefix, tuple)
    command = [*prefix, *_command(dsn, app, {"workers": 2, **settings})]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        with launched(command, log_file, environment, cwd, stderr if isinstance(stderr, int) else None) as pool:
            yield pool
    finally:
        if not quiet:
            print(log_file.read_text(errors="replace"))  # noqa: T201 - pytest shows it when the test fails


@contextmanager
def launched(
    command: Sequence[str], log_file: Path, env: Mapping[str, str], cwd: Path = ROOT, stderr: int | None = None
) -> Iterator[Pool]:
    """The pool that this command is; kill what is left at the end."""
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log if stderr is None else stderr,
            start_new_session=True,
        )
    pool = Pool(process, log_file)
    try:
        yield pool
    finally:
        pool.kill()


def _command(dsn: str, app: str, settings: dict[str, object]) -> list[str]:
    if not settings.keys() & _ONLY_SETTINGS:
        flags = [word for name, value in settings.items() for word in _flag(name, value)]
        pgworker = [sys.executable, "-m", "pgworker", "start", "--metrics-listen", "off"]
        return [*pgworker, "--dsn", dsn, "--app", app, *flags]
    given = json.dumps({"metrics_listen": None, **settings})
    return [sys.executable, "-c", _WITH_ALL_SETTINGS, dsn, app, given]


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, list):
        return [word for one in value for word in _flag(name.removesuffix("s"), one)]
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]
