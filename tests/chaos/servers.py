"""PostgreSQL servers that tests may break: stopped, killed, promoted, filled up, full, and with a clock that steps.

Each has directories, a port and processes of its own, and leaves none of them behind. Root runs it as `postgres` or
`nobody`, as pgworker's own private servers, whose binaries, user and launcher it has too.
"""

from __future__ import annotations

import atexit
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Literal

import psutil
import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo

from pgworker.db.account import ENVIRONMENT, give, run, server_account, spawn
from pgworker.db.binaries import find_binaries, major_version, reachable_binaries
from pgworker.db.cluster import initialise, lock_file
from pgworker.db.migrate import migrate
from tests.process.pool import ROOT, eventually, free_port

Mode = Literal["smart", "fast", "immediate"]
SmallDisk = Literal["wal", "data", "tablespace"]

PATIENCE = 60.0
"""Seconds that a start, a stop, a backup or a promotion may take on a machine that has other work."""

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_FAKETIME = "faketime/libfaketimeMT.so.1"
_SETTINGS = {
    "fsync": "off",
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "wal_keep_size": "64MB",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
}
_PAGE = 8192

_SLEEP = """
import select, time

def sleep(seconds):
    select.select((), (), (), seconds)

time.sleep = sleep
"""

# A server gets SIGINT when the thread that forked it ends, so it is forked by one that lasts as long as this process.
_starter = ThreadPoolExecutor(1, "servers")
_names = count(1)


_BROKEN_HEAP = ("\nmalloc(): ", "\ncorrupted ", "\nfree(): ", "\ndouble free ", "\nmalloc_consolidate(): ")
"""How the C library begins its last words."""


