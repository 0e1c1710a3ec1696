"""A pool that works for several orgs, as a login with the rights of a worker and those on one protected table."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from tests.process import tenants as jobs
from tests.process.pool import eventually, start
from tests.sql.actors import ask
from tests.sql.tenants import MISCHIEF, ORGS, protect_notes

ENDS = ("success", "error", "cancel")
THEIR_OWN_COMMIT = {name for name, statement in MISCHIEF.items() if statement.startswith(("commit", "rollback"))}


def test_jobs_of_five_orgs_see_their_own_rows_and_nothing_of_each_other(
    connect: Callable[[], Connection[Any]], login: Callable[..., str], tmp_path: Path
) -> None:
    tenants = protect_notes(connect(), login)
    mischiefs = [name for name in MISCHIEF if name not in THEIR_OWN_COMMIT]
    with psycopg.connect(login("pgworker_enqueuer"), autocommit=True) as enqueuer:
        orgs = {
            job.id: (org, end)
            for org in (*ORGS, None)
            for number, mischief in enumerate(mischiefs)
            for end in [ENDS[number % 3] if number or org != "acme" else "kill"]
            for job in jobs.app.enqueue_many(
                [jobs.visit.options(org_id=org).job(str(tmp_path), mischief, end)], enqueuer
            )
        }
    with start(tenants.dsn, tmp_path / "pool.log", app="tests.process.tenants:app") as pool:
        ended = (
            "select count(*) from unnest(%s::uuid[]) as id where pgworker.job_status(id) in ('succeeded', 'cancelled')"
        )
        eventually(lambda: ask(tenants.owner, ended, list(orgs)) == [len(orgs)], lambda: pool.log()[-3000:], 60)
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
    lines = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert [line for line in lines if line["seen"] != ([line["org"]] if line["org"] else [])] == []
    assert len({line["pid"] for line in lines}) >= 2
    failed = "select error->>'message' from pgworker.job_executions where outcome = 'failed'"
    assert set(ask(tenants.owner, failed)) == {"as asked"}, "no job found the mess of another one"
    found = Counter(tenants.owner.execute("select org_id, note from shop.notes where note not like 'of %'").fetchall())
    assert found == Counter((org, str(job_id)) for job_id, (org, end) in orgs.items() if org and end != "cancel")
