"""Dumps of stacks: by a process that is well, one that is stuck, and one that has crashed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgworker.linux.stacks import StackFile

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "dumps.py"


@pytest.fixture
def file() -> Iterator[StackFile]:
    opened = StackFile()
    yield opened
    opened.close()


def output(scenario: str) -> str:
    """What a scenario printed, in a fresh interpreter with warnings as errors."""
    command = [sys.executable, "-W", "error", str(PROGRAM), scenario]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_process_stuck_in_c_with_the_gil_answers_by_force_only() -> None:
    asked, *forced, end = output("held").splitlines()
    assert asked == "asked: ''"
    assert any(line.endswith("in hold_the_gil") for line in forced)
    assert end == "killed by SIGKILL"


def test_a_busy_process_answers_every_time_with_all_its_threads_and_goes_on() -> None:
    *stacks, end = output("busy").splitlines()
    assert stacks[0].startswith("Thread 0x")  # the file starts anew after each clear
    assert any(line.endswith("in wait") for line in stacks)
    assert any(line.endswith("in spin") for line in stacks)
    assert end == "killed by SIGKILL"  # by us, in the end


def test_a_crash_leaves_its_stack_behind() -> None:
    first, *stacks, end = output("fatal").splitlines()
    assert first == "Fatal Python error: Segmentation fault"
    assert any(line.endswith("in crash") for line in stacks)
    assert end.startswith("killed by SIGSEGV")


def test_a_process_that_is_asked_before_it_can_answer_survives_and_answers() -> None:
    code, *stacks = output("early").splitlines()
    assert code == "3"
    assert any(line.endswith("in install") for line in stacks)


def test_a_long_dump_is_read_as_its_beginning_and_its_end(file: StackFile) -> None:
    os.write(file.fileno(), b"cause\n" + b"x" * 100_000 + b"\nmain thread")
    text = file.read(limit=1000)
    assert text.startswith("cause\nxxx")
    assert text.endswith("xxx\nmain thread")
    assert "[... 99018 bytes left out ...]" in text
    assert len(text) < 1100


def test_what_is_no_text_is_replaced(file: StackFile) -> None:
    os.write(file.fileno(), b"a\x00b\x1b[31m\xffc\td\n")
    assert file.read() == "a\ufffdb\ufffd[31m\ufffdc\td\n"


def test_a_cleared_file_is_written_from_its_beginning(file: StackFile) -> None:
    os.write(file.fileno(), b"first")
    file.clear()
    assert file.read() == ""
    os.write(file.fileno(), b"second")
    assert file.read() == "second"
