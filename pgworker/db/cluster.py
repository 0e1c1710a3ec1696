"""The data directory of a private PostgreSQL: made once, complete or not at all, and served by one server at a time.

Where the server's user can't reach it, as in root's home, it lies below `account.STATE`, and DIR/data is a symbolic
link to it.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pgworker.db.account import give, reaches, run, state_directory
from pgworker.errors import ConfigurationError

START_TIMEOUT = 30.0
"""Seconds that a server may take to start, crash recovery included, or to stop."""


def data_directory(directory: Path, account: pwd.struct_passwd) -> Path:
    """Where the data of `directory` is, or is to be made."""
    data = directory / "data"
    if not os.path.lexists(data):
        reached = os.geteuid() != 0 or reaches(directory, account)
        return data if reached else state_directory() / f"data-{name_of(directory)}"
    if not data.exists():
        raise ConfigurationError(f"{data} points to {data.resolve()}, which is gone: remove the link to begin anew")
    if (owner := data.stat().st_uid) != account.pw_uid:
        raise ConfigurationError(
            f"{data} belongs to user {owner}, but its server would run as {account.pw_name}: "
            "run pgworker as its owner, or choose another directory"
        )
    return data.resolve()


def initialise(data: Path, binaries: Path, version: str, account: pwd.struct_passwd, *, durable: bool) -> None:
    """initdb, and the database `pgworker`, unless it is there; the caller is the only one to do so."""
    for killed in data.parent.glob(f"{data.name}.new-*"):
        shutil.rmtree(killed, ignore_errors=True)
    if data.exists():
        return
    scratch = Path(tempfile.mkdtemp(prefix=f"{data.name}.new-", dir=data.parent))
    give(scratch, account)
    options = ["-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8"]
    options += ["--locale-provider=builtin"] if int(version) >= 17 else []
    options += [] if durable else ["--no-sync"]
    run([str(binaries / "initdb"), "-D", str(scratch), *options], account)
    single = ["--single", "-D", str(scratch), "-c", "exit_on_error=on", "-c", f"fsync={'on' if durable else 'off'}"]
    run([str(binaries / "postgres"), *single, "postgres"], account, "CREATE DATABASE pgworker\n")
    scratch.rename(data)


def refuse_version(data: Path, binaries: Path, version: str) -> None:
    """ConfigurationError if another major version has made it."""
    if (found := (data / "PG_VERSION").read_text().strip()) != version:
        raise ConfigurationError(
            f"{data} was initialised by PostgreSQL {found} and {binaries} is PostgreSQL {version}: "
            f"set PGWORKER_PG_BINDIR to the binaries of PostgreSQL {found}, or choose another directory"
        )


def refuse_running(directory: Path, data: Path) -> None:
    """A server whose starter was just killed is still stopping: wait for it. Any other one is in use."""
    deadline = time.monotonic() + START_TIMEOUT
    while (lock := lock_file(data)) and _is_server(lock[0], data):
        if lock[7:8] != ["stopping"] or time.monotonic() > deadline:
            raise ConfigurationError(
                f"a server is already running in {directory} (pid {lock[0]}); use the DSN embedded:{directory}"
            )
        time.sleep(0.01)


def lock_file(data: Path) -> list[str]:
    """The lines of postmaster.pid: pid, data directory, start, port, socket directory, address, key, status."""
    try:
        return [line.strip() for line in (data / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _is_server(pid: str, data: Path) -> bool:
    """Whether `pid` serves `data`: the number that a dead server left may be anybody's by now."""
    with suppress(OSError):
        return os.fsencode(data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def name_of(directory: Path) -> str:
    """What files of this directory are called where they lie among those of others."""
    return hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
