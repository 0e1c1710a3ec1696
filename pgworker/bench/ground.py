"""What every measurement stands on: a database of its own, pools on it, and patience."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import Connection

from pgworker.bench.failure import BenchFailed
from pgworker.db.connect import connect
from pgworker.db.migrate import migrate
from pgworker.db.scratch import scratch_database
from pgworker.linux.cpus import count_cpus

APP = "pgworker.bench.jobs:app"
QUEUE = "default"

_PATIENCE = 900.0  # seconds for a condition
_DRAINED_WITHIN = 60.0  # seconds
_LOOK = 0.1  # seconds between two looks at a condition
_LAST_LINES = 2000  # bytes of a pool's log that are shown if it failed

Say = Callable[[str], None]
"""Tell a person at a terminal what goes on."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a figure depends on besides pgworker itself."""

    pgworker_version: str
    python_version: str
    server_version: str
    fsync: str
    synchronous_commit: str
    full_page_writes: str
    shared_buffers: str
    host_cpus: int


@dataclass(frozen=True, slots=True)
class Ground:
    """A migrated database that only this measurement uses. `connection` is in autocommit mode, for its questions."""

    dsn: str
    connection: Connection[Any]
    say: Say

    def value(self, question: str, *values: object) -> Any:
        """The one value that a query returns."""
        return self.connection.execute(question.encode(), values).fetchall()[0][0]

    def wait(self, condition: str, *values: object, doing: str) -> None:
        """Until a query returns true. BenchFailed after a quarter of an hour."""
        begun = time.monotonic()
        while not self.value(condition, *values):
            waited = time.monotonic() - begun
            if waited > _PATIENCE:
                raise BenchFailed(f"{doing}: not done within {_PATIENCE:g} s")
            self.say(f"{doing}: {waited:.1f} s")
            time.sleep(_LOOK)

    def conditions(self) -> Conditions:
        """Those of this server and this host."""
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        told = {name: self.value("select current_setting(%s)", name) for name in names}
        return Conditions(version("pgworker"), platform.python_version(), **told, host_cpus=count_cpus())

    @contextmanager
    def pools(self, count: int, workers: int, *flags: str) -> Iterator[list[Pool]]:
        """So many pools of `pgworker start`, each with so many workers, all of them ready; drained at the end."""
        with tempfile.TemporaryDirectory(prefix="pgworker-bench-") as directory:
            logs = [Path(directory) / f"pool{number}.log" for number in range(count)]
            pools = [Pool(self.dsn, log, workers, flags) for log in logs]
            try:
                self._wait_until_ready(pools, count * workers)
                yield pools
            finally:
                for pool in pools:
                    pool.drain()

    def _wait_until_ready(self, pools: Sequence[Pool], workers: int) -> None:
        """Every worker has said so by its heartbeat."""
        ends = time.monotonic() + _PATIENCE
        question = (
            "select count(*) from pgworker.worker_heartbeats"
            " where pid = any(%s) and ended_at is null and state <> 'starting'"
        )
        while self.value(question, [pid for pool in pools for pid in pool.pids()]) < workers:
            for pool in pools:
                pool.require_alive()
            if time.monotonic() > ends:
                raise BenchFailed(f"{workers} workers did not start within {_PATIENCE:g} s")
            time.sleep(_LOOK)


class Pool:
    """`pgworker start`, as anybody would start it, with its log in a file."""

    def __init__(self, dsn: str, log: Path, workers: int, flags: Sequence[str]) -> None:
        """Nothing but `flags` says how: neither the environment nor a file of this directory."""
        self._log = log
        nowhere = {name: value for name, value in os.environ.items() if not name.startswith("PGWORKER_")}
        command = [sys.executable, "-m", "pgworker", "start", "--app", APP, "--workers", str(workers), *flags]
        if "--metrics-listen" not in flags:
            command += ["--metrics-listen", "off"]
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603  ourselves
                command,
                env=nowhere | {"PGWORKER_DSN": dsn, "PGWORKER_CONFIG": os.devnull},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is for the bench, which drains its pools
            )

    @property
    def pid(self) -> int:
        """That of the master."""
        return self._process.pid

    def pids(self) -> list[int]:
        """Of all its processes, the master's first."""
        try:
            return [self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def require_alive(self) -> None:
        """BenchFailed, with the end of its log, unless it runs."""
        code = self._process.poll()
        if code is not None:
            last = self._log.read_bytes()[-_LAST_LINES:].decode(errors="replace").strip()
            raise BenchFailed(f"the pool has ended with code {code}; its log ends with:\n{last}")

    def drain(self) -> None:
        """Send it TERM, and wait for its end."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_DRAINED_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """All its processes at one moment, as if the host had lost power."""
        pids = self.pids()
        for pid in reversed(pids):
            os.kill(pid, signal.SIGSTOP)  # nobody sees another one die
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._process.wait(_DRAINED_WITHIN)


@contextmanager
def own_database(server: str) -> Iterator[str]:
    """A new, migrated database on the server of this DSN, dropped at the end; its DSN. Errors as `scratch_database`."""
    with scratch_database(server, "template0") as dsn:
        migrate(dsn)
        yield dsn


@contextmanager
def open_ground(server: str, say: Say) -> Iterator[Ground]:
    """A database of its own, with nothing left to be written of what was before."""
    with own_database(server) as dsn, connect(dsn, application_name="pgworker bench") as connection:
        with suppress(psycopg.errors.InsufficientPrivilege):  # then it comes when it likes
            connection.execute("checkpoint")
        yield Ground(dsn, connection, say)
