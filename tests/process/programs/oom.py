"""A child that the kernel kills for want of memory, in a cgroup made for it; exits with 77 where none can be made."""
# ruff: noqa: T201 - a scenario reports by printing

from __future__ import annotations

import os
import signal
from pathlib import Path

from pgworker.linux import pidfd, process
from pgworker.linux.fork import fork_child

LIMIT = 48 << 20
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def limited_group() -> Path:
    """A new cgroup with a limit of memory."""
    hierarchy, limit, swap = (
        (V1, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if V1.is_dir()
        else (V2, "memory.max", "memory.swap.max")
    )
    group = hierarchy / f"pgworker-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit).write_text(str(LIMIT))
        if (group / swap).exists():
            (group / swap).write_text(str(LIMIT))
    except OSError:
        group.rmdir()
        raise
    return group


def end_of(number_of_bytes: int) -> str:
    """How a child ends that uses so much memory."""
    before = process.oom_kills()
    pid = fork_child(lambda: len(b"x" * number_of_bytes) & 1, keep_fds=(), death_signal=signal.SIGKILL, blocked=())
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    found = pidfd.next_exit()
    assert found is not None
    pidfd.reap(pid)
    return f"{found.describe()} {process.was_oom_killed(before, process.oom_kills())}"


def main() -> None:
    try:
        group = limited_group()
    except OSError:
        raise SystemExit(77) from None
    home = group.parent / "cgroup.procs"
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        print(end_of(1 << 20))
        print(end_of(4 * LIMIT))
    finally:
        home.write_text(str(os.getpid()))
        group.rmdir()


if __name__ == "__main__":
    main()
