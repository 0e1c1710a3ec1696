"""Defects in the functions of pgworker, and what is none."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from msgspec import structs
from psycopg import Connection, Cursor

import pgworker.app.queue.losses
import pgworker.cli.pool
import pgworker.lifecycle.enqueue
import pgworker.master.main
import pgworker.monitor.renewals
import pgworker.worker.clerk
import pgworker.worker.link
import pgworker.worker.transaction
from pgworker.app.queue.handing_back import LostClaims
from pgworker.app.queue.leases import ClaimedJob, HeldLease
from pgworker.app.queue.postgres import PostgresQueue
from pgworker.lifecycle.enqueue import Group
from pgworker.lifecycle.settle import Ended, Next, Settlement
from pgworker.model.state import Outcome
from tests.chaos.defects.defect import Bed, Defect
from tests.chaos.defects.revealing import DRAINED, STOPPED_PAST_LEASE, WORKERS_KILLED

_RECORD = """
    insert into pgworker.job_executions (job_id, lease_id, finished_at, execution, outcome, failures)
    values (%s, %s, clock_timestamp(), %s, 'succeeded', 0) on conflict do nothing
"""
_RECORD_LATEST = """
    with gone as (
        delete from pgworker.job_queue where job_id = %(job_id)s returning execution
    ), held as (
        select execution from gone
        union all
        select held.execution
        from pgworker.job_leases as lease, unnest(lease.job_ids, lease.executions) as held(id, execution)
        where %(job_id)s = any (lease.job_ids) and held.id = %(job_id)s
    )
    insert into pgworker.job_executions (job_id, lease_id, finished_at, execution, outcome, failures)
    select %(job_id)s, %(lease_id)s, clock_timestamp(), execution, 'succeeded', 0 from held on conflict do nothing
"""
_RENEW_ALL = """
    update pgworker.job_leases set expires_at = clock_timestamp() + interval '1 minute'
    where worker_id in (select worker_id from pgworker.worker_heartbeats where ended_at is null)
