"""What /proc and the cgroup say of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgworker.linux import process

IN_A_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--")
ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "oom.py"
HOSTILE_NAME = """
from pathlib import Path
Path("/proc/self/comm").write_text("a) Z 1 (b) ")
print("ready", flush=True)
input()
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process with a name made to mislead a parser, waiting for input."""
    with subprocess.Popen(
        [sys.executable, "-c", HOSTILE_NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        yield started
        started.kill()


def test_the_state_of_a_process_is_told_from_its_sleep_to_its_end(child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while process.state(child.pid) != "S" and time.monotonic() < deadline:
        os.sched_yield()  # until it reads
    assert process.state(child.pid) == "S"
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert process.state(child.pid) == "T"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.state(child.pid) == "Z"
    child.wait()
    assert process.state(child.pid) is None


def test_pids_of_another_namespace_are_of_another_space_and_those_of_our_children_are_not() -> None:
    show = [sys.executable, "-c", "from pgworker.linux import process; print(process.pid_space())"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ours = process.pid_space()
    assert subprocess.run(show, env=environment, capture_output=True, text=True, check=True).stdout.strip() == ours
    apart = subprocess.run([*IN_A_PID_NAMESPACE, *show], env=environment, capture_output=True, text=True, check=False)
    if apart.returncode:
        pytest.skip(f"no PID namespace can be made here: {apart.stderr.strip()}")
    theirs = apart.stdout.strip()
    assert theirs != ours
    assert theirs.partition(":")[0] == ours.partition(":")[0], "the same boot"


def test_a_kill_for_want_of_memory_is_told_from_a_normal_end() -> None:
    command = [sys.executable, "-W", "error", str(PROGRAM)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77:
        pytest.skip("no cgroup with a limit of memory can be made here")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["exit code 0 False", "killed by SIGKILL True"]


@pytest.mark.parametrize(
    ("before", "after", "blamed"), [(0, 1, True), (1, 1, False), (None, 1, False), (1, None, False)]
)
def test_memory_is_blamed_only_if_the_count_of_kills_rose(before: int | None, after: int | None, blamed: bool) -> None:
    assert process.was_oom_killed(before, after) is blamed
