"""The end of a pool that is hurried, by the class that the master has for it, on a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from uuid import uuid4

import pytest

from pgworker.linux.board import Board
from pgworker.master.children import WorkerChild
from pgworker.master.drain import Drain
from pgworker.model.state import CancelReason
from tests.process.pool import DEADLINE, eventually


def test_a_second_ctrl_c_asks_what_runs_to_stop_and_a_third_kills_it_at_once(caplog: pytest.LogCaptureFixture) -> None:
    [row] = Board(1, 1).rows
    row.reset(uuid4(), time.monotonic_ns())
    run = row.start_run(0, lease=0, position=1, now_ns=time.monotonic_ns(), deadline_ns=0, thread=1)
    killed: dict[int, CancelReason] = {}

    def press(until: str) -> None:
        def pressed() -> bool:
            drain.interrupt()
            return until in caplog.text

        eventually(pressed, f"{until!r} in {caplog.text}")
        drain.enforce(killed)

    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        read, write = os.pipe2(os.O_NONBLOCK)
        drain = Drain([WorkerChild(row, write, is_wanted=True, pid=process.pid)], 600, lambda _seconds: None)
        try:
            drain.interrupt()
            assert row.is_draining
            assert row.cancel_reason(0, run) is CancelReason.NONE
            press("INT again: 1 running jobs are stopped")
            assert row.cancel_reason(0, run) is CancelReason.SHUTDOWN
            press("INT a third time: every worker is killed")
            assert killed == {process.pid: CancelReason.SHUTDOWN}
            assert process.wait(DEADLINE) == -signal.SIGKILL
        finally:
            process.kill()
            os.close(read)
            os.close(write)
