"""Names that mean to be more than names: of hosts, orgs, tasks and queues, as they come out of a whole pool."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import Connection

from pgworker.lifecycle.enqueue import enqueue_jobs
from pgworker.model.job import JobRequest
from tests.acceptance.test_cli import on_a_terminal
from tests.acceptance.test_start import fetch
from tests.process import jobs, test_pool
from tests.process.pool import eventually, free_port, start
from tests.process.test_pool import Scene
from tests.sql.actors import ask

scene = test_pool.scene

HOSTILE = (
    'new\nline "event": "drained"}',
    "\x1b]0;owned\x07\x1b[2J\x9b2J",
    'quote" job=9 \\" {0.__class__} %s %(levelname)s',
    "}{ } 1\nfake_total 1",
    "\u202eright to left\u2066\u200b\ufeff",
    "carriage\rreturn\x00".rstrip("\x00"),
    "[red]markup[/red]",
    "ö 漢字 🙂",
    "l" * 256,
    "'; drop table pgworker.jobs; --",
    "$(touch /tmp/x)`id`",
)
"""What an org may be called: its name is anything that text can be."""

HOSTS = (b'evil\n\x1b[2J "}{\xe2\x80\xaex%s', b"\xff\xfe\xc3(.example", b"h" * 64)
"""What the kernel takes for a host's name."""

_NAMED = "import os, socket, sys; socket.sethostname(bytes.fromhex(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"


def on_host(name: bytes) -> tuple[str, ...]:
    """The command that runs another one on a host of this name; skips where that is not to be had."""
    prefix = ("unshare", "--uts", sys.executable, "-c", _NAMED, name.hex())
    tried = subprocess.run([*prefix, "/bin/true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"needs root, to give the host another name: {tried.stderr.strip()[-200:]}")
    return prefix


def is_clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_whatever_an_org_is_called_one_event_is_one_line_and_the_pages_can_be_read(
    scene: Scene, dsn: str, tmp_path: Path, log_format: str
) -> None:
    port = free_port()
    with start(
        dsn,
        tmp_path / "pool.log",
        log_format=log_format,
        log_level="debug",
        metrics_listen=f"127.0.0.1:{port}",
        heartbeat_interval=0.3,
    ) as pool:
        pool.wait_for_log("the pool is ready")
        made = [
            jobs.give_up.options(org_id=org).using(scene.connection).enqueue(str(tmp_path), "x").id for org in HOSTILE
        ]
        scene.wait_for_status("dead_letter", *made)
        for job in made:
            pool.wait_for_log(f"job_dead_lettered.*{job}|{job}.*job_dead_lettered")
        page = fetch(port, "/metrics")[1]
        assert all(word not in page for word in ("fake_total", "markup", "漢字", *map(str, made)))
        list(text_string_to_metric_families(page))
        titles = "".join(pool.processes().values())
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
    assert titles.isprintable()
    assert is_clean(pool.log())
    lines = pool.log().splitlines()
    if log_format == "json":
        told = [json.loads(line) for line in lines]
        assert {line["org"] for line in told if line["event"] == "job_dead_lettered"} == set(HOSTILE)
        assert [line["event"] for line in told].count("drained") == 1
    else:
        assert all(re.match(r"20\d\d-\S+Z [A-Z]+ +\w+", line) for line in lines)
        assert len([line for line in lines if line.rstrip().find("event=drained ") > 0]) == 1


@pytest.mark.parametrize("host", HOSTS, ids=["signs", "no-utf-8", "long"])
def test_a_pool_works_on_a_host_of_any_name(scene: Scene, dsn: str, tmp_path: Path, host: bytes) -> None:
    """Its jobs run, it beats, its log is one line an event, and what commands print of it is harmless."""
    log = tmp_path / "pool.log"
    with start(dsn, log, prefix=on_host(host), log_format="json", heartbeat_interval=0.3) as pool:
        pool.wait_for_log("the pool is ready")
        scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "one"))
        beats = "select count(*) from pgworker.worker_heartbeats"
        eventually(lambda: ask(scene.connection, beats) == [2], lambda: pool.log()[-2000:])
        (stored,) = ask(scene.connection, "select distinct host from pgworker.worker_heartbeats")
        pages = [on_a_terminal(*words.split(), dsn=dsn) for words in ("workers", "status", "workers --json")]
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
    assert len(stored) > 5
    assert all(is_clean(re.sub(r"\x1b\[[0-9;]*m", "", page)) for page in pages)
    told = [json.loads(line) for line in pool.log().splitlines()]
    assert {line["host"].encode("utf-8", "strict") is not None for line in told} == {True}
    assert is_clean(pool.log())


COMMANDS = (
    "jobs list",
    "jobs list --json",
    "dead-letters list",
    "status",
    "queues list",
    "workers",
    "jobs explain {id}",
)


def test_no_command_passes_a_sign_of_a_name_on_to_the_terminal(
    dsn: str, connect: Callable[[], Connection[Any]]
) -> None:
    """Also by rows that only an owner could have written: a name is never trusted for where it stands."""
    connection = connect()
    _, hostile, *_ = enqueue_jobs(connection, [JobRequest("t", "{}", org_id=org) for org in HOSTILE])
    for table, column in (("jobs", "task"), ("jobs", "queue"), ("job_queue", "task"), ("job_queue", "queue")):
        if table == "jobs":
            connection.execute(f"alter domain pgworker.{column}_name drop constraint {column}_name_check".encode())
        connection.execute(
            f"update pgworker.{table} set {column} = %s where org_id = %s".encode(), [HOSTILE[1], HOSTILE[1]]
        )
    connection.execute(
        """insert into pgworker.worker_heartbeats
               (worker_id, pool_id, host, pid_space, pid, number, queues, started_at, beat_at)
           select gen_random_uuid(), gen_random_uuid(), name, name, 1, 0, array[name], now(), now()
           from unnest(%s::text[]) as name""",
        [list(HOSTILE)],
    )
    for words in COMMANDS:
        page = on_a_terminal(*words.format(id=hostile).split(), dsn=dsn)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", page)
        assert is_clean(plain), f"{words}: {plain!r}"


def test_an_app_path_of_any_shape_is_refused_in_one_clean_line(dsn: str, tmp_path: Path) -> None:
    for path in (HOSTILE[0], HOSTILE[1], "os:system", "../x:app", "x" * 10_000):
        ended = subprocess.run(
            [sys.executable, "-m", "pgworker", "start", "--app", path, "--metrics-listen", "off", "--dsn", dsn],
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            check=False,
        )
        told = ended.stderr.decode()
        assert ended.returncode == 78, told
        assert len(told.splitlines()) == 1, told
        assert is_clean(told), repr(told)
