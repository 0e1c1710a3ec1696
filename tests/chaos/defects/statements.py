"""Defects in the statements of pgworker."""

from __future__ import annotations

from tests.chaos.defects.defect import Bed, Defect
from tests.chaos.defects.revealing import (
    CANCELLED_AND_KILLED,
    DRAINED,
    WORKERS_KILLED,
)

_IN_ONE_PLACE = "I1: every job is in exactly one place"
_AT_REST = ("I7: everything comes to rest", "I1: at the end nothing waits or runs")
_NO_LOCK = """due as (
    select job_id, run_at, execution, priority, failures, queue, task, org_id from pgworker.job_queue
    where ctid = any (array("""


_SILENT = "or worker.beat_at < clock_timestamp() - %(silence)s"


def _reclaim_again(bed: Bed) -> None:
    bed.replace(
        "reclaim_jobs",
        "where e.job_id = held.job_id and e.execution = held.execution offset 0)",
        "where false offset 0)",
    )


def _claim_without_lock(bed: Bed) -> None:
    """Both of two claims at once see the row, and each deletes what it has seen."""
    bed.replace("claim_jobs", "for update of q skip locked) as waiting", ") as waiting")
    bed.replace("claim_jobs", "due as (\n    delete from pgworker.job_queue\n    where ctid = any (array(", _NO_LOCK)
    bed.replace(
        "claim_jobs",
        "    returning job_id, run_at, execution, priority, failures, queue, task, org_id\n)",
        "), gone as (\n    delete from pgworker.job_queue where job_id in (select job_id from due)\n)",
    )


def _claim_without_delete(bed: Bed) -> None:
    bed.replace("claim_jobs", "due as (\n    delete from pgworker.job_queue\n    where ctid = any (array(", _NO_LOCK)
    bed.replace(
        "claim_jobs", "    returning job_id, run_at, execution, priority, failures, queue, task, org_id\n)", ")"
    )


def _cancel_nothing(bed: Bed) -> None:
    bed.replace(
        "cancel_waiting_jobs",
        "delete from pgworker.job_queue where job_id = any (%(job_ids)s::uuid[]) returning job_id, execution, failures",
        "select job_id, execution, failures from pgworker.job_queue where job_id = any (%(job_ids)s::uuid[])",
    )


def _reclaim_never(bed: Bed) -> None:
    bed.replace("find_reclaimable_leases", "where (worker.ended_at is not null", "where (false")
    bed.replace("find_reclaimable_leases", "(%(by_expiry)s::boolean and", "(false and %(by_expiry)s::boolean and")


def _reclaim_from_the_living(bed: Bed) -> None:
    bed.replace("find_reclaimable_leases", "and lease.expires_at < clock_timestamp()", "")
    bed.replace("find_reclaimable_leases", _SILENT, f"or true {_SILENT}")
    bed.replace("take_lease", "(not %(only_expired)s::boolean or", "(true or not %(only_expired)s::boolean or")


def _replaced(statement: str, old: str, new: str) -> _Replacement:
    return _Replacement(statement, old, new)


class _Replacement:
    def __init__(self, statement: str, old: str, new: str) -> None:
        self._words = (statement, old, new)

    def __call__(self, bed: Bed) -> None:
        bed.replace(*self._words)


