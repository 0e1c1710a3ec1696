"""A private PostgreSQL in a directory, for development, tests and a host that has no database of its own.

DIR holds `data` and `postgres.log`. The server listens on a Unix socket only, in a directory of mode 0700 whose name
is derived from DIR, so whoever knows DIR and runs as the same user finds it; the database is `pgworker`.

The server is a child in its own session and gets a fast shutdown (SIGINT) when the process that started it dies:
https://www.postgresql.org/docs/current/server-shutdown.html
"""

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pgworker.db.account import give, server_account, spawn
from pgworker.db.binaries import find_binaries, major_version, reachable_binaries
from pgworker.db.cluster import (
    START_TIMEOUT,
    data_directory,
    initialise,
    lock_file,
    name_of,
    refuse_running,
    refuse_version,
)
from pgworker.errors import ConfigurationError, DatabaseUnavailable
from pgworker.linux.locks import exclusively

# Never TMPDIR or XDG_RUNTIME_DIR: a cron job and a login shell must derive the same path.
_SOCKETS = Path("/tmp")  # noqa: S108 - the directory below it is 0700 and its owner is checked
_SETTINGS = {"shared_buffers": "128MB", "max_connections": "200", "cluster_name": "pgworker"}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, our child. `dsn` is a libpq conninfo string; leaving the context stops it."""

    directory: Path
    dsn: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, timeout: float = 10.0) -> None:
        """End it: SIGINT (fast), then SIGQUIT (immediate), then SIGKILL, with `timeout` seconds for each.

        Each again and again: what comes before PostgreSQL runs, the launcher drops.
        """
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            ends = time.monotonic() + timeout
            while self.process.poll() is None and time.monotonic() < ends:
                self.process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.1)
        # Not while somebody starts the next server here, and not if a dead server's socket is still in it.
        with suppress(OSError), exclusively(self.directory, fcntl.LOCK_NB):
            _socket_directory(self.directory).rmdir()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def dsn(directory: Path) -> str:
    """The libpq conninfo string of the server in `directory`, whether or not it runs now.

    Raises ConfigurationError when the socket's directory belongs to somebody we must not talk to.
    """
    socket = _socket_directory(directory)
    if os.path.lexists(socket):
        _refuse_foreign(socket, server_account())
    return f"host={socket} port=5432 user=postgres dbname=pgworker"


def start(directory: Path, *, options: Mapping[str, str] = {}, binaries: Path | None = None) -> Server:
    """Start the server of `directory`, initialised if it is new, and return when it accepts connections.

    `options` are PostgreSQL settings; `binaries` a directory with `postgres` and `initdb`, by default what
    `find_binaries` finds.

    Call it from the main thread: the server is shut down when the thread that started it ends.
    Raises ConfigurationError if it can't run as asked, DatabaseUnavailable if it ends, or takes over START_TIMEOUT.
    """
    assert threading.current_thread() is threading.main_thread()
    directory = directory.resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with exclusively(directory):
            return _start(directory, options, binaries)
    except OSError as error:
        raise ConfigurationError(f"can't run a private PostgreSQL in {directory}: {error}") from error


def _start(directory: Path, options: Mapping[str, str], binaries: Path | None) -> Server:
    account = server_account()
    data = data_directory(directory, account)
    refuse_running(directory, data)
    binaries = reachable_binaries((binaries or find_binaries()).resolve(), account)
    version = major_version(binaries, account)
    initialise(data, binaries, version, account, durable=options.get("fsync") != "off")
    if not os.path.lexists(directory / "data"):
        (directory / "data").symlink_to(data)
    refuse_version(data, binaries, version)
    socket = _make_socket_directory(directory, account)
    settings = {**_SETTINGS, **options, "listen_addresses": "", "unix_socket_directories": str(socket), "port": "5432"}
    command = [str(binaries / "postgres"), "-D", str(data)]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return _launch(command, directory, data, account)


def _launch(command: list[str], directory: Path, data: Path, account: pwd.struct_passwd) -> Server:
    stale, conninfo = lock_file(data), dsn(directory)
    with (directory / "postgres.log").open("ab") as log:
        begin = log.tell()
        process = spawn(command, account, subprocess.DEVNULL, log.fileno(), log.fileno())
    server = Server(directory, conninfo, process)
    try:
        _wait_until_ready(server, data, stale, begin)
    except BaseException:
        server.stop()
        raise
    return server


def _wait_until_ready(server: Server, data: Path, stale: list[str], begin: int) -> None:
    """As pg_ctl does: line 8 of postmaster.pid, once the file is the one of this start."""
    deadline = time.monotonic() + START_TIMEOUT
    while (lock := lock_file(data)) == stale or lock[7:8] != ["ready"] or lock[0] != str(server.pid):
        ended = server.process.poll() is not None
        if ended or time.monotonic() > deadline:
            problem = f"ended with code {server.process.returncode}" if ended else f"took over {START_TIMEOUT:.0f} s"
            raise DatabaseUnavailable(
                f"PostgreSQL in {server.directory} {problem} while it started:\n{_tail(server.directory, begin)}"
            )
        time.sleep(0.01)


def _tail(directory: Path, begin: int) -> str:
    with (directory / "postgres.log").open("rb") as log:
        log.seek(begin)
        return "\n".join(log.read().decode(errors="replace").splitlines()[-20:])


def _socket_directory(directory: Path) -> Path:
    """Short, as a socket's path may have 107 bytes: unix(7)."""
    return _SOCKETS / f"pgworker-{name_of(directory.resolve())}"


def _make_socket_directory(directory: Path, account: pwd.struct_passwd) -> Path:
    socket = _socket_directory(directory)
    with suppress(FileExistsError):
        socket.mkdir(mode=0o700)
    if socket.lstat().st_uid == os.geteuid():
        give(socket, account)
    _refuse_foreign(socket, account)
    return socket


def _refuse_foreign(socket: Path, account: pwd.struct_passwd) -> None:
    """Anybody may create the name in advance and listen there; only the owner and the mode tell."""
    found = socket.lstat()
    if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) != 0o700 or found.st_uid != account.pw_uid:
        raise ConfigurationError(
            f"the socket's directory {socket} must be a directory of mode 0700 that belongs to {account.pw_name}, "
            f"and it is {stat.filemode(found.st_mode)} of user {found.st_uid}: run as its owner, or remove it"
        )