"""


def _settle_without_fence(bed: Bed) -> None:
    def find_unsettled(cursor: Cursor[Any], settlement: Settlement) -> list[Ended]:
        for run in settlement.executions:
            cursor.execute(_RECORD, [run.job_id, settlement.lease_id, run.execution])
        return []

    bed.patch(pgworker.app.queue.losses, "find_unsettled", find_unsettled)


def _settle_by_id(bed: Bed) -> None:
    def find_unsettled(cursor: Cursor[Any], settlement: Settlement) -> list[Ended]:
        for run in settlement.executions:
            cursor.execute(_RECORD_LATEST, {"job_id": run.job_id, "lease_id": settlement.lease_id})
        return []

    bed.patch(pgworker.app.queue.losses, "find_unsettled", find_unsettled)


def _commit_apart(bed: Bed) -> None:
    settle = getattr(pgworker.worker.transaction, "_settle")  # noqa: B009

    def commit_and_settle(connection: Connection[Any], settlement: Settlement) -> None:
        connection.execute("commit")
        time.sleep(0.2)  # in which a worker may die
        connection.execute("begin")
        settle(connection, settlement)

    bed.patch(pgworker.worker.transaction, "_settle", commit_and_settle)


def _lose_commits(bed: Bed) -> None:
    connect = getattr(pgworker.worker.link, "connect_to_schema")  # noqa: B009

    def connect_to_liar(*given: Any, **named: Any) -> Connection[Any]:
        connection: Connection[Any] = connect(*given, **named)
        execute = connection.execute

        def execute_or_not(statement: Any, *more: Any, **options: Any) -> Any:
            lies = statement == "commit" and bed.dice.random() < 0.05
            return execute("rollback" if lies else statement, *more, **options)

        setattr(connection, "execute", execute_or_not)  # noqa: B010
        return connection

    bed.patch(pgworker.worker.link, "connect_to_schema", connect_to_liar)


def _lose_replies(bed: Bed) -> None:
    """Of one claim in twenty the reply does not come; the connection is gone with it."""
    take = getattr(PostgresQueue, "_take")  # noqa: B009

    def take_or_not(queue: PostgresQueue, claim: Any, rows: Any) -> Any:
        if rows and bed.dice.random() < 0.05:
            raise psycopg.OperationalError("the reply to a claim was lost, as planted")
        return take(queue, claim, rows)

    bed.patch(PostgresQueue, "_take", take_or_not)


def _renew_lost_claims(bed: Bed) -> None:
    _lose_replies(bed)
    renew = pgworker.monitor.renewals.Renewals.renew_due

    def renew_all(renewals: Any, connection: Connection[Any], *given: Any) -> None:
        renew(renewals, connection, *given)
        connection.execute(_RENEW_ALL)

    bed.patch(LostClaims, "release", lambda claims, _connection: getattr(claims, "_until").clear())  # noqa: B009
    bed.patch(pgworker.monitor.renewals.Renewals, "renew_due", renew_all)


def _release_started(bed: Bed) -> None:
    keep = HeldLease.keep
    bed.patch(HeldLease, "keep", lambda lease, count: keep(lease, max(0, count - 1)))


def _take_failures_for_success(bed: Bed) -> None:
    fail = PostgresQueue.fail

    def succeed_or_fail(queue: PostgresQueue, job: ClaimedJob, ended: Ended | BaseException) -> None:
        if isinstance(ended, Ended) and ended.outcome is Outcome.FAILED:
            queue.succeed(job, structs.replace(ended, outcome=Outcome.SUCCEEDED, next=Next.END, error=None))
        else:
            fail(queue, job, ended)

    bed.patch(PostgresQueue, "fail", succeed_or_fail)


def _keep_org(bed: Bed) -> None:
    settings_of = pgworker.worker.transaction.settings_of
    orgs: list[str] = [""]

    def settings_of_before(execution: Any) -> Any:
        statement, (limit, org) = settings_of(execution)
        orgs.append(org)
        return statement, [limit, orgs.pop(0)]

    bed.rewire(settings_of, settings_of_before)


def _drop_enqueued(bed: Bed) -> None:
    enqueue = pgworker.lifecycle.enqueue.enqueue_group

    def enqueue_or_not(connection: Connection[Any], group: Group) -> list[bytes]:
        with connection.transaction(force_rollback=bed.dice.random() < 0.2):
            return enqueue(connection, group)

    bed.rewire(enqueue, enqueue_or_not)


def _enqueue_elsewhere(bed: Bed) -> None:
    enqueue = pgworker.lifecycle.enqueue.enqueue_group

    def enqueue_on_another(connection: Connection[Any], group: Group) -> list[bytes]:
        with psycopg.connect(connection.info.dsn) as another:
            return enqueue(another, group)

    bed.rewire(enqueue, enqueue_on_another)


def _drain_at_once(bed: Bed) -> None:
    """It neither settles nor hands back: it is gone, and its exit code says that all is well."""

    def is_done(clerk: Any) -> bool:
        return bool(getattr(clerk, "_row").is_draining)  # noqa: B009

    bed.patch(pgworker.worker.clerk.Clerk, "_is_done", is_done)


def _lie_at_exit(bed: Bed) -> None:
    run_pool = pgworker.master.main.run_pool
    bed.rewire(run_pool, lambda parts: run_pool(parts) or 70)


DEFECTS = (
    Defect(
        "settled-without-fence",
        "A settle writes what has ended without a lease.",
        _settle_without_fence,
        frozenset(
            {"I2: nothing is settled after its lease was lost", "I3: a settle that was acknowledged has its row"}
        ),
        (STOPPED_PAST_LEASE,),
        settings={"lease_ttl": 1.0},
    ),
    Defect(
        "settled-by-id",
        "A settle ends the job of this id, whoever has it by now.",
        _settle_by_id,
        frozenset({"I2: nothing is settled after", "I3: a settle that was acknowledged has its row"}),
        (STOPPED_PAST_LEASE,),
        settings={"lease_ttl": 1.0},
    ),
    Defect(
        "effect-apart-from-success",
        "ctx.transaction() commits before it settles.",
        _commit_apart,
        frozenset({"I6: an effect happened if and only if its execution succeeded"}),
        (WORKERS_KILLED,),
        gap=0.3,
    ),
    Defect(
        "acknowledged-without-commit",
        "One COMMIT in twenty is a ROLLBACK, and what it settled and claimed is taken for done.",
        _lose_commits,
        frozenset({"I3: a settle that was acknowledged has its row"}),
    ),
    Defect(
        "lost-claims-kept",
        "A claim whose reply was lost is not released, and leases are renewed by worker, whether it knows them or not.",
        _renew_lost_claims,
        frozenset({"I7: everything comes to rest"}),
    ),
    Defect(
        "started-jobs-released",
        "A worker that hands back gives the job too that it runs.",
        _release_started,
        frozenset({"I3: an execution starts once"}),
        (DRAINED,),
    ),
    Defect(
        "failure-taken-for-success",
        "What a handler has raised is recorded as success.",
        _take_failures_for_success,
        frozenset({"I3: what must fail has not succeeded"}),
    ),
    Defect(
        "org-of-the-job-before",
        "A handler's transaction is that of the org of the job before.",
        _keep_org,
        frozenset({"I8: an effect is of the org of its job"}),
    ),
    Defect(
        "enqueue-lost",
        "One enqueue in five is rolled back behind the caller, who gets ids.",
        _drop_enqueued,
        frozenset({"I1: a job whose enqueue was acknowledged is not lost"}),
    ),
    Defect(
        "enqueue-outside-of-the-transaction",
        "An enqueue commits on a connection of its own: a rolled-back one is stored.",
        _enqueue_elsewhere,
        frozenset({"I1: a rolled-back enqueue is not", "I6: a job enqueued by another one"}),
    ),
    Defect(
        "drain-keeps-leases",
        "A worker that is to drain goes at once, with what it holds, and says that all is well.",
        _drain_at_once,
        frozenset({"I7: a worker that has drained holds nothing"}),
        (DRAINED,),
    ),
    Defect(
        "exit-code-lies",
        "A pool that has drained ends with the exit code of a bug.",
        _lie_at_exit,
        frozenset({"a pool drains"}),
    ),
)

HARMLESS = (
    Defect(
        "replies-lost",
        "The reply to one claim in twenty is lost: jobs go back, and nothing is broken.",
        _lose_replies,
        frozenset(),
        is_harmless=True,
    ),
)