DEFECTS = (
    Defect(
        "finished-jobs-reclaimed",
        "A reclaim does not look at what its lease has settled, and sends finished jobs on with the others.",
        _reclaim_again,
        frozenset({"I1: what has succeeded or was cancelled never runs again"}),
        (WORKERS_KILLED,),
    ),
    Defect(
        "crash-not-charged",
        "The failure that a crash is, is recorded and not counted.",
        _replaced("reclaim_jobs", "in ('failed', 'timed_out', 'crashed') then 1", "in ('failed', 'timed_out') then 1"),
        frozenset({"I4: failures count the executions that are charged"}),
        (WORKERS_KILLED,),
    ),
    Defect(
        "neighbours-charged",
        "A crash is charged to every job of the lease, those that had not started too.",
        _replaced("reclaim_jobs", "else held.outcome end", "else 'crashed' end"),
        frozenset({"I4: a reclaim charges no more than could run at once"}),
        (WORKERS_KILLED,),
    ),
    Defect(
        "cancelled-jobs-reclaimed",
        "A reclaim records that a job was cancelled, and sends it on all the same.",
        _replaced(
            "reclaim_jobs",
            "where id is not null and outcome is distinct from 'cancelled' and",
            "where id is not null and",
        ),
        frozenset({"I1: what has succeeded or was cancelled never runs again", _IN_ONE_PLACE}),
        (CANCELLED_AND_KILLED,),
    ),
    Defect(
        "reclaimed-from-the-living",
        "Pools take leases of neighbours whose time is not over.",
        _reclaim_from_the_living,
        frozenset({"I2: a lease is taken only when its time is over or its worker has ended"}),
    ),
    Defect(
        "never-reclaimed",
        "Nobody takes back what dead workers held.",
        _reclaim_never,
        frozenset(_AT_REST),
        (WORKERS_KILLED,),
    ),
    Defect(
        "claim-without-lock",
        "A claim reads due jobs without locking them, and deletes them afterwards.",
        _claim_without_lock,
        frozenset({"I3: an execution starts once"}),
    ),
    Defect(
        "claim-without-delete",
        "A claim leaves its jobs in the queue.",
        _claim_without_delete,
        frozenset({_IN_ONE_PLACE, "I3: an execution starts once", *_AT_REST}),
    ),
    Defect(
        "payload-of-a-neighbour",
        "A claim joins jobs to the payloads of those before them.",
        _replaced(
            "claim_jobs",
            "job.payload::text,",
            "lag(job.payload::text, 1, job.payload::text) over (partition by job.task),",
        ),
        frozenset({"I8: a job runs with its own arguments"}),
    ),
    Defect(
        "one-attempt-too-many",
        "Max_attempts is off by one: a job fails once more than it may.",
        _replaced("claim_jobs", "job.max_attempts,", "(job.max_attempts + 1)::smallint,"),
        frozenset({"I4: no more failures than attempts", "I4: nothing runs whose attempts are used up"}),
    ),
    Defect(
        "one-attempt-too-few",
        "Max_attempts is off by one in the other direction: a job is given up too early.",
        _replaced("claim_jobs", "job.max_attempts,", "greatest(job.max_attempts - 1, 1)::smallint,"),
        frozenset({"I4: no job is given up before its attempts are used up"}),
    ),
    Defect(
        "failure-counted-twice",
        "Each failure is counted as two.",
        _replaced(
            "settle_jobs",
            "run.failures + coalesce(run.charge, 0) as",
            "(run.failures + 2 * coalesce(run.charge, 0))::smallint as",
        ),
        frozenset({"I4: failures count the executions that are charged"}),
    ),
    Defect(
        "retry-keeps-its-number",
        "A job that failed goes back to the queue with the number of the execution that has ended.",
        _replaced("settle_jobs", "           execution + 1, priority", "           execution, priority"),
        frozenset({"I3: an execution starts once", "I3: execution numbers go on"}),
    ),
    Defect(
        "retry-lost",
        "A job that is to be retried is recorded as failed and not put back into the queue.",
        _replaced("settle_jobs", "from onward where next = 1 and id is not null", "from onward where false"),
        frozenset({_IN_ONE_PLACE}),
    ),
    Defect(
        "dead-letter-lost",
        "A job that is given up is deleted, and no dead letter is written.",
        _replaced("settle_jobs", "from onward where next = 2 or id is null", "from onward where false"),
        frozenset({_IN_ONE_PLACE}),
    ),
    Defect(
        "progress-left-behind",
        "What a job said of itself stays when it has ended for good.",
        _replaced("forget_progress", "and exists (", "and false and exists ("),
        frozenset({"nothing is kept of what jobs said that have ended for good"}),
    ),
    Defect(
        "cancel-of-waiting-jobs-lies",
        "A cancel says that a waiting job was cancelled, and leaves it in the queue.",
        _cancel_nothing,
        frozenset({"I3: what was cancelled while it waited did not start", _IN_ONE_PLACE}),
    ),
    Defect(
        "release-charges",
        "Jobs that are handed back, not started, have a failure more.",
        _replaced(
            "release_jobs",
            "priority, failures, queue, task, org_id\n    from found",
            "priority, (failures + 1)::smallint, queue, task, org_id\n    from found",
        ),
        frozenset({"I4: failures count the executions that are charged"}),
        (DRAINED,),
    ),
)
