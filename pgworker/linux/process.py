"""What the kernel says about processes: state and identity from /proc, kills for want of memory from the own cgroup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_STATE, _START_TICKS = 0, 19  # proc(5): fields 3 and 22 of stat, counted from behind the name


def state(pid: int) -> str | None:
    """R, S, D, T (stopped), t (traced), Z (dead, not reaped) or another letter of proc(5); None: no such process."""
    fields = _stat(pid)
    return fields[_STATE] if fields and fields[_STATE] not in "Xx" else None


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None: no such process. With the pid, its identity."""
    fields = _stat(pid)
    return int(fields[_START_TICKS]) if fields else None


def boot_id() -> str:
    """The UUID of this boot of the kernel: pids and ticks of another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def oom_kills() -> int | None:
    """How many processes of our own cgroup (v2: and of those below it) the kernel has killed for want of memory.

    None when that isn't to be seen: no memory controller, the root cgroup of v2, or no descriptor left to look.
    """
    with suppress(OSError):
        for path in _oom_files():
            if (count := _oom_count(path)) is not None:
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


def _oom_files() -> Iterator[Path]:
    """Where our cgroup counts its kills: cgroups(7) for v1, memory.oom_control; cgroup-v2.rst, memory.events."""
    paths = _own_cgroups()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2" and "" in paths:
            yield _below(mount, root, paths[""]) / "memory.events"
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in paths:
            yield _below(mount, root, paths["memory"]) / "memory.oom_control"


def _own_cgroups() -> dict[str, str]:
    """The path of our cgroup by controller; v2 has the empty name."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _below(mount: str, root: str, path: str) -> Path:
    """Where `path` is seen when the hierarchy is mounted from `root` on: a container mounts its own part only."""
    prefix = root.rstrip("/")
    return Path(mount, path.removeprefix(prefix).lstrip("/")) if path.startswith(prefix) else Path(mount)
