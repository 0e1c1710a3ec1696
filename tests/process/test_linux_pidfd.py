"""How the ends of processes are seen, told and cleaned up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pgworker.linux import process
from pgworker.linux.pidfd import Exit, is_gone
from tests.process.pool import eventually

ROOT = Path(__file__).parents[2]
ONLY_A_THREAD_IS_LEFT = """
import ctypes, threading
exit_thread = 60 if ctypes.sizeof(ctypes.c_void_p) == 8 and __import__("platform").machine() == "x86_64" else 93
threading.Thread(target=input).start()
ctypes.CDLL(None).syscall(exit_thread, 0)
"""
PROGRAM = Path(__file__).parent / "programs" / "exits.py"


def lines(scenario: str) -> list[str]:
    """What a scenario printed, in a fresh interpreter with warnings as errors."""
    command = [sys.executable, "-W", "error", str(PROGRAM), scenario]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_every_way_to_end_has_its_words() -> None:
    words = lines("words")
    assert words[:4] == ["exit code 0", "exit code 3", "killed by SIGKILL", "killed by signal 35"]
    assert words[4].startswith("killed by SIGSEGV")  # with a core or without, as the limits here are
    assert Exit(7, None, 11, core=True).describe() == "killed by SIGSEGV (core dumped)"


def test_a_dead_child_is_shown_until_it_is_reaped_and_a_running_one_is_not_reaped() -> None:
    assert lines("peeking") == ["None", "True", "None False", "None True killed by SIGTERM"]


def test_orphans_that_come_to_us_are_seen_and_reaped_like_children() -> None:
    assert lines("strangers") == ["exit code 0", "True exit code 5", "None"]


def test_a_group_is_killed_after_its_leader_died_and_our_own_never() -> None:
    assert lines("groups") == ["killed by SIGKILL []", "b''", "[True, True, True, True]"]


def test_a_process_is_gone_when_it_has_ended_and_not_when_it_is_stopped() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert not is_gone(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert not is_gone(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.state(child.pid) == "Z"
        assert is_gone(child.pid), "it has ended, though nobody has reaped it"
        child.wait()
        assert is_gone(child.pid)


def test_a_process_whose_first_thread_has_ended_is_not_gone_before_the_others_have() -> None:
    with subprocess.Popen([sys.executable, "-c", ONLY_A_THREAD_IS_LEFT], stdin=subprocess.PIPE) as child:
        eventually(lambda: process.state(child.pid) == "Z", "a first thread that has ended")
        assert not is_gone(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(child.pid)


def test_what_is_no_pid_of_a_process_is_not_gone() -> None:
    assert [is_gone(pid) for pid in (0, -1)] == [False, False]
