"""A systemd to try units on: PID 1 of namespaces of its own, over an overlay of this machine's root.

It needs root and the right to mount; `why_not` says what is missing. Inside are this machine's programs, none of its
services, this Python below /opt/python, what it imports below /opt/test, and no D-Bus: systemctl talks to PID 1 itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.process.pool import ROOT, eventually

PYTHON = Path("/opt/python")
PROGRAMS = ("unshare", "nsenter", "setpriv", "pivot_root", "ldconfig", "mountpoint")
SYSTEMD = Path("/lib/systemd/systemd")
OLDEST = 252
COMMAND_TIMEOUT = 120.0
"""Seconds that a command inside may take; one that does not end fails its test."""

_BOOT = Path(__file__).with_name("boot_systemd.sh")
_UNSHARE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NotAllowedError(Exception):
    """This machine does not let us boot one; says at which step."""


def why_not() -> str | None:
    """What is missing here for a systemd of our own; None: nothing that can be told in advance."""
    if os.geteuid() != 0:
        return "a systemd of our own needs root"
    if not SYSTEMD.exists():
        return f"there is no {SYSTEMD}: apt-get install systemd"
    version = int(subprocess.run([SYSTEMD, "--version"], capture_output=True, text=True, check=True).stdout.split()[1])
    if version < OLDEST:
        return f"systemd is {version}, older than {OLDEST}"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]:
        return f"there is no {', '.join(missing)}: apt-get install util-linux libc-bin"
    if not any(Path("/lib").glob("*/libnss_systemd.so.2")):
        return "the names of dynamic users can't be looked up: apt-get install libnss-systemd"
    return None


@dataclass(frozen=True, slots=True)
class PrivateSystemd:
    """One that is up. Paths inside are absolute ones; `path` is where they are for us."""

    init: int
    """The pid of its PID 1, as seen here."""
    console: Path
    """What PID 1 has to say."""

    def path(self, inside: str | Path) -> Path:
        return Path(f"/proc/{self.init}/root{inside}")

    def write(self, inside: str | Path, text: str, mode: int = 0o644) -> None:
        """A file, with the directories that it needs."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def run(
        self, *command: str, check: bool = True, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        done = subprocess.run(
            ["nsenter", f"--target={self.init}", "--mount", "--pid", "--ipc", "--uts", *command],
            env={"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "cat", **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", *words, check=check).stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", f"--property={name}", "--value", unit).strip()

    def journal(self, unit: str) -> str:
        """What the unit and systemd about it have logged."""
        return self.run("journalctl", "--unit", unit, "--output=short-monotonic").stdout

    def processes(self, unit: str) -> dict[int, str]:
        """Title by pid, as seen here, of everything alive in the cgroup of a unit."""
        group = self.show(unit, "ControlGroup")
        found = {}
        for pid in self._pids(group) if group else ():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[pid] = " ".join(process.cmdline())
        return found

    def _pids(self, group: str) -> list[int]:
        """A cgroup's processes: by our own /proc, as the mount inside speaks of pids that are ours when we read it."""
        with suppress(FileNotFoundError):
            return [int(pid) for pid in self.path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split()]
        return []


@contextmanager
def boot(directory: Path, also: Mapping[Path, Path]) -> Iterator[PrivateSystemd]:
    """Boot one with its state in an empty directory, and end it. `also`: what is to be seen inside, by its place there.

    NotAllowedError: this machine does not let us.
    """
    binds = {PYTHON: Path(sys.base_prefix), **imported(), **also}
    (directory / "binds").write_text("".join(f"{source} {target}\n" for target, source in binds.items()))
    console = directory / "console"
    with console.open("wb") as output:
        process = subprocess.Popen(
            [*_UNSHARE, "bash", str(_BOOT), "outer", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    init = None
    try:
        init = eventually(lambda: _find_init(process, directory, console), lambda: console.read_text())
        assert init is not None
        booted = PrivateSystemd(init, console)
        eventually(lambda: _is_up(booted), lambda: f"systemd is up: {console.read_text()}")
        yield booted
    finally:
        if init is not None:
            with suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)
        else:
            process.kill()
        process.wait(30)


def imported() -> dict[Path, Path]:
    """Where this process imports from, by the place inside: the checkout first, the standard library not."""
    standard = Path(sys.base_prefix)
    found = [ROOT, *(Path(entry) for entry in sys.path if entry)]
    wanted = dict.fromkeys(path for path in found if path.is_dir() and not path.is_relative_to(standard))
    return {Path(f"/opt/test/{number}"): path for number, path in enumerate(wanted)}


def _find_init(process: subprocess.Popen[bytes], directory: Path, console: Path) -> int | None:
    step = directory.joinpath("step").read_text().strip() if directory.joinpath("step").exists() else "unshare"
    if process.poll() is not None:
        said = console.read_text(errors="replace").strip()
        if step == "boot":
            raise AssertionError(f"systemd ended with {process.returncode}: {said}")
        raise NotAllowedError(f"this machine does not let us {step}: {said}")
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() == "systemd":
                return int(child.pid)
    return None


def _is_up(booted: PrivateSystemd) -> bool:
    return booted.run("systemctl", "is-active", "multi-user.target", check=False).stdout.strip() == "active"
