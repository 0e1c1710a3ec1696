"""The queue of signals: nothing is lost, nobody else's is taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pgworker.linux.signals import SignalQueue

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "signal_queues.py"
DEADLINE = 30


def start(scenario: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", PROGRAM, scenario],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(scenario: str, *signals: signal.Signals) -> list[str]:
    """What a scenario printed; `signals` are sent to it once it said that it is ready."""
    with start(scenario) as program:
        if signals:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for number in signals:
            os.kill(program.pid, number)
        printed, errors = program.communicate(timeout=DEADLINE)
    assert (program.returncode, errors) == (0, "")
    return printed.splitlines()


def test_signals_wake_a_selector_and_come_in_order_and_as_often_as_they_were_sent() -> None:
    assert lines("order") == ["False []", "True ['SIGTERM', 'SIGHUP', 'SIGHUP', 'SIGUSR2']", "False []"]


def test_a_signal_that_was_blocked_until_the_queue_was_there_is_in_it() -> None:
    assert lines("unblocking") == ["['SIGTERM']"]


def test_a_closed_queue_leaves_handlers_and_wakeup_as_they_were() -> None:
    assert lines("closing") == ["['SIGTERM', 'SIGHUP'] [] []", "['SIGTERM'] ['before']", "True -1"]


def test_every_kind_in_a_burst_of_five_thousand_arrives() -> None:
    flood = [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2] * 1250
    assert lines("burst", *flood, signal.SIGTERM) == ["SIGHUP SIGINT SIGTERM SIGUSR1 SIGUSR2"]


def test_what_a_closed_queue_leaves_ignored_ends_nobody() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    queue = SignalQueue()
    queue.install([signal.SIGUSR1, signal.SIGUSR2])
    queue.close(ignored=[signal.SIGUSR2])
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_full_pipe_loses_no_kind_of_signal() -> None:
    assert lines("overflow") == ["SIGHUP SIGTERM SIGUSR2 []", "SIGUSR2", "['SIGUSR2']"]


def test_another_thread_hears_of_a_signal_while_the_main_thread_is_stuck_in_c() -> None:
    assert lines("stuck", signal.SIGTERM) == ["['SIGTERM']"]
