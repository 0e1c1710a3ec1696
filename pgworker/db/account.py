"""Whom a private PostgreSQL runs as, and how its programs are run as that user.

PostgreSQL refuses to run as root, so root runs it as `postgres`, or else `nobody`. What that user can't reach is put
below STATE instead: the binaries of a wheel in a closed environment, and the data of a directory in a closed one such
as root's home. STATE is not in /var/tmp: what is cleaned by age, or writable by everybody, must hold neither data nor
programs.
"""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pgworker.errors import ConfigurationError
from pgworker.linux.pidfd import kill_group

_GONE_WITHIN = 5.0  # seconds, of processes that were killed

STATE = Path("/var/lib/pgworker-embedded")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}

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


def server_account() -> pwd.struct_passwd:
    """Whom the server runs as: ourselves, or for root an unprivileged user that exists."""
    if os.geteuid() != 0:
        with suppress(KeyError):
            return pwd.getpwuid(os.geteuid())
        raise ConfigurationError(f"initdb needs a name for user {os.geteuid()}: add one to /etc/passwd")
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise ConfigurationError("PostgreSQL can't run as root, and no user postgres or nobody exists: run as another user")


def give(path: Path, account: pwd.struct_passwd) -> None:
    """It belongs to `account` from now on, as far as that is ours to say."""
    if os.geteuid() == 0:
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def reaches(path: Path, account: pwd.struct_passwd) -> bool:
    """Whether the modes of `path` and all directories above it let `account` pass; access lists are not considered."""
    return all(_passes(step.stat(), account) for step in (path, *path.parents))


def _passes(found: os.stat_result, account: pwd.struct_passwd) -> bool:
    mine = (0o100, found.st_uid == account.pw_uid), (0o010, found.st_gid == account.pw_gid), (0o001, True)
    return bool(found.st_mode & next(bit for bit, applies in mine if applies))


def state_directory() -> Path:
    """STATE, which only root may write: the server of another user must not run what somebody else put there."""
    with suppress(FileExistsError):
        STATE.mkdir()
        STATE.chmod(0o755)
    found = STATE.lstat()
    if found.st_uid != 0 or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise ConfigurationError(f"{STATE} must be a directory that belongs to root and that nobody else can write")
    return STATE


def spawn(
    command: list[str],
    account: pwd.struct_passwd,
    stdin: int,
    stdout: int,
    stderr: int,
    environment: Mapping[str, str] = ENVIRONMENT,
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


def run(command: list[str], account: pwd.struct_passwd, script: str = "") -> str:
    """What the command prints, given `script` on its standard input; ConfigurationError if it fails."""
    pipe = subprocess.PIPE
    with spawn(command, account, pipe, pipe, pipe) as process:
        try:
            streams = process.communicate(script.encode())
        except BaseException:
            _end_all(process)  # initdb runs others, which would go on writing
            raise
    output, errors = (stream.decode(errors="replace") for stream in streams)
    if process.returncode != 0:
        said = (output + errors)[-2000:]
        raise ConfigurationError(f"{command[0]} failed with code {process.returncode}:\n{said}")
    return output


def _end_all(child: subprocess.Popen[bytes]) -> None:
    """Kill a child of `spawn` and all that it has started, and wait until they are gone."""
    kill_group(child.pid, signal.SIGKILL)
    child.wait()
    ends = time.monotonic() + _GONE_WITHIN
    with suppress(ProcessLookupError):
        while time.monotonic() < ends:
            os.killpg(child.pid, 0)
            time.sleep(0.01)
