"""What every measurement stands on: a database of its own, pools on it, and patience."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import Connection

from pgworker.bench.pool import Pool, running
from pgworker.config.settings import is_loopback
from pgworker.db.connect import connect
from pgworker.db.migrate import migrate
from pgworker.db.scratch import scratch_database
from pgworker.linux.cpus import count_cpus

QUEUE = "default"

_LOOK = 0.1  # seconds between two looks at a condition
_READY = """
    select count(*) from pgworker.worker_heartbeats
    where pid = any(%s) and ended_at is null and state <> 'starting'
"""

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
    data_on: str | None
    """The file system of the server's data, such as ext4 or tmpfs; None: not to be seen from here."""
    host_cpus: int
    pooler: bool


class Ground:
    """A migrated database that only this measurement uses."""

    def __init__(self, dsn: str, connection: Connection[Any], say: Say, *, pooler: bool, turn: int) -> None:
        """`connection` is in autocommit mode, for questions. `pooler`: what is at the DSN keeps no session. `turn`: so
        many times this was measured before."""
        self.pooler = pooler
        self.turn = turn
        self.dsn = dsn
        self.connection = connection
        self.say = say
        self._pools: list[Pool] = []

    def value(self, question: str, *values: object) -> Any:
        """The one value that a query returns."""
        return self.connection.execute(question.encode(), values).fetchall()[0][0]

    def wait(self, condition: str, *values: object, doing: str, look: float = _LOOK) -> None:
        """Until a query returns true, asked every `look` seconds. BenchFailed: a pool has ended by itself."""
        begun = time.monotonic()
        while not self.value(condition, *values):
            for pool in self._pools:
                pool.require_alive()
            self.say(f"{doing}: {time.monotonic() - begun:.1f} s")
            time.sleep(look)

    def conditions(self) -> Conditions:
        """Those of this server and this host."""
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        told = {name: self.value("select current_setting(%s)", name) for name in names}
        return Conditions(
            version("pgworker"),
            platform.python_version(),
            **told,
            data_on=self._file_system(),
            host_cpus=count_cpus(),
            pooler=self.pooler,
        )

    def postmaster(self) -> psutil.Process | None:
        """The server's first process, if it runs on this host where we can see it."""
        host = self.connection.info.host
        if host and not host.startswith("/") and not is_loopback(host):
            return None
        try:
            backend = psutil.Process(self.value("select pg_backend_pid()"))
            return backend.parent() if "postgres" in backend.name() else None  # else a pid of another container's
        except psutil.Error:
            return None

    def _file_system(self) -> str | None:
        if self.postmaster() is None:
            return None
        with suppress(psycopg.errors.InsufficientPrivilege):
            data = Path(self.value("show data_directory")).resolve()
            mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
            return next((mounts[place] for place in (data, *data.parents) if place in mounts), None)
        return None

    @contextmanager
    def pools(self, count: int, workers: int, *flags: str) -> Iterator[list[Pool]]:
        """So many pools of `pgworker start`, each with so many workers, all of them ready; drained at the end."""
        flags = (*flags, "--pooler") if self.pooler else flags
        with (
            tempfile.TemporaryDirectory(prefix="pgworker-bench-") as directory,
            running(self.dsn, Path(directory), count, workers, flags) as pools,
        ):
            self._pools += pools
            try:
                while self.value(_READY, [pid for pool in pools for pid in pool.pids()]) < count * workers:
                    for pool in pools:
                        pool.require_alive()
                    time.sleep(_LOOK)
                yield pools
            finally:
                self._pools = [pool for pool in self._pools if pool not in pools]


@contextmanager
def own_database(server: str) -> Iterator[str]:
    """A new, migrated database on the server of this DSN, dropped at the end; its DSN. Errors as `scratch_database`."""
    with scratch_database(server, "template0") as dsn:
        migrate(dsn)
        yield dsn


@contextmanager
def open_ground(server: str, say: Say, *, pooler: bool = False, turn: int = 0) -> Iterator[Ground]:
    """A database of its own, with nothing left to be written of what was before."""
    prepared_from = None if pooler else 5  # uses of a statement; the driver's own default
    with (
        own_database(server) as dsn,
        connect(dsn, application_name="pgworker bench", prepare_threshold=prepared_from) as connection,
    ):
        checkpoint(connection)
        yield Ground(dsn, connection, say, pooler=pooler, turn=turn)


def checkpoint(connection: Connection[Any]) -> None:
    """Have the server write down what was before, if the user may ask for it: else that comes when it likes."""
    with suppress(psycopg.errors.InsufficientPrivilege):
        connection.execute("checkpoint")
