"""What a whole pool logs: a job's life to grep, lines of handlers, and a log that nobody reads."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pgworker.lifecycle.cancel import cancel_job
from pgworker.observe.vocabulary import ALWAYS, EVENTS, FIELDS, JOB_EVENTS
from tests.process import jobs, talk, test_pool
from tests.process.pool import ROOT, Pool, eventually, start
from tests.process.test_pool import Scene, StartPool, kill

scene = test_pool.scene
start_pool = test_pool.start_pool

TALK = "tests.process.talk:app"


def lines(pool: Pool) -> list[dict[str, Any]]:
    """Every whole line that is JSON."""
    return [json.loads(line) for line in pool.log().splitlines() if line.startswith("{") and line.endswith("}")]


def life(pool: Pool, job: UUID) -> list[tuple[str, int, str]]:
    """The lines that grep finds: event, execution and outcome. Without claims: one may be given back unstarted."""
    found = [json.loads(line) for line in pool.log().splitlines() if str(job) in line]
    told = [(line["event"], line["execution"], line.get("outcome", "")) for line in found]
    return [line for line in told if line[0] != "job_claimed" and (line[0], line[2]) != ("job_released", "")]


def wait_for_event(pool: Pool, event: str, job: UUID | None = None) -> dict[str, Any]:
    def look() -> list[dict[str, Any]]:
        return [line for line in lines(pool) if line.get("event") == event and (job is None or line["job"] == str(job))]

    return eventually(look, f"{event} of {job}")[0]


# -- a job's life


def test_the_life_of_a_job_can_be_read_with_grep(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(log_format="json", log_level="debug", cancel_grace="0.2s", term_grace="0.2s")
    kind, killed = scene.enqueue(jobs.cooperate, "kind"), scene.enqueue(jobs.hold, "killed")
    kill(scene.wait_for("start", "killed").pid)
    scene.wait_for("start", "killed", execution=2)
    scene.open_gate("killed")
    scene.wait_for_status("succeeded", killed)
    scene.wait_for("start", "kind")
    cancel_job(scene.connection, kind)
    dead = scene.enqueue(jobs.give_up, "dead")
    deaf = scene.enqueue(jobs.hold.options(timeout=0.1, max_attempts=1), "deaf")
    polite = scene.enqueue(jobs.cooperate.options(timeout=0.1, max_attempts=1), "polite")
    snoozed = scene.enqueue(jobs.tell, "snoozed", "snooze")
    scene.wait_for_status("succeeded", snoozed)
    scene.wait_for_status("cancelled", kind)
    scene.wait_for_status("dead_letter", dead, deaf, polite)
    wait_for_event(pool, "job_dead_lettered", deaf)
    wait_for_event(pool, "job_succeeded", killed)
    wait_for_event(pool, "job_succeeded", snoozed)
    wait_for_event(pool, "job_claimed", killed)
    begun, again = ("job_started", 1, ""), [("job_started", 2, ""), ("job_succeeded", 2, "succeeded")]
    assert life(pool, killed) == [begun, ("execution_reclaimed", 1, "crashed"), *again]
    assert life(pool, snoozed) == [begun, ("job_snoozed", 1, "snoozed"), *again]
    assert life(pool, kind)[-1] == ("job_cancelled", life(pool, kind)[-1][1], "cancelled")
    assert life(pool, dead) == [begun, ("job_dead_lettered", 1, "failed")]
    assert life(pool, deaf)[-1] == ("job_dead_lettered", life(pool, deaf)[-1][1], "timed_out")
    assert life(pool, polite)[-1] == ("job_dead_lettered", life(pool, polite)[-1][1], "timed_out")
    reclaimed = wait_for_event(pool, "execution_reclaimed", killed)
    assert (reclaimed["process"], reclaimed["task"]) == ("monitor", jobs.hold.name)
    assert "killed by SIGKILL" in reclaimed["cause"]
    for line in lines(pool):
        assert line.keys() <= ALWAYS.keys() | FIELDS.keys(), line
        assert line["event"] in EVENTS
        if line["event"] in JOB_EVENTS:
            assert {"job", "execution", "task", "queue"} <= line.keys(), line


def test_by_default_a_success_is_not_logged_and_all_else_is_one_line(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(log_format="json")
    quick, twice = scene.enqueue(jobs.quick, "quick"), scene.enqueue(jobs.nap, "twice", 0.0, 1)
    scene.wait_for_status("succeeded", quick, twice)
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
    assert life(pool, quick) == []
    assert life(pool, twice) == [("job_failed", 1, "failed")]
    failed = wait_for_event(pool, "job_failed", twice)
    assert (failed["level"], failed["error"], failed["error_message"]) == ("WARNING", "ValueError", "as asked")
    assert failed["retry_in"] >= 0.05
    assert failed["duration"] >= 0


def test_a_variable_that_looks_like_a_misspelt_setting_is_told_of(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGWORKER_DRAINTIMEOUT", "4")
    monkeypatch.setenv("PGWORKER_SOMETHING", "of another program")
    [line] = [line for line in lines(start_pool(log_format="json", workers=1)) if line["event"] == "setting_unknown"]
    assert line["message"] == "PGWORKER_DRAINTIMEOUT is no setting; did you mean PGWORKER_DRAIN_TIMEOUT?"


def test_the_first_line_says_what_starts_and_the_last_what_was_done(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(log_format="json", workers=2, slots=3, queue="default")
    scene.wait_for_status("succeeded", scene.enqueue(jobs.nap, "twice", 0.0, 1), scene.enqueue(jobs.quick, "quick"))
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
    first, *_, last = lines(pool)
    assert (first["event"], first["workers"], first["slots"], first["queues"]) == ("pool_starting", 2, 3, "default")
    assert first["pid"] == pool.master
    assert (last["event"], last["jobs"], last["succeeded"], last["failed"]) == ("drained", 3, 2, 1)
    assert last["duration"] > 0
    assert len({line["pool"] for line in lines(pool)}) == 1


# -- what handlers say


@pytest.mark.parametrize("task", [talk.together, talk.together_async], ids=["threads", "event-loop"])
def test_each_line_of_a_handler_names_its_own_job(scene: Scene, start_pool: StartPool, task: Any) -> None:
    pool = start_pool(app=TALK, log_format="json", workers=1, slots=2)
    made = talk.app.enqueue_many([task.job("a"), task.job("b")], scene.connection)
    scene.wait_for_status("succeeded", *[job.id for job in made])
    ids = dict(zip("ab", (str(job.id) for job in made), strict=True))
    for kind in ("middleware", "plain", "context", "thread"):
        found = {line["message"][-1]: line for line in lines(pool) if line["message"].startswith(f"{kind} of")}
        assert {name: line["job"] for name, line in found.items()} == ids
        for line in found.values():
            assert (line["execution"], line["task"], line["queue"]) == (1, task.name, "default")
    assert {line["own"] for line in lines(pool) if "own" in line} == {"a", "b"}


def test_what_a_handler_enqueues_is_a_job_of_its_own_in_the_log(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(app=TALK, log_format="json", log_level="debug")
    parent = talk.hand_on.using(scene.connection).enqueue("x")
    scene.wait_for_status("succeeded", parent.id)
    child = wait_for_event(pool, "job_enqueued")
    assert (child["task"], "execution" in child) == (talk.forge.name, False)
    assert child["job"] != str(parent.id)
    (plain,) = [line for line in lines(pool) if line["message"] == "plain of x"]
    assert plain["job"] == str(parent.id)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_handler_cannot_forge_a_line(scene: Scene, start_pool: StartPool, log_format: str) -> None:
    pool = start_pool(app=TALK, log_format=log_format)
    job = talk.forge.using(scene.connection).enqueue("x")
    scene.wait_for_status("dead_letter", job.id)
    pool.wait_for_log("job_dead_lettered")
    printed = [line for line in pool.log().splitlines() if not re.match(r"20\d\d-\S+Z [A-Z]+ +\w+|{.*}$", line)]
    assert printed == ["printed as it is"] * 2
    forged = [line for line in pool.log().splitlines() if "event=drained" in line]
    assert len(forged) == 4  # two warnings, and twice the error of the job
    assert all(str(job.id) in line for line in forged)
    assert "\x1b" not in pool.log()


CONFIGURED = """
import logging.config, sys
logging.config.dictConfig({
    "version": 1,
    "formatters": {"own": {"format": "THEIRS %(name)s %(message)s %(pgworker)s", "defaults": {"pgworker": None}}},
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
    "root": {"handlers": ["own"], "level": "INFO"},
})
from tests.process.talk import app
"""


@pytest.mark.parametrize("preload", [False, True], ids=["in-workers", "preloaded"])
def test_an_app_that_configures_logging_keeps_it_and_our_lines_are_as_before(
    scene: Scene, start_pool: StartPool, tmp_path: Path, preload: bool
) -> None:
    tmp_path.joinpath("configured.py").write_text(CONFIGURED)
    more: dict[str, object] = {"preload": True} if preload else {}
    pool = start_pool(app="configured:app", cwd=tmp_path, log_format="json", **more)
    job = talk.forge.using(scene.connection).enqueue("x")
    scene.wait_for_status("dead_letter", job.id)
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
    theirs = [line for line in pool.log().splitlines() if line.startswith("THEIRS talk middleware of x")]
    assert len(theirs) == 2
    assert str(job.id) in theirs[0]
    events = [line["event"] for line in lines(pool)]
    assert {"pool_starting", "worker_started", "job_failed", "job_dead_lettered", "drained"} <= set(events)
    assert not [line for line in pool.log().splitlines() if line.startswith("THEIRS pgworker")]


# -- a log that nobody reads


@contextmanager
def stuck_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that is full."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    yield reader, writer
    for end in (reader, writer):
        with suppress(OSError):
            os.close(end)


def run_one_and_drain(scene: Scene, pool: Pool) -> None:
    twice = scene.enqueue(jobs.nap, "twice", 0.0, 1)
    scene.wait_for_status("succeeded", twice)
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


def test_a_pool_whose_log_nobody_reads_works_on_and_says_later_what_is_lost(
    scene: Scene, dsn: str, tmp_path: Path
) -> None:
    with (
        stuck_pipe() as (reader, writer),
        start(dsn, tmp_path / "pool.log", stderr=writer, log_format="json", lease_ttl=test_pool.TTL) as pool,
    ):
        twice = scene.enqueue(jobs.nap, "twice", 0.0, 1)
        scene.wait_for_status("succeeded", twice)
        os.set_blocking(reader, False)
        told = b""

        def read_until(wanted: bytes) -> bool:
            nonlocal told
            with suppress(BlockingIOError):
                told += os.read(reader, 1 << 20)
            return wanted in told

        eventually(lambda: not read_until(b"\0") and told.strip(b"x") == b"" and len(told) >= 65536, "an empty pipe")
        pool.send(signal.SIGTERM)
        eventually(lambda: read_until(b'"event": "drained"'), lambda: f"the end in {told[-2000:]!r}")
        assert pool.wait() == 0
    found = [json.loads(line) for line in told.lstrip(b"x").splitlines()]
    lost = {line["process"]: line["lines"] for line in found if line["event"] == "log_lines_lost"}
    assert lost["master"] >= 1
    assert lost.keys() <= {"master", "worker 0", "worker 1"}  # these only if they have anything more to say


def test_a_pool_whose_log_has_no_reader_any_more_works_on(scene: Scene, dsn: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with start(dsn, tmp_path / "pool.log", stderr=writer) as pool:
        os.close(writer)
        os.close(reader)
        run_one_and_drain(scene, pool)


def test_a_pool_whose_disk_is_full_works_on(scene: Scene, dsn: str, tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with start(dsn, tmp_path / "pool.log", stderr=full, log_level="debug") as pool:
            run_one_and_drain(scene, pool)
    finally:
        os.close(full)


def test_lines_are_whole_however_long_and_many_they_are(tmp_path: Path) -> None:
    program = """
