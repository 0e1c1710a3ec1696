"""What `pgworker top` shows of a snapshot, on screens of all sizes."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from uuid import UUID

import pytest
from rich.cells import cell_len
from rich.console import Console

from pgworker.inspection.failures import Failure
from pgworker.inspection.queues import Count, QueueCounts, Unserved
from pgworker.inspection.workers import WorkerRow, WorkerRun
from pgworker.top.frame import KEYS, frame
from pgworker.top.look import Snapshot
from pgworker.top.rates import WorkerRate
from pgworker.top.view import View

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
JOB = UUID("019f0000-0000-7000-8000-0123456789ab")
HOSTILE = "[red]\x1b[2J\n漢字\u202e"


def worker(slot: int, *, host: str = "db-1.example", runs: int = 0, beat_age: float = 1.0) -> WorkerRow:
    ran = tuple(WorkerRun(JOB, "shop.charge", "default", 1, 60.0 * slot + 12) for _ in range(runs))
    state = "busy" if runs else "idle"
    return WorkerRow(
        UUID(int=slot), UUID(int=0), host, slot, 4000 + slot, state, ["default"], NOW, beat_age, 7, 130 << 20, 1.0, ran
    )


def queue(name: str, *, paused: bool = False, unserved: int = 0) -> QueueCounts:
    lost = (Unserved(name, "typo.task", Count(unserved), True),) if unserved else ()
    return QueueCounts(name, paused, Count(10_000, True), Count(3), Count(2), Count(1), 75.0, lost)


def failure(number: int, message: str = "no such order") -> Failure:
    at = NOW - timedelta(seconds=number)
    return Failure(JOB, 1, "shop.charge", "default", "failed", at, "LookupError", message, None)


def snapshot(workers: int = 3, queues: int = 2, failures: int = 2, given_up: int = 1, message: str = "no") -> Snapshot:
    return Snapshot(
        NOW,
        8,
        [queue(f"queue{number}") for number in range(queues)],
        [worker(slot, runs=slot % 2) for slot in range(workers)],
        Count(failures),
        [failure(number, message) for number in range(failures)],
        Count(given_up),
        [failure(number, message) for number in range(given_up)],
        {"queue0": 12.5},
    )


def shown(seen: Snapshot, width: int, height: int | None, **options: str | bool) -> list[str]:
    """The lines that a terminal of this size gets."""
    rates = {one.worker_id: WorkerRate(8.25, 0.5) for one in seen.workers[:2]}
    view = View("user@db.example:5432/app", seen, rates)
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False, emoji=False).print(
        frame(view, width, height, **options)  # type: ignore[arg-type]
    )
    return out.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 45), (120, 30), (40, 10), (20, 5), (80, 1)])
@pytest.mark.parametrize("rows", [0, 1, 60])
def test_a_frame_is_as_high_as_the_screen_and_no_wider(width: int, height: int, rows: int) -> None:
    lines = shown(snapshot(rows, rows, rows, rows, HOSTILE), width, height, notice="away " * 60)
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width
    assert all(line.isprintable() for line in lines)


def test_80_columns_tell_who_runs_what_and_since_when() -> None:
    lines = shown(snapshot(), 80, 24)
    assert lines[0].startswith("pgworker top  user@db.example:5432/app  schema 8")
    assert lines[0].endswith("03:04:05 UTC")
    assert lines[1] == "ended 16/s  failed 2 in 60s  running 1 in 1 of 3 workers on 1 host"
    assert lines[2] == "waiting 20000+, oldest 75s  to run again 2  dead letters 1  scheduled 6"
    heading, first, second, third = lines[4:8]
    assert heading.split() == ["HOST", "WORKER", "PID", "STATE", "JOB", "TASK", "FOR", "MEMORY", "CPU", "JOBS/S"]
    assert first.split() == ["db-1.example", "0", "4000", "idle", "130", "MiB", "50%", "8.2"]
    assert second.split() == [
        "db-1.example",
        "1",
        "4001",
        "busy",
        "456789ab",
        "shop.charge",
        "72s",
        "130",
        "MiB",
        "50%",
        "8.2",
    ]
    assert third.split()[-2:] == ["-", "-"], "no rate yet"
    assert lines[-1].strip() == KEYS


def test_the_clock_is_that_of_utc_whichever_zone_the_server_has() -> None:
    there = replace(snapshot(), at=NOW.astimezone(timezone(timedelta(hours=9))))
    assert shown(there, 80, 24)[0].endswith("03:04:05 UTC")


def test_160_columns_have_whole_ids() -> None:
    assert str(JOB) in shown(snapshot(), 160, 45)[6]


def test_what_does_not_fit_is_counted_and_the_silent_and_the_longest_jobs_are_shown_first() -> None:
    seen = snapshot(workers=40, queues=1, failures=0, given_up=0)
    workers = [*seen.workers[:20], worker(20, beat_age=100.0), *seen.workers[21:]]
    crowded = Snapshot(NOW, 8, seen.queues, workers, Count(0), [], Count(0), [], {})
    lines = shown(crowded, 80, 16)
    assert "silent 100s" in lines[5]
    assert lines[6].split()[1] == "39", "its job has run for longest"
    rows = [line for line in lines if line.startswith("db-1.example")]
    assert f"… {40 - len(rows)} more" in [line.strip() for line in lines]


def test_a_paused_queue_and_what_nobody_serves_stand_out() -> None:
    queues = [queue("mail", paused=True), queue("typo", unserved=4)]
    lines = shown(Snapshot(NOW, 8, queues, [], Count(0), [], Count(0), [], {}), 80, 24)
    assert any(line.split()[0] == "mail" and line.strip().endswith("paused") for line in lines if line.strip())
    assert any(line.split()[0] == "typo" and line.split()[-1] == "4" for line in lines if line.strip())
    assert "unserved 4" in lines[2]
    assert "no workers: `pgworker start` runs some" in [line.strip() for line in lines]


def test_nothing_at_all_says_so() -> None:
    lines = [line.strip() for line in shown(Snapshot(NOW, 8, [], [], Count(0), [], Count(0), [], {}), 80, 24)]
    assert lines[1] == "ended -/s  failed 0 in 60s  running 0 in 0 of 0 workers on 0 hosts"
    assert "no jobs wait or run" in lines


def test_dead_letters_and_failures_that_nobody_has_read_are_counted_too() -> None:
    letters = [failure(number) for number in range(50)]
    seen = Snapshot(NOW, 8, [], [], Count(3), [failure(1)] * 50, Count(375), letters, {})
    for height in (None, 24):
        lines = [line.strip() for line in shown(seen, 80, height)]
        counted = [re.fullmatch(r"… (\d+)(\+?) more", line) for line in lines]
        failures, dead = [match for match in counted if match]
        rows = sum("LookupError" in line for line in lines)
        assert int(failures[1]) + int(dead[1]) + rows == 50 + 375
        assert (failures[2], dead[2]) == ("+", "")


def test_a_page_without_an_end_shows_every_worker_and_the_latest_failures() -> None:
    lines = shown(snapshot(workers=200, failures=50), 80, None)
    assert sum(line.startswith("db-1.example") for line in lines) == 200
    assert sum("LookupError" in line for line in lines) == 10 + 1
    assert not any(KEYS in line for line in lines)


def test_names_and_messages_of_anybody_are_shown_as_text() -> None:
    seen = Snapshot(NOW, 8, [], [worker(0, host=HOSTILE)], Count(0), [failure(1, HOSTILE)], Count(0), [], {})
    page = "\n".join(shown(seen, 160, 45))
    assert "LookupError: [red]\\x1b[2J 漢字\\u202e" in page
    assert "[red]\\x1b[2J\\n漢字\\u202e" in page
    assert "\x1b" not in page


def test_old_data_is_said_to_be_old_in_whole_sentences() -> None:
    told = "these data are 12s old: PostgreSQL at user@db.example:5432/app: Connection refused. Start it."
    lines = shown(snapshot(), 80, 24, notice=told)
    assert " ".join(line.strip() for line in lines[3:5]) == told
