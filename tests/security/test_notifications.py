"""What anybody may say on the channel: a NOTIFY needs no right at all, so the monitor believes no word of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest

from tests.process import jobs, test_pool
from tests.process.pool import eventually
from tests.process.test_pool import Scene, StartPool

scene = test_pool.scene
start_pool = test_pool.start_pool

LIES = {
    "nothing": "",
    "words": "drop everything",
    "more jobs than there are numbers": "default=" + "9" * 7000,
    "more than an integer": "default=" + "9" * 400,
    "digits that are no ASCII": "default=\u0661\u0662\u0663",
    "less than nothing": "default=-1",
    "queues by the hundred": ",".join(f"default={number}" for number in range(600)),
    "a queue with a terminal's own words": "\x1b[2J\u202e=5",
    "a cancel of nobody": "!cancel ",
    "a cancel of a lease that isn't there": f"!cancel {uuid4()}",
    "a cancel of something that is no lease": "!cancel " + "f" * 7000,
    "a name without an end": "a" * 7900,
    "line ends": "default=1\n\r\u2028ERROR everything is lost",
}


@pytest.mark.parametrize("fed_by", ["pgworker_enqueuer", "nobody"])
def test_whatever_a_login_notifies_the_monitor_lives_and_jobs_run(
    scene: Scene, start_pool: StartPool, login: Callable[..., str], fed_by: str
) -> None:
    pool = start_pool(log_format="json", heartbeat_interval=0.3)
    monitor, workers = pool.monitor, pool.workers
    with psycopg.connect(login(*(() if fed_by == "nobody" else (fed_by,))), autocommit=True) as liar:
        for payload in LIES.values():
            liar.execute("select pg_notify('pgworker', %s)", [payload])
            liar.execute("select pg_notify('pgworker', %s || number) from generate_series(1, 100) number", [payload])
    beats = "select min(beat_at) > %s from pgworker.worker_heartbeats where ended_at is null"
    now = scene.scalar("select clock_timestamp()")
    eventually(lambda: scene.scalar(beats, now), "a beat after all of it")
    scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "one"))
    os.kill(monitor, 0)
    assert (pool.monitor, pool.workers) == (monitor, workers)
    assert re.search(r"Traceback|WARNING|ERROR|\x1b", pool.log()) is None
