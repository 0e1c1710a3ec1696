"""What the kernel says about processes: state and identity from /proc, kills for want of memory from the own cgroup."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pgworker.linux.cgroups import hierarchies

_STATE = 0  # proc(5): field 3 of stat, counted from behind the name


def state(pid: int) -> str | None:
    """R, S, D, T (stopped), t (traced), Z (dead, not reaped) or another letter of proc(5); None: no such process.

    "?": no descriptor is left to look, so that nothing may be concluded from it.
    """
    try:
        fields = _stat(pid)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return "?"
        raise
    return fields[_STATE] if fields and fields[_STATE] not in "Xx" else None


def pid_space() -> str:
    """Where our pids mean something: this boot of the kernel, and our PID namespace in it.

    The number of a namespace comes back once all its processes are gone, so that a pid of this space that nobody has
    stands for a process that has ended, in whichever of them. Where /proc says nothing: a name that nobody else has.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino  # namespaces(7)
    except OSError:
        return str(uuid4())
    return f"{boot}:{namespace}"


def oom_kills() -> int | None:
    """How many processes of our own cgroup (v2: and of those below it) the kernel has killed for want of memory.

    None when that isn't to be seen: no memory controller, the root cgroup of v2, or no descriptor left to look.
    """
    with suppress(OSError):
        for hierarchy in hierarchies("memory"):
            for name in ("memory.events", "memory.oom_control"):  # of v2, of v1
                if (count := _oom_count(hierarchy.own / name)) is not None:
                    return count
    return None


def was_oom_killed(before: int | None, after: int | None) -> bool:
    """Whether two readings of `oom_kills` around a death by SIGKILL blame memory; False when either is unknown.

    The count names no process: of two deaths between the readings, either may be meant.
    """
    return before is not None and after is not None and after > before


def _oom_count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return None


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold any byte, parentheses and spaces too; the fields behind it can't.
    return text[text.rindex(b")") + 2 :].decode("ascii").split()