class SteppedClock:
    """The clock of some processes, by libfaketime: set right, then stepped while they run.

    `environment` is what they are to be started with. Monotonic clocks stay as they are, as they do when an operator or
    NTP sets a clock.
    """

    def __init__(self, directory: Path) -> None:
        self._offset = 0.0
        self._file = directory / f"clock-{next(_names)}"
        self._write()
        self.environment = {
            "LD_PRELOAD": _faketime(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    @property
    def prefix(self) -> tuple[str, ...]:
        """The command that runs another one under this clock."""
        return ("/usr/bin/env", *(f"{name}={value}" for name, value in self.environment.items()))

    @property
    def python_prefix(self) -> tuple[str, ...]:
        """As `prefix`, for a command that runs Python with what is in this tree: `start(prefix=clock.python_prefix)`.

        libfaketime has no way to sleep until a monotonic time, which is how time.sleep() sleeps.
        """
        place = self._file.with_suffix(".python")
        place.mkdir(exist_ok=True)
        (place / "sitecustomize.py").write_text(_SLEEP)
        return (*self.prefix, f"PYTHONPATH={place}{os.pathsep}{ROOT}")

    @property
    def offset(self) -> float:
        """Seconds that it is ahead of the machine's."""
        return self._offset

    def step(self, seconds: float) -> None:
        """Set the clock forward, or back if `seconds` is negative; everybody sees it at his next look."""
        self._offset += seconds
        self._write()

    @staticmethod
    def forget(pid: int) -> None:
        """Remove what libfaketime leaves of a process that was killed, started with `prefix` as this pid."""
        for left in (f"sem.faketime_sem_{pid}", f"faketime_shm_{pid}"):
            Path("/dev/shm", left).unlink(missing_ok=True)

    def _write(self) -> None:
        """Whole or not at all: every look at the time reads it."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._offset:+.3f}\n")
        new.chmod(0o644)
        new.replace(self._file)


class PostgresServer:
    """One server. Inside the context it runs unless it was stopped; afterwards nothing of it is left.

    `address` is where it listens, beside a Unix socket in `sockets`. `settings` and `environment` are those of the next
    start. `small_disk`: the log, the whole data directory or a tablespace named `small` is on a disk of `disk_mib` of
    its own, for `fill_disk`; that needs root, and the test is skipped without. `with_clock`: `step_clock` works;
    skipped without libfaketime.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        settings: Mapping[str, str] = {},
        environment: Mapping[str, str] = {},
        small_disk: SmallDisk | None = None,
        disk_mib: int = 192,
        with_clock: bool = False,
        binaries: Path | None = None,
    ) -> None:
        self._account = server_account()
        self._binaries = reachable_binaries((binaries or _binaries()).resolve(), self._account)
        self._cleanup = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: list[int] = []
        self._small_disk = small_disk
        self._disk_mib = disk_mib
        self._with_clock = with_clock
        self._slots = count(1)
        self.address = address
        self.port = port or free_port()
        self.name = f"server{next(_names)}"
        self.settings = dict(settings)
        self.environment = dict(environment)
        self.clock: SteppedClock | None = None
        self.directory = Path()

    def __enter__(self) -> PostgresServer:
        with ExitStack() as undo:
            self._prepare(undo)
            self._initialise()
            self._open_to_all()
            self.start()
            if self._small_disk == "tablespace":
                self._make_tablespace()
            self._cleanup = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    # -- where it is

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def sockets(self) -> Path:
        """The directory of its Unix socket."""
        return self.directory / "sockets"

    @property
    def dsn(self) -> str:
        """The conninfo string of the database `postgres`, by TCP."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        return make_conninfo("", host=self.address, port=self.port, user="postgres", dbname=database)

    @property
    def log(self) -> str:
        """All that the server has logged."""
        return (self.directory / "postgres.log").read_text(errors="replace")

    def connect(self, database: str = "postgres") -> Connection[Any]:
        """An autocommit connection of an operator's."""
        return psycopg.connect(self.dsn_of(database), autocommit=True, application_name="operator")

    def make_database(self) -> str:
        """The DSN of a new database with pgworker's schema; it is on the small tablespace, if there is one."""
        name = f"jobs{next(_names)}"
        where = sql.SQL(" tablespace small" if self._small_disk == "tablespace" else "")
        with self.connect() as connection:
            connection.execute(sql.SQL("create database {}{}").format(sql.Identifier(name), where))
        migrate(self.dsn_of(name))
        return self.dsn_of(name)

    # -- start and end

    @property
    def is_running(self) -> bool:
        """Whether its first process is alive, ready or not."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        assert not self.is_running, f"{self.name} runs already"
        fixed = {
            "listen_addresses": self.address,
            "port": str(self.port),
            "unix_socket_directories": str(self.sockets),
            "cluster_name": self.name,
        }
        settings = {**_SETTINGS, **self.settings, **fixed}
        # From `env` on: what libfaketime makes in /dev/shm must be the server user's, and the launcher is root's.
        clock = self.clock.prefix if self.clock else ()
        command = [*clock, str(self._binaries / "postgres"), "-D", str(self.data)]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._process = _starter.submit(self._launch, command).result()
        self._pids.append(self._process.pid)
        if wait:
            self.wait_ready()

    def wait_ready(self, within: float = PATIENCE) -> None:
        """Return when it accepts connections."""
        assert self._process is not None
        pid = str(self._process.pid)

        def look() -> bool:
            assert self.is_running, f"{self.name} has ended:\n{self.log[-2000:]}"
            lock = lock_file(self.data)
            return lock[:1] == [pid] and lock[7:8] in (["ready"], ["standby"])

        eventually(look, lambda: f"{self.name} ready:\n{self.log[-2000:]}", within)

    def stop(self, mode: Mode = "fast") -> None:
        """As pg_ctl stop does; a smart stop returns when the last client has gone."""
        assert self._process is not None
        self._process.send_signal(_SIGNALS[mode])
        self._process.wait(PATIENCE)

    def crash(self) -> None:
        """SIGKILL to all its processes at once, as when the machine fails."""
        assert self._process is not None
        if not self.is_running:
            return
        self._process.send_signal(signal.SIGSTOP)  # it must not see its children end, and start others
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.kill()
        self._process.wait(PATIENCE)

    def restart(self, mode: Mode = "fast", *, down: float = 0.0) -> None:
        """Stop it, leave it down for so many seconds, and start it anew."""
        self.stop(mode)
        time.sleep(down)
        self.start()

    # -- its clock

    def step_clock(self, seconds: float) -> None:
        """Set the clock of all its processes forward, or back; needs `with_clock`."""
        assert self.clock is not None, "this server has the machine's clock"
        self.clock.step(seconds)

    def is_aborted_by_clock(self, since: int) -> bool:
        """Whether libfaketime has ended processes of it since its log was so long.

        It opens a file when anybody asks for the time, PostgreSQL's signal handlers too, and breaks a heap that is just
        being changed.
        """
        return self.clock is not None and any(words in self.log[since:] for words in _BROKEN_HEAP)

    # -- standbys

    def add_standby(self, *, synchronous: bool = False, **options: Any) -> PostgresServer:
        """A standby that streams from a slot of its own, not entered yet: `with primary.add_standby() as standby`.

        `synchronous`: from then on a commit waits for it.
        """
        return Standby(self, f"standby{next(self._slots)}", synchronous=synchronous, **options)

    def promote(self) -> None:
        """Make a standby the primary; returns when it takes writes."""
        with self.connect() as connection:
            connection.execute("select pg_promote(true, %s)", [int(PATIENCE)])

    def wait_caught_up(self, primary: PostgresServer) -> None:
        """Return when this standby has replayed all that its primary had written when this was called."""
        with primary.connect() as there, self.connect() as here:
            written = there.execute("select pg_current_wal_lsn()").fetchone()
            assert written is not None

            def look() -> bool:
                seen = here.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", written).fetchone()
                return seen == (True,)

            eventually(look, f"{self.name} has caught up", PATIENCE)

    # -- disks

    def fill_disk(self, leave: int = 0) -> None:
        """Leave so many bytes on the small disk: the log full is a PANIC, a tablespace full is an ERROR."""
        ballast = self._ballast()
        step = 1 << 20
        with ballast.open("ab", buffering=0) as out:
            while step >= _PAGE:
                free = os.statvfs(ballast.parent)
                if free.f_bavail * free.f_frsize - step >= leave:
                    with suppress(OSError):
                        if out.write(b"\0" * step) == step:
                            continue
                step //= 2

    def free_disk(self) -> None:
        self._ballast().unlink(missing_ok=True)

    # -- connections, locks and snapshots

    @contextmanager
    def terminate_backends(self, rate: float, dice: random.Random, like: str = "%") -> Iterator[list[int]]:
        """Inside, so many of the backends of clients whose application_name is `like` this end each second.

        The list has the pid of each, as it grows.
        """
        ended: list[int] = []

        def end_one(operator: Connection[Any]) -> None:
            found = operator.execute(
                "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
                " and application_name like %s and application_name <> 'operator' order by pid",
                [like],
            ).fetchall()
            if found:
                pid = dice.choice(found)[0]
                operator.execute("select pg_terminate_backend(%s)", [pid])
                ended.append(pid)

        with self.connect() as operator, _again_and_again(lambda: end_one(operator), 1 / rate):
            yield ended

    @contextmanager
    def fill_connections(self) -> Iterator[None]:
        """Inside, strangers have all of max_connections, the reserved ones too: everybody else is turned away."""
        with ExitStack() as strangers:
            first = strangers.enter_context(self.connect())

            def fill() -> None:
                """Until there is nobody else: whoever is ended may be back before a stranger has his place."""
                with suppress(psycopg.OperationalError):
                    for _ in range(10_000):
                        strangers.enter_context(_stranger(self.dsn))

            def is_full() -> bool:
                fill()
                ended = first.execute(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid()"
                    " and backend_type = 'client backend' and application_name <> 'stranger'"
                ).fetchone()
                return ended == (0,)

            eventually(is_full, "nobody but strangers is connected", PATIENCE)
            yield

    @contextmanager
    def locked_table(self, dsn: str, name: str, mode: str = "access exclusive") -> Iterator[None]:
        """Inside, somebody holds a lock on this table."""
        with psycopg.connect(dsn, application_name="operator") as connection:
            connection.execute(f"lock table {name} in {mode} mode".encode())
            yield

    def lock_table(self, dsn: str, name: str, seconds: float) -> None:
        """Hold an exclusive lock on this table for so long."""
        with self.locked_table(dsn, name):
            time.sleep(seconds)

    @contextmanager
    def pin_xmin(self, dsn: str) -> Iterator[None]:
        """Inside, a forgotten transaction keeps vacuum from removing anything."""
        with psycopg.connect(dsn, application_name="operator") as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("select pg_current_xact_id()")
            yield

    # -- how it is made

    def _prepare(self, undo: ExitStack) -> None:
        """Its directories, disk and clock, and what takes them away again."""
        self.directory = Path(
            undo.enter_context(tempfile.TemporaryDirectory(prefix=f"pgworker-chaos-{os.getpid()}-", dir="/tmp"))
        )
        self.directory.chmod(0o755)
        self.sockets.mkdir(mode=0o700)
        give(self.sockets, self._account)
        if self._small_disk is not None:
            undo.enter_context(_small_disk(self._disk, self._disk_mib))
            give(self._disk, self._account)
        if self._with_clock:
            self.clock = SteppedClock(self.directory)
        undo.callback(self._end)

    def _end(self) -> None:
        """At once, and with what a crash has left of it in the kernel."""
        if self._process is None:
            return
        try:
            if self.is_running:
                self._process.send_signal(signal.SIGCONT)
                self.stop("immediate")
        except subprocess.TimeoutExpired:
            self.crash()
        for pid in self._pids:
            SteppedClock.forget(pid)
        for line in lock_file(self.data)[6:7]:
            subprocess.run(["ipcrm", "-m", line.split()[1]], capture_output=True, check=False)

    def _initialise(self) -> None:
        home = self._disk if self._small_disk == "data" else self.directory
        version = major_version(self._binaries, self._account)
        made = _initialised(self._binaries, version, self._account)
        subprocess.run(["cp", "-a", "--reflink=auto", str(made), str(home / "data")], check=True)
        if home != self.directory:
            self.data.symlink_to(home / "data")
        if self._small_disk == "wal":
            shutil.copytree(self.data / "pg_wal", self._disk / "pg_wal")
            for path in (self._disk / "pg_wal", *(self._disk / "pg_wal").rglob("*")):
                give(path, self._account)
            shutil.rmtree(self.data / "pg_wal")
            (self.data / "pg_wal").symlink_to(self._disk / "pg_wal")

    def _open_to_all(self) -> None:
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all trust\nhost replication all all trust\n")

    def _make_tablespace(self) -> None:
        self._make_room()
        with self.connect() as connection:
            location = sql.Literal(str(self._tablespace))
            connection.execute(sql.SQL("create tablespace small location {}").format(location))

    def _make_room(self) -> None:
        self._tablespace.mkdir(mode=0o700)
        give(self._tablespace, self._account)

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.directory / "postgres.log").open("ab") as log:
            environment = {**ENVIRONMENT, **self.environment}
            return spawn(command, self._account, subprocess.DEVNULL, log.fileno(), log.fileno(), environment)

    @property
    def _disk(self) -> Path:
        return self.directory / "disk"

    @property
    def _tablespace(self) -> Path:
        return self._disk / "tablespace"

    def _ballast(self) -> Path:
        assert self._small_disk is not None, "this server has no disk of its own"
        return self._disk / "ballast"


class Standby(PostgresServer):
    """A copy of a primary by pg_basebackup, made when it is entered; a small tablespace has a small disk here too."""

    def __init__(self, primary: PostgresServer, slot: str, *, synchronous: bool, **options: Any) -> None:
        if primary._small_disk == "tablespace":
            options = {"small_disk": "tablespace", "disk_mib": primary._disk_mib, **options}
        super().__init__(**{"binaries": primary._binaries, "address": primary.address, **options})
        self._primary = primary
        self._slot = slot
        self._synchronous = synchronous

    def __enter__(self) -> PostgresServer:
        super().__enter__()
        if self._synchronous:
            self._make_synchronous()
        return self

    def _initialise(self) -> None:
        self.data.mkdir(mode=0o700)
        give(self.data, self._account)
        backup = [str(self._binaries / "pg_basebackup"), "-D", str(self.data), "-d", self._primary.dsn]
        backup += ["--wal-method=stream", "--checkpoint=fast", "--no-sync", "--write-recovery-conf"]
        if self._small_disk == "tablespace":
            backup += [f"--tablespace-mapping={self._primary._tablespace}={self._tablespace}"]
            self._make_room()
        run([*backup, "--create-slot", "--slot", self._slot], self._account)

    def _open_to_all(self) -> None:
        """Its pg_hba.conf is the primary's."""

    def _make_tablespace(self) -> None:
        """It has come with the copy."""

    def _make_synchronous(self) -> None:
        with self._primary.connect() as connection:
            names = sql.SQL("alter system set synchronous_standby_names = {}")
            connection.execute(names.format(sql.Literal(self.name)))
            connection.execute("select pg_reload_conf()")

            def look() -> bool:
                state = "select sync_state from pg_stat_replication where application_name = %s"
                return connection.execute(state, [self.name]).fetchone() == ("sync",)

            eventually(look, f"{self.name} is synchronous", PATIENCE)


@cache
def _initialised(binaries: Path, version: str, account: pwd.struct_passwd) -> Path:
    """A data directory that nobody has started yet, made once a process: what copies cost is little."""
    place = Path(tempfile.mkdtemp(prefix=f"pgworker-chaos-{os.getpid()}-", dir="/tmp"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    place.chmod(0o755)
    initialise(place / "data", binaries, version, account, durable=False)
    return place / "data"


def binaries_of(pid: int) -> Path:
    """The directory of the `postgres` that this process runs: for a server more of the same version."""
    return Path(f"/proc/{pid}/exe").readlink().parent


def _binaries() -> Path:
    named = os.environ.get("PGWORKER_TEST_PG_BINDIR")
    return Path(named) if named else find_binaries()


def _faketime() -> str:
    """The library that fakes clocks in programs with threads; skips where it isn't installed."""
    found = sorted(Path("/usr/lib").glob(f"*/{_FAKETIME}")) + sorted(Path("/usr/lib").glob(_FAKETIME))
    if not found:
        pytest.skip("needs libfaketime")
    return str(found[0])


@contextmanager
def _small_disk(directory: Path, mebibytes: int) -> Iterator[None]:
    """A file system of this size at `directory`, which is made for it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a small file system")
    directory.mkdir()
    options = f"size={mebibytes}m,mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "pgworker-chaos", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def _again_and_again(act: Callable[[], object], pause: float) -> Iterator[None]:
    """Inside, a thread does this with such a pause between; what it raises is raised at the end."""
    over = threading.Event()
    errors: list[BaseException] = []

    def go_round() -> None:
        try:
            while not over.wait(pause):
                act()
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    thread = threading.Thread(target=go_round, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)
    if errors:
        raise errors[0]


def _stranger(dsn: str) -> Connection[Any]:
    return psycopg.connect(dsn, autocommit=True, application_name="stranger", connect_timeout=5)
