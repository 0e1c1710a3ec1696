"""The fork recipe, scenario by scenario, each in a fresh single-threaded interpreter with warnings as errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "forks.py"
DEADLINE = 30


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(*arguments: str, exits: int = 0) -> str:
    """What a scenario and its children printed; it ends when the last of them has."""
    with start(*arguments) as program:
        printed, errors = program.communicate(timeout=DEADLINE)
    assert (program.returncode, errors) == (exits, "")
    return printed


def test_a_child_inherits_nothing_but_what_is_kept() -> None:
    assert json.loads(output("state")) == {
        "fds": [0, 1, 2],
        "kept": True,
        "leads its group": True,
        "wakeup fd": -1,
        "caught": [],
        "ignored": ["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGTTIN", "SIGTTOU", "SIGXFSZ"],
        "blocked": ["SIGTERM"],
        "death signal": signal.SIGKILL,
    }


def test_the_parent_gets_its_signal_mask_back_and_a_child_that_leads_its_group_already() -> None:
    assert json.loads(output("parent_unharmed")) == {"child leads its group": True, "blocked": ["SIGUSR2"]}


def test_garbage_of_the_parent_closes_no_descriptor_of_the_child() -> None:
    assert output("garbage") == "3 is open\n"


@pytest.mark.parametrize(
    ("death", "seen"),
    [("SIGKILL", ""), ("SIGUSR2", "outlived it SIGUSR2\n"), ("none", "outlived it\n")],
)
def test_a_killed_parent_takes_its_child_along_or_sends_it_the_signal_it_wants(death: str, seen: str) -> None:
    with start("killed_parent", death) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        program.kill()
        assert program.communicate(timeout=DEADLINE) == (seen, "")  # ends once the child is gone too


@pytest.mark.parametrize(("death", "seen"), [("SIGKILL", ""), ("SIGUSR2", "ran SIGUSR2\n")])
def test_a_parent_that_dies_before_the_child_can_ask_for_a_signal_is_no_exception(death: str, seen: str) -> None:
    assert output("parent_dies_first", death, exits=-signal.SIGKILL) == seen


def test_a_signal_during_the_fork_reaches_the_process_it_was_sent_to_and_no_other() -> None:
    assert output("signals").splitlines() == ["child SIGALRM", "parent's queue in the child []", "parent SIGTERM"]


def test_a_fork_beside_other_threads_is_refused_by_name_and_waits_for_one_that_is_ending() -> None:
    refused, then = output("threads").splitlines()
    assert "scraper" in refused
    assert "unknown to threading" in refused
    assert then == "then 0"


def test_whatever_escapes_run_ends_the_child_with_70_and_a_traceback() -> None:
    with start("endings") as program:
        printed, errors = program.communicate(timeout=DEADLINE)
    assert json.loads(printed) == [0, 71, 70, 70, 70]
    assert "ValueError: boom" in errors
    assert "SystemExit: 0" in errors
    assert "TypeError" in errors


def test_a_hundred_forks_leak_no_descriptor_on_either_side() -> None:
    assert json.loads(output("leaks")) == {"exit codes": [0], "leaked": 0}


def test_text_buffered_at_the_fork_is_printed_once() -> None:
    assert output("buffered") == "once child\nparent\n"
