"""A whole pool whose login has pgworker_worker and nothing else, fed by one that has pgworker_enqueuer.

What is proved is proved as those two. A superuser only sets the scene, and looks at it afterwards.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from tests.process import jobs
from tests.process.pool import eventually, start
from tests.sql.actors import ask, ended

Login = Callable[..., str]


def test_a_pool_does_all_of_its_work_with_the_rights_of_a_worker(
    roles_dsn: str, login: Login, connect: Callable[[], Connection[Any]], tmp_path: Path
) -> None:
    owner, theirs = connect(), login("pgworker_worker")
    (tomorrow,) = ask(owner, "select to_char(clock_timestamp() at time zone 'UTC' + interval '1 day', 'YYYYMMDD')")
    for table in ("jobs", "job_executions"):
        owner.execute(f"drop table pgworker.{table}_{tomorrow}".encode())
    owner.execute("create table effect (job_id uuid, execution integer)")
    owner.execute(f"grant insert on effect to {conninfo_to_dict(theirs)['user']}".encode())
    # Left by somebody whose lease has run out, for the monitor to find.
    foreign = ask(owner, "select pgworker.enqueue('tests.process.jobs.quick', %s)", quick(tmp_path, "foreign"))[0]
    owner.execute(
        """with gone as (delete from pgworker.job_queue returning job_id)
           insert into pgworker.job_leases
               (lease_id, worker_id, claimed_at, expires_at, slots, job_ids, executions, failures)
           select gen_random_uuid(), gen_random_uuid(), now(), now() - interval '1 hour', 1, array[job_id], '{1}', '{0}'
           from gone"""
    )
    with (
        psycopg.connect(login("pgworker_enqueuer"), autocommit=True) as enqueuer,
        start(theirs, tmp_path / "pool.log", lease_ttl=3.0) as pool,
    ):

        def enqueue(task: Any, *arguments: Any) -> UUID:
            job_id: UUID = task.using(enqueuer).enqueue(str(tmp_path), *arguments).id
            return job_id

        pool.wait_for_log("the pool is ready")
        many = jobs.app.enqueue_many([jobs.quick.job(str(tmp_path), f"n{number}") for number in range(500)], enqueuer)
        paid = enqueue(jobs.effect, "paid")
        retried = enqueue(jobs.effect, "retried", "raise")
        given_up = enqueue(jobs.fail_for_a_judge_that_fails, "given up")
        # A failure that is not yet recorded when the worker dies counts for nothing.
        eventually(lambda: ended(owner, retried) and ended(owner, given_up), "the first failures")
        crashed = enqueue(jobs.die, "crashed", "kill")
        held = enqueue(jobs.hold, "held")
        eventually(lambda: len(ended(owner, crashed)) == 2, "a second execution of the job that killed its worker")
        worker = eventually(lambda: starts(tmp_path, "held"), "the job that waits")[0]
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: len(starts(tmp_path, "held")) == 2, "its second execution")
        (tmp_path / "held").touch()
        eventually(lambda: ended(owner, foreign), "the job of a lease that had run out")
        waiting = "select count(*) from pgworker.job_queue"
        eventually(lambda: ask(owner, waiting) == [0] and len(ended(owner, held)) == 2, "an empty queue")
        partitions = "select count(*) from pg_class where relname in ('jobs_' || %s, 'job_executions_' || %s)"
        eventually(lambda: ask(owner, partitions, tomorrow, tomorrow) == [2], "the partitions of tomorrow")
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
        log = pool.log()
    assert "permission denied" not in log
    assert {outcome for job in many for _, outcome, _ in ended(owner, job.id)} == {"succeeded"}
    assert charged(owner, paid) == ["succeeded"]
    assert charged(owner, retried) == ["failed", "succeeded"]
    assert charged(owner, given_up) == ["failed", "failed"]
    for killed in (crashed, held, foreign):
        assert charged(owner, killed) == ["crashed", "succeeded"]
    assert ask(owner, "select job_id from pgworker.dead_letter_jobs") == [given_up]
    assert set(ask(owner, "select job_id from effect")) == {paid, retried}
    assert ask(owner, "select count(*) from effect") == [2]
    assert ask(owner, "select count(*) from pgworker.job_leases") == [0]
    belongs = "select distinct relowner::regrole::text from pg_class where relnamespace = 'pgworker'::regnamespace"
    assert ask(owner, belongs) == ["pgworker_owner"]


def charged(connection: Connection[Any], job_id: UUID) -> list[str]:
    """How its executions ended, without those of a neighbour's crash."""
    return [outcome for _, outcome, _ in ended(connection, job_id) if outcome != "lost"]


def quick(directory: Path, name: str) -> str:
    return jobs.quick.job(str(directory), name).payload


def starts(directory: Path, name: str) -> list[int]:
    """The processes that have started this job."""
    lines = [line.split(" ") for line in (directory / "ledger").read_text().splitlines()]
    return [int(line[-1]) for line in lines if line[:2] == ["start", name]]