import logging, os
from pgworker.observe import logs
logs.configure("json", "info")
for _ in range(3):
    if os.fork() == 0:
        for number in range(200):
            logs.logger("x").info("y" * (number * 80))
        os._exit(0)
for _ in range(3):
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, cwd=ROOT, check=True)
    found = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert sorted(map(len, found)) == sorted([number * 80 for number in range(200)] * 3)


# -- where lines go


def test_the_stacks_of_usr1_are_readable_in_json(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(log_format="json")
    scene.enqueue(jobs.hold, "held")
    worker = scene.wait_for("start", "held").pid
    pool.send(signal.SIGUSR1)

    def stack() -> list[str]:
        return [line["message"] for line in lines(pool) if line["event"] == "stack" and line["worker_pid"] == worker]

    eventually(lambda: any("in wait_for_gate" in line for line in stack()), lambda: f"its stack in {stack()}")
    assert all("\n" not in line for line in stack())
    scene.open_gate("held")


def test_for_the_journal_a_line_begins_with_its_priority(tmp_path: Path) -> None:
    program = "from pgworker.observe import logs; logs.configure(); logs.logger('x').warning('careful')"
    with (tmp_path / "log").open("w+b") as log:
        status = os.fstat(log.fileno())
        for stream in (f"{status.st_dev}:{status.st_ino}", f"{status.st_dev}:{status.st_ino + 1}"):
            environ = os.environ | {"JOURNAL_STREAM": stream}
            subprocess.run([sys.executable, "-c", program], stderr=log, env=environ, cwd=ROOT, check=True)
        log.seek(0)
        to_journal, to_file = log.read().decode().splitlines()
    assert to_journal.startswith("<4>WARNING pgworker  careful  host=")
    assert to_file.startswith("20")
