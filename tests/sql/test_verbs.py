"""Each statement by itself: the rows it writes, and what it refuses."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec import structs
from psycopg import Connection

from pgworker.errors import JobNotFound
from pgworker.inspection.jobs import show_job
from pgworker.inspection.workers import list_workers
from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.claim import Lanes, find_below_floor, find_dry_lanes, floor_of
from pgworker.lifecycle.dead_letters import discard_dead_letters, list_dead_letters, requeue_dead_letters
from pgworker.lifecycle.enqueue import Alike, enqueue_jobs
from pgworker.lifecycle.heartbeat import (
    Activity,
    PoolIdentity,
    RunningJob,
    WorkerProcess,
    announce_tasks,
    beat_workers,
    end_silent_worker,
    end_worker,
    find_silent_workers,
    forget_workers,
)
from pgworker.lifecycle.partitions import make_partitions
from pgworker.lifecycle.reclaim import Findings, Reclaimable, Reclaimed, find_reclaimable, reclaim_lease
from pgworker.lifecycle.release import Returned, release_jobs
from pgworker.lifecycle.renew import Renewal, renew_leases
from pgworker.lifecycle.settle import Next, Settlement, find_unsettled
from pgworker.linux.floors import FloorsSeen
from pgworker.model.job import JobRequest
from pgworker.model.retry import Backoff
from pgworker.model.state import CancelAnswer, Outcome, WorkerState
from tests.sql.actors import (
    AT_ONCE,
    POOL,
    Connect,
    Held,
    Monitor,
    Worker,
    ask,
    ended,
    enqueue,
    leases,
    now,
    statuses,
    waiting,
)

NOTHING: tuple[list[Any], ...] = ([], [], [], [], [])
EVERYTHING = """
    select array(select id from pgworker.jobs order by 1), array(select job_id from pgworker.job_queue order by 1),
           array(select lease_id from pgworker.job_leases order by 1),
           array(select (job_id, execution) from pgworker.job_executions order by 1),
           array(select job_id from pgworker.dead_letter_jobs order by 1)
"""

COLUMNS = "priority, max_attempts, timeout_ms, queue, task, payload, org_id, headers, unique_key, concurrency_key"

ALONE_OR_NOT = pytest.mark.parametrize("others", [[], [JobRequest("t", "{}")]], ids=["alone", "with another"])
"""One job is stored by another function than several are."""


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


@pytest.fixture
def worker(db: Connection[Any]) -> Worker:
    return Worker(db)


def everything(db: Connection[Any]) -> Any:
    return ask(db, EVERYTHING)[0]


def fail(worker: Worker, held: Held, then: Next, **options: Any) -> None:
    assert worker.settle(held.settlement(outcome=Outcome.FAILED, then=then, **options))


# -- enqueue


def test_enqueue_stores_the_job_as_asked_and_a_queue_row_for_its_first_execution(db: Connection[Any]) -> None:
    before, at = now(db), datetime(2099, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    [plain, full] = enqueue_jobs(
        db,
        [
            JobRequest("t", '{"a": [1, null]}'),
            JobRequest("pkg.task:x", "{}", "mail-1", 9, at, 3, None, "org", '{"traceparent": "00"}'),
        ],
    )
    assert ask(db, f"select id, {COLUMNS} from pgworker.jobs order by id") == [
        (plain, 5, 25, 1_800_000, "default", "t", {"a": [1, None]}, None, None, None, None),
        (full, 9, 3, None, "mail-1", "pkg.task:x", {}, "org", {"traceparent": "00"}, None, None),
    ]
    assert ask(
        db, "select job_id, execution, failures, priority, queue, task, org_id from pgworker.job_queue order by job_id"
    ) == [(plain, 1, 0, 5, "default", "t", None), (full, 1, 0, 9, "mail-1", "pkg.task:x", "org")]
    [(created, due), (_, later)] = ask(db, "select created_at, run_at from pgworker.jobs order by id")
    assert before <= created == due <= now(db)
    assert later == at
    assert ask(db, "select run_at from pgworker.job_queue order by job_id") == [due, at]


def test_jobs_that_differ_in_their_payloads_are_stored_as_one_would_be(db: Connection[Any]) -> None:
    before, at = now(db), datetime(2099, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    plain = JobRequest("t", "{}")
    full = JobRequest("pkg.task:x", "{}", "mail-1", 9, at, 3, None, "org", '{"traceparent": "00"}')
    first, second = (enqueue_jobs(db, Alike(template, ['{"a": 1}', "{}"])) for template in (plain, full))
    assert ask(db, f"select id, {COLUMNS} from pgworker.jobs order by id") == [
        (id_, *columns[:5], payload, *columns[5:], None, None)
        for ids, columns in (
            (first, (5, 25, 1_800_000, "default", "t", None, None)),
            (second, (9, 3, None, "mail-1", "pkg.task:x", "org", {"traceparent": "00"})),
        )
        for id_, payload in zip(ids, ({"a": 1}, {}), strict=True)
    ]
    assert ask(
        db, "select job_id, execution, failures, priority, queue, task, org_id from pgworker.job_queue order by job_id"
    ) == [
        *((id_, 1, 0, 5, "default", "t", None) for id_ in first),
        *((id_, 1, 0, 9, "mail-1", "pkg.task:x", "org") for id_ in second),
    ]
    times = ask(
        db,
        """select created_at, jobs.run_at, job_queue.run_at from pgworker.jobs
           join pgworker.job_queue on job_id = id order by id""",
    )
    assert all(before <= created == due == waits <= now(db) for created, due, waits in times[:2])
    assert all(before <= created <= now(db) and due == waits == at for created, due, waits in times[2:])


@pytest.mark.parametrize("alike", [False, True])
def test_ids_are_uuid7_of_the_servers_clock_and_rise_in_the_order_of_the_requests(
    alike: bool, db: Connection[Any]
) -> None:
    before = now(db)
    ids = enqueue_jobs(db, Alike(JobRequest("t", "{}"), ["{}"] * 500)) if alike else enqueue(db, 500)
    assert len({job.int >> 64 for job in ids}) > 20, "claims go on behind the time of the last one"
    assert ids == sorted(ids)
    assert {(job.version, job.variant) for job in ids} == {(7, "specified in RFC 4122")}
    made = ask(db, "select pgworker.uuid7_at(id) from pgworker.jobs")
    assert before - timedelta(milliseconds=1) <= min(made) <= max(made) <= now(db)


@ALONE_OR_NOT
def test_a_run_at_in_the_past_means_now(db: Connection[Any], others: list[JobRequest]) -> None:
    before = now(db)
    enqueue_jobs(db, [*others, JobRequest("t", "{}", run_at=datetime(2000, 1, 1, tzinfo=timezone.utc))])
    assert min(ask(db, "select run_at from pgworker.job_queue")) >= before


@ALONE_OR_NOT
def test_an_id_of_ones_own_is_kept_and_refused_the_second_time(db: Connection[Any], others: list[JobRequest]) -> None:
    [own] = ask(db, "select pgworker.uuid7(clock_timestamp() - interval '23 hours')")
    requests = [*others, JobRequest("t", "{}", id=own)]
    stored = enqueue_jobs(db, requests)
    assert stored[-1] == own
    with pytest.raises(psycopg.errors.UniqueViolation):
        enqueue_jobs(db, requests)
    assert sorted(waiting(db)) == [(job, 1, 0) for job in sorted(stored)]


@ALONE_OR_NOT
@pytest.mark.parametrize("stranger", ["gen_random_uuid()", "pgworker.uuid7(now() - interval '25 hours')"])
def test_an_id_that_is_no_uuid7_of_about_now_is_refused_with_all_that_came_with_it(
    db: Connection[Any], stranger: str, others: list[JobRequest]
) -> None:
    [own] = ask(db, f"select {stranger}")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="UUID version 7"):
        enqueue_jobs(db, [*others, JobRequest("t", "{}", id=own)])
    assert everything(db) == NOTHING


@pytest.mark.parametrize(
    "wrong",
    [
        {"priority": 10},
        {"priority": -1},
        {"max_attempts": 0},
        {"timeout": 0},
        {"queue": "a b"},
        {"queue": ""},
        {"queue": "q" * 129},
        {"task": "é"},
        {"task": "t\n"},
        {"payload": "[1]"},
        {"payload": "3"},
        {"headers": "[]"},
        {"org_id": ""},
    ],
    ids=repr,
)
@ALONE_OR_NOT
def test_the_table_itself_refuses_what_no_job_may_be(
    db: Connection[Any], wrong: dict[str, Any], others: list[JobRequest]
) -> None:
    request = JobRequest(**({"task": "t", "payload": "{}"} | wrong))
    for group in ([*others, request], Alike(request, [*(other.payload for other in others), request.payload])):
        with pytest.raises(psycopg.errors.CheckViolation):
            enqueue_jobs(db, group)
    assert everything(db) == NOTHING


def test_a_payload_of_over_eight_mebibytes_as_stored_is_refused(db: Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute("select pgworker.enqueue('t', jsonb_build_object('a', repeat('x', 8 * 1024 * 1024)))")


def test_enqueue_is_part_of_the_callers_transaction(db: Connection[Any], connect: Connect) -> None:
    other = connect()
    with db.transaction(force_rollback=True):
        enqueue(db, 2)
        assert everything(other) == NOTHING
        assert len(waiting(db)) == 2
    assert everything(db) == NOTHING


def test_enqueue_in_plain_sql_has_the_same_defaults(db: Connection[Any]) -> None:
    db.execute(
        "select pgworker.enqueue('t'), pgworker.enqueue('t', timeout => null, priority => 7, payload => '{\"a\":1}')"
    )
    assert ask(
        db, "select task, payload, queue, priority, max_attempts, timeout_ms, org_id from pgworker.jobs order by id"
    ) == [("t", {}, "default", 5, 25, 1_800_000, None), ("t", {"a": 1}, "default", 7, 25, None, None)]


def test_many_jobs_of_a_task_in_plain_sql_have_the_same_defaults_and_none_is_none(db: Connection[Any]) -> None:
    [ids] = ask(
        db,
        """select pgworker.enqueue_many('t', array_agg(jsonb_build_object('n', n)), timeout => null)
                       from generate_series(1, 3) as n""",
    )
    assert ask(
        db, "select id, payload, queue, priority, max_attempts, timeout_ms, org_id from pgworker.jobs order by id"
    ) == [(id_, {"n": n}, "default", 5, 25, None, None) for n, id_ in enumerate(ids, 1)]
    assert ask(db, "select pgworker.enqueue_many('t', '{}')") == [[]]
    assert ask(db, "select pgworker.enqueue_many('t', null)") == [[]]
    assert enqueue_jobs(db, []) == []
    assert len(waiting(db)) == 3


def test_enqueue_tells_sleepers_once_and_only_of_what_is_due_in_their_queue(
    db: Connection[Any], connect: Connect
) -> None:
    sleeper, later = connect(), datetime(2099, 1, 1, tzinfo=timezone.utc)
    sleeper.execute("listen pgworker")
    sleeper.execute("select pg_advisory_lock_shared(1885828977, hashtext('mail'))")
    requests = [JobRequest("t", "{}", "mail") for _ in range(3)] + [JobRequest("t", "{}", "other")]
    enqueue_jobs(db, [*requests, JobRequest("t", "{}", "mail", run_at=later)])
    enqueue_jobs(db, [JobRequest("t", "{}", "mail", run_at=later), JobRequest("t", "{}", "other")])
    for template in (JobRequest("t", "{}", "mail"), JobRequest("t", "{}", "mail", run_at=later), JobRequest("t", "{}")):
        enqueue_jobs(db, Alike(template, ["{}"] * 4))
    enqueue_jobs(db, Alike(JobRequest("t", "{}", "mail"), []))
    db.execute("notify pgworker, 'end'")
    told = [one.payload.partition(",")[0] for one in sleeper.notifies(timeout=10, stop_after=3)]
    assert told == ["mail=3", "mail=4", "end"]


# -- claim


def test_a_claim_takes_what_is_due_by_queue_then_priority_then_time_and_says_all_about_it(
    db: Connection[Any], worker: Worker
) -> None:
    soon = now(db) + timedelta(hours=1)
    [low] = enqueue(db, priority=1)
    [second] = enqueue(db, queue="second", priority=9)
    [_scheduled] = enqueue(db, priority=9, run_at=soon)
    [high] = enqueue(db, priority=9, org_id="org", timeout=2.5, max_attempts=3, headers='{"h": 1}', payload='{"a": 1}')
    [_foreign] = enqueue(db, task="unknown")
    [_elsewhere] = enqueue(db, queue="third")
    [middle, later] = enqueue(db, 2)
    held = worker.claim(queues=["default", "second"])
    assert held.ids == [high, middle, later, low, second]
    [(run_at, created_at)] = ask(db, "select run_at, created_at from pgworker.jobs where id = %s", high)
    row = held.rows[0]
    assert (*row[:5], *row[6:12], row.checkpoint) == (
        high, "t", '{"a": 1}', 1, 0, "default", 9, "org", 3, 2500, '{"h": 1}', None
    )  # fmt: skip
    assert (row.run_at, row.created_at, row.place) == (run_at, created_at, floor_of(run_at, high))
    [lease] = ask(
        db,
        "select lease_id, worker_id, slots, job_ids, executions, failures, cancelled, "
        "expires_at - claimed_at between '60 s' and '61 s' from pgworker.job_leases",
    )
    assert lease == (held.lease_id, worker.worker_id, 1, held.ids, [1] * 5, [0] * 5, [], True)
    assert len(waiting(db)) == 3


def test_a_claim_takes_no_more_than_asked_over_all_lanes_and_leaves_the_rest_unlocked(
    db: Connection[Any], worker: Worker, connect: Connect
) -> None:
    ids = [*enqueue(db, 2, priority=9), *enqueue(db, 2, priority=5)]
    with db.transaction():
        assert worker.claim(3).ids == ids[:3]
        assert Worker(connect()).claim(3).ids == ids[3:]
    assert waiting(db) == []


def test_a_claim_of_nothing_leaves_no_lease(db: Connection[Any], worker: Worker) -> None:
    enqueue(db, task="unknown")
    assert worker.claim().rows == []
    assert worker.claim(0).rows == []
    assert leases(db) == {}


def test_a_paused_queue_is_not_claimed_from_and_others_are(db: Connection[Any], worker: Worker) -> None:
    [paused], [other] = enqueue(db), enqueue(db, queue="other")
    db.execute("insert into pgworker.queues (name, paused) values ('default', true), ('other', false)")
    assert worker.claim(queues=["default", "other"]).ids == [other]
    db.execute("update pgworker.queues set paused = false")
    assert worker.claim(queues=["default", "other"]).ids == [paused]


def test_a_claim_starts_at_its_floor_time_and_id_and_what_lies_below_is_found_by_the_look_behind(
    db: Connection[Any], worker: Worker
) -> None:
    """A bulk enqueue in one transaction of a client may give many jobs one run_at; the floor moves among them too."""
    ids = enqueue(db, 4)
    run_at = now(db) - timedelta(seconds=90)
    db.execute("update pgworker.job_queue set run_at = %s", [run_at])
    lanes, lane = Lanes.of(["default"]), 4
    floors = FloorsSeen([0] * 10, [0] * 10)
    floors.run_at_us[lane], floors.id_halves[lane] = floor_of(run_at, ids[2])

    def look(reach: float | None) -> list[tuple[int, tuple[int, int]]]:
        return find_below_floor(db.cursor(), tasks=["t"], lanes=lanes, floors=floors, reach=reach)

    assert worker.claim(floors=floors).ids == ids[2:]
    assert look(None) == look(60) == [(lane, floor_of(run_at, ids[0]))]
    floors.run_at_us[lane] += 61_000_000
    assert look(60) == []
    assert look(62) == look(None) == [(lane, floor_of(run_at, ids[0]))]
    assert find_below_floor(db.cursor(), tasks=["u"], lanes=lanes, floors=floors, reach=None) == []


def test_a_lane_is_dry_up_to_a_little_ago_when_what_is_due_there_is_nobodys(
    db: Connection[Any], worker: Worker
) -> None:
    """Its floor may rise over jobs of tasks that nobody serves, and never over one that waits for a paused queue."""
    lanes, floors = Lanes.of(["default"]), FloorsSeen([0] * 10, [0] * 10)
    enqueue(db, task="unknown", priority=9)
    [ours] = enqueue(db, priority=7)
    db.execute("update pgworker.job_queue set run_at = run_at - interval '90 s'")
    enqueue(db, priority=5)
    before, minute, nil = now(db), timedelta(seconds=60), UUID(int=0)

    def dry() -> dict[int, tuple[int, int]]:
        return dict(find_dry_lanes(db.cursor(), tasks=["t"], lanes=lanes, floors=floors, margin=60))

    found = dry()
    assert found.keys() == set(range(10)) - {lanes.index("default", 7)}
    for place in found.values():
        assert floor_of(before - minute, nil) <= place <= floor_of(now(db) - minute, nil)
    floors.run_at_us[:2] = [floor_of(before, nil)[0]] * 2
    assert dry().keys() == found.keys() - {0, 1}
    assert worker.claim(1, floors=floors).ids == [ours]
    assert len(dry()) == 8
    db.execute("insert into pgworker.queues (name, paused) values ('default', true)")
    assert dry() == {}


def test_the_floor_of_a_job_made_by_the_server_is_at_its_place_in_the_lane(db: Connection[Any]) -> None:
    [job] = enqueue(db)
    [(run_at, half)] = ask(db, "select run_at, pgworker.uuid7_time_half(run_at) from pgworker.job_queue")
    assert floor_of(run_at, job) == (round(run_at.timestamp() * 1_000_000), half)


def test_a_queue_row_without_its_job_is_claimed_without_a_payload_and_becomes_a_dead_letter(
    db: Connection[Any], worker: Worker
) -> None:
    [orphan, job] = enqueue(db, 2)
    db.execute("delete from pgworker.jobs where id = %s", [orphan])
    held = worker.claim()
    assert [(row.job_id, row.payload, row.max_attempts) for row in held.rows] == [(orphan, None, None), (job, "{}", 25)]
    fail(worker, held, Next.REQUEUE)
    [letter] = list_dead_letters(db)
    assert (letter.job_id, letter.task, letter.payload, letter.failures) == (orphan, "unknown", "{}", 1)
    assert waiting(db) == [(job, 2, 1)]


# -- settle


def test_a_success_is_one_row_of_history_and_the_end_of_its_lease(db: Connection[Any], worker: Worker) -> None:
    enqueue(db, 2)
    held = worker.claim()
    before = now(db)
    assert worker.settle(held.settlement(result='{"n": 1}'))
    rows = ask(
        db,
        "select job_id, lease_id, worker_id, execution, outcome::text, position, failures, error, result, cause "
        "from pgworker.job_executions order by position",
    )
    assert rows == [
        (job, held.lease_id, worker.worker_id, 1, "succeeded", place, 0, None, {"n": 1}, None)
        for place, job in enumerate(held.ids, start=1)
    ]
    assert leases(db) == {}
    assert statuses(db, held.ids) == ["succeeded"] * 2
    for started, finished in ask(db, "select started_at, finished_at from pgworker.job_executions"):
        assert before - timedelta(seconds=1) <= started <= finished <= now(db)


def test_times_of_an_execution_are_the_servers_clock_less_what_the_worker_measured(
    db: Connection[Any], worker: Worker
) -> None:
    enqueue(db)
    settlement = worker.claim().settlement()
    at = time.monotonic_ns()
    run = structs.replace(settlement.executions[0], started_ns=at - 5_000_000_000, finished_ns=at - 2_000_000_000)
    assert worker.settle(Settlement(settlement.lease_id, 1, [run], True))
    [(lasted, ago)] = ask(
        db, "select finished_at - started_at, clock_timestamp() - finished_at from pgworker.job_executions"
    )
    assert abs(lasted - timedelta(seconds=3)) < timedelta(milliseconds=1)
    assert timedelta(seconds=2) <= ago < timedelta(seconds=12)


def test_failures_go_back_with_the_next_number_a_charge_and_a_delay_and_snoozes_without_a_charge(
    db: Connection[Any], worker: Worker
) -> None:
    [failing, snoozing] = enqueue(db, 2, priority=7, org_id="org", queue="mail", max_attempts=2)
    held = worker.claim(queues=["mail"])
    before = now(db)
    failed = held.settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE, delay=30.5, error='{"type": "X"}')
    assert worker.settle(failed)
    assert worker.settle(held.settlement(2, outcome=Outcome.SNOOZED, then=Next.REQUEUE, delay=600))
    rows = ask(
        db,
        "select job_id, execution, failures, priority, queue, task, org_id, extract(epoch from run_at - %s)::float8 "
        "from pgworker.job_queue order by job_id",
        before,
    )
    assert [row[:-1] for row in rows] == [
        (failing, 2, 1, 7, "mail", "t", "org"),
        (snoozing, 2, 0, 7, "mail", "t", "org"),
    ]
    assert 30.5 <= rows[0][-1] < 40
    assert 600 <= rows[1][-1] < 610
    assert ask(db, "select outcome::text, error from pgworker.job_executions order by job_id") == [
        ("failed", {"type": "X"}),
        ("snoozed", None),
    ]
    assert statuses(db, [failing, snoozing]) == ["failed", "scheduled"]


def test_a_dead_letter_is_a_full_copy_of_its_job_with_why_it_died(db: Connection[Any], worker: Worker) -> None:
    [job] = enqueue(db, payload='{"a": 1}', org_id="org", headers='{"h": 1}', max_attempts=1, timeout=3)
    fail(worker, worker.claim(), Next.BURY, error='{"type": "X"}')
    columns = "created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload, org_id, headers"
    assert ask(db, f"select {columns} from pgworker.dead_letter_jobs") == ask(
        db, f"select {columns} from pgworker.jobs"
    )
    assert ask(
        db, "select job_id, execution, failures, outcome::text, error, cause from pgworker.dead_letter_jobs"
    ) == [(job, 1, 1, "failed", {"type": "X"}, None)]
    assert statuses(db, [job]) == ["dead_letter"]
    assert waiting(db) == []


def test_a_settlement_of_many_kinds_is_one_statement(db: Connection[Any], worker: Worker) -> None:
    ids = enqueue(db, 4)
    held = worker.claim()
    ended_as = [(Outcome.SUCCEEDED, Next.END), (Outcome.FAILED, Next.REQUEUE), (Outcome.TIMED_OUT, Next.BURY)]
    succeeded = held.settlement(1, 3).executions
    runs = [structs.replace(run, outcome=o, next=n) for run, (o, n) in zip(succeeded, ended_as, strict=True)]
    assert worker.settle(Settlement(held.lease_id, 1, runs, False))
    assert statuses(db, ids) == ["succeeded", "failed", "dead_letter", "running"]
    assert leases(db) == {held.lease_id: ids}


def test_a_settle_by_a_lease_that_is_unknown_writes_nothing(db: Connection[Any], worker: Worker) -> None:
    ids = enqueue(db, 2)
    held = worker.claim()
    for ends in (True, False):
        forged = Settlement(uuid4(), 1, held.settlement().ended, ends)
        assert not worker.settle(forged)
        assert find_unsettled(db.cursor(), forged) == forged.ended
    assert statuses(db, ids) == ["running", "running"]


def test_a_settle_beyond_the_end_of_its_lease_writes_only_what_the_lease_has(
    db: Connection[Any], worker: Worker
) -> None:
    [job] = enqueue(db)
    held = worker.claim()
    run = held.settlement().executions[0]
    assert not worker.settle(Settlement(held.lease_id, 1, [run, structs.replace(run, job_id=uuid4())], False))
    assert ask(db, "select job_id, position from pgworker.job_executions") == [(job, 1)]


def test_results_that_the_server_will_not_store_fail_the_settle_as_bad_data(
    db: Connection[Any], worker: Worker
) -> None:
    enqueue(db)
    held = worker.claim()
    for text in ("not json", '"\\u0000"', '"\\ud800"'):
        with pytest.raises(psycopg.DataError):
            worker.settle(held.settlement(result=text))
    assert leases(db) == {held.lease_id: held.ids}


# -- renew


def test_a_renewal_extends_the_leases_it_names_and_tells_which_are_gone_and_what_is_cancelled(
    db: Connection[Any], worker: Worker
) -> None:
    enqueue(db, 4)
    one, other, unnamed = worker.claim(2), worker.claim(1, ttl=1), worker.claim(1)
    cancel_job(db, one.ids[1])
    [before] = ask(db, "select expires_at from pgworker.job_leases where lease_id = %s", unnamed.lease_id)
    at = now(db)
    renewed = renew_leases(db, [one.lease_id, uuid4(), other.lease_id], 90)
    assert renewed == {one.lease_id: Renewal([2], False), other.lease_id: Renewal([], False)}
    expiries = dict(ask(db, "select lease_id, expires_at from pgworker.job_leases"))
    assert expiries[unnamed.lease_id] == before
    for lease in (one, other):
        assert timedelta(seconds=90) <= expiries[lease.lease_id] - at < timedelta(seconds=100)
    assert renew_leases(db, [], 60) == {}


# -- release


def test_a_release_gives_the_tail_back_as_it_was_and_tells_where_the_first_of_each_lane_lies(
    db: Connection[Any], worker: Worker
) -> None:
    high = enqueue(db, 2, priority=9)
    low = enqueue(db, 2, priority=1, org_id="org")
    fail(worker, worker.claim(1), Next.REQUEUE)
    before = ask(db, "select * from pgworker.job_queue order by job_id")
    held = worker.claim()
    order = held.ids
    assert set(order) == {*high, *low}
    answer = release_jobs(db, held.lease_id, 2)
    assert not answer.is_busy
    after = {row[0]: row for row in ask(db, "select * from pgworker.job_queue")}
    for row in before:
        if row[0] != order[0]:
            assert after[row[0]][2:] == row[2:]
    assert leases(db) == {held.lease_id: order[:1]}
    kept = held.rows[0]
    assert ask(db, "select executions, failures from pgworker.job_leases") == [([kept.execution], [kept.failures])]
    lanes = {lane.priority: lane for lane in answer.lanes}
    first = min(low)
    assert lanes[1] == Returned("default", 1, after[first][1], first, 2)
    assert sum(lane.jobs for lane in answer.lanes) == 3
    assert ask(db, "select count(*) from pgworker.job_executions") == [1]


def test_a_release_from_the_first_position_ends_the_lease(db: Connection[Any], worker: Worker) -> None:
    ids = enqueue(db, 2)
    held = worker.claim()
    release_jobs(db, held.lease_id, 1)
    assert everything(db) == (ids, ids, [], [], [])
    assert worker.claim().ids == ids


def test_a_release_of_nothing_changes_nothing(db: Connection[Any], worker: Worker) -> None:
    enqueue(db, 2)
    held = worker.claim()
    before = everything(db)
    for lease_id, first in ((uuid4(), 1), (held.lease_id, 3)):
        answer = release_jobs(db, lease_id, first)
        assert (answer.lanes, answer.is_busy) == ([], False)
    assert everything(db) == before


# -- reclaim


def test_only_leases_of_ended_workers_and_if_asked_expired_ones_are_reclaimable(
    db: Connection[Any], worker: Worker
) -> None:
    enqueue(db, 3)
    dead, late = Worker(db), Worker(db)
    worker.claim(1)
    gone, expired = dead.claim(1, slots=3), late.claim(1, ttl=0)
    dead.die("killed by signal 11")
    monitor = Monitor(db)
    of_the_dead = (gone.lease_id, dead.worker_id, 3, "killed by signal 11", False)
    of_the_late = (expired.lease_id, late.worker_id, 1, None, True)

    def found(by_expiry: bool) -> set[tuple[Any, ...]]:
        return {
            (lease.lease_id, lease.worker_id, lease.slots, lease.ended_how, lease.only_expired)
            for lease in monitor.reclaimable(by_expiry=by_expiry)
        }

    assert found(by_expiry=False) == {of_the_dead}
    assert found(by_expiry=True) == {of_the_dead, of_the_late}


def test_a_pool_has_the_time_to_take_back_itself_what_its_dead_worker_held(db: Connection[Any], worker: Worker) -> None:
    """It has the board, and knows which of the jobs had ended and which one has killed the worker."""
    enqueue(db, 1)
    held = worker.claim()
    beat_workers(db, POOL, [WorkerProcess(worker.worker_id, 1, 0, 0)])
    db.execute("update pgworker.worker_heartbeats set beat_at = beat_at - interval '1 minute'")  # an outage
    worker.die()

    def seen_by_another_pool() -> list[UUID]:
        found = find_reclaimable(
            db, by_expiry=True, pool_id=uuid4(), silence=60, patience=10, others_until=others_until
        )
        return [lease.lease_id for lease in found]

    others_until: datetime | None = now(db) + timedelta(hours=1)

    assert [lease.lease_id for lease in Monitor(db).reclaimable()] == [held.lease_id]
    assert seen_by_another_pool() == []
    db.execute("update pgworker.worker_heartbeats set beat_at = beat_at - interval '11 seconds'")
    assert seen_by_another_pool() == [held.lease_id]
    others_until = now(db) - timedelta(seconds=1)
    assert seen_by_another_pool() == [], "the clock was set forward: it looks as if the time were over"
    others_until = None
    assert seen_by_another_pool() == [], "the database is back a moment ago"


def test_a_reclaim_sends_each_job_where_what_is_known_of_it_says(db: Connection[Any], worker: Worker) -> None:
    ids = enqueue(db, 6, max_attempts=1)
    [again] = enqueue(db, max_attempts=5)
    held = worker.claim()
    cancel_job(db, ids[4])
    assert worker.settle(held.settlement(1, 1))
    worker.die()
    [lease] = Monitor(db).reclaimable()
    outcomes = [Outcome.LOST, Outcome.LOST, Outcome.CRASHED, Outcome.RELEASED, Outcome.CRASHED, None, Outcome.TIMED_OUT]
    findings = Findings(outcomes, [None, 1_000, 2_000_000, 0, 0, None, 0], "killed by signal 9", error='{"stack": "…"}')
    reclaimed = reclaim_lease(db, lease, lambda _: findings, AT_ONCE)
    assert reclaimed is not None
    assert (reclaimed.lease_id, reclaimed.worker_id) == (held.lease_id, worker.worker_id)
    run_ats = dict(ask(db, "select id, run_at from pgworker.jobs"))
    run_ats |= dict(ask(db, "select job_id, run_at from pgworker.job_queue where failures > 0"))  # with backoff

    def job(place: int, outcome: Outcome | None, failures: int, *, dead: bool = False, gone: bool = False) -> Reclaimed:
        run_at = None if dead or gone else run_ats[held.ids[place]]
        started_us = findings.started_us[place]
        moved = (run_at, dead, None, started_us, "killed by signal 9")
        return Reclaimed(held.ids[place], 1, outcome, failures, "t", "default", 5, *moved)

    assert reclaimed.jobs == [
        job(1, Outcome.LOST, 0),
        job(2, Outcome.CRASHED, 1, dead=True),
        job(3, Outcome.RELEASED, 0),
        job(4, Outcome.CANCELLED, 0, gone=True),
        job(5, None, 0),
        job(6, Outcome.TIMED_OUT, 1),
    ]
    assert waiting(db) == [(ids[1], 2, 0), (ids[3], 2, 0), (ids[5], 2, 0), (again, 2, 1)]
    assert statuses(db, held.ids) == [
        "succeeded", "pending", "dead_letter", "pending", "cancelled", "pending", "failed"
    ]  # fmt: skip
    recorded = ask(
        db,
        "select position, outcome::text, failures, lease_id = %s and worker_id = %s, error is not null, cause, "
        "finished_at - started_at from pgworker.job_executions where position > 1 order by position",
        held.lease_id,
        worker.worker_id,
    )
    assert [row[:-1] for row in recorded] == [
        (2, "lost", 0, True, True, "killed by signal 9"),
        (3, "crashed", 1, True, True, "killed by signal 9"),
        (4, "released", 0, True, True, "killed by signal 9"),
        (5, "cancelled", 0, True, False, "killed by signal 9"),
        (7, "timed_out", 1, True, True, "killed by signal 9"),
    ]
    assert recorded[1][-1] >= timedelta(seconds=2)
    [letter] = list_dead_letters(db)
    assert (letter.job_id, letter.failures, letter.outcome, letter.error, letter.cause) == (
        ids[2], 1, "crashed", '{"stack": "…"}', "killed by signal 9"
    )  # fmt: skip


@pytest.mark.parametrize("is_own", [False, True], ids=["usual", "own"])
@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.TIMED_OUT])
def test_a_first_crash_runs_again_at_once_and_a_timeout_or_a_second_failure_with_backoff(
    outcome: Outcome, is_own: bool, db: Connection[Any], worker: Worker
) -> None:
    asked, other = Backoff(base=10, cap=100, jitter=0.5), Backoff(base=1000, cap=1000)
    announce_tasks(db, 1, ["t", "u"], {"t": other})
    announce_tasks(db, 2, ["t", "u"], {"t": other, "u": other} if is_own else {"u": other})
    announce_tasks(db, 2, ["t", "u"], {"t": asked, "u": other} if is_own else {"u": other})
    announce_tasks(db, 3, ["u"], {"u": other})
    [job] = enqueue(db)
    [due] = ask(db, "select run_at from pgworker.jobs")
    waits = []
    for _ in range(7):
        db.execute("update pgworker.job_queue set run_at = %s", [due])
        victim = Worker(db)
        victim.claim()
        victim.die()
        [lease] = Monitor(db).reclaimable()
        before = now(db)
        assert reclaim_lease(db, lease, lambda _: Findings([outcome], [0], "killed"), other if is_own else asked)
        [run_at] = ask(db, "select run_at from pgworker.job_queue")
        waits.append((run_at - before).total_seconds())
    if outcome is Outcome.CRASHED:
        assert waits.pop(0) < 0
    for waited, least in zip(waits, [10, 20, 40, 80, 100, 100, 100][-len(waits) :], strict=True):
        assert least <= waited <= 1.5 * least + 5
    assert ended(db, job) == [(number, outcome.value, number) for number in range(1, 8)]


def die_with(connection: Connection[Any], findings: Findings) -> Held:
    """A worker claims all there is and dies; what it held is taken back with these findings."""
    victim = Worker(connection)
    held = victim.claim(slots=4)
    victim.die()
    [lease] = Monitor(connection).reclaimable()
    assert reclaim_lease(connection, lease, lambda _: findings, AT_ONCE)
    return held


def suspects(jobs: int, unstarted: int = 0) -> Findings:
    """So many ran, and nobody knows of which the worker died."""
    started_us = [3_000_000 - 100_000 * job for job in range(jobs)] + [0] * unstarted
    outcomes = [Outcome.CRASHED] * jobs + [None] * unstarted
    return Findings(outcomes, started_us, "killed", suspects=jobs)


def test_suspects_are_spared_however_often_and_their_suspicions_are_counted(db: Connection[Any]) -> None:
    first, second, unstarted = enqueue(db, 3)
    assert [row.suspicions for row in die_with(db, suspects(2, 1)).rows] == [0, 0, 0]
    assert ended(db, first) == ended(db, second) == [(1, "lost", 0)]
    assert ended(db, unstarted) == []
    [(cause, error)] = ask(db, "select cause, error->>'message' from pgworker.job_executions where job_id = %s", first)
    assert cause == error
    assert cause == "one of 2 jobs that ran in a worker which died, nobody can tell of which: killed"
    assert {row.job_id: row.suspicions for row in die_with(db, suspects(3)).rows} == {first: 1, second: 1, unstarted: 0}
    assert {row.job_id: row.suspicions for row in die_with(db, suspects(3)).rows} == {first: 2, second: 2, unstarted: 1}
    assert ended(db, first) == [(number, "lost", 0) for number in (1, 2, 3)]
    assert ended(db, unstarted) == [(number, "lost", 0) for number in (2, 3)]
    die_with(db, Findings([Outcome.CRASHED, Outcome.LOST, Outcome.LOST], [0, 0, 0], "killed"))
    assert ended(db, first)[-1] == (4, "crashed", 1), "on trial it was the one"
    assert {row.job_id: row.suspicions for row in Worker(db).claim().rows} == {first: 3, second: 0, unstarted: 0}


def test_a_crash_that_was_charged_makes_the_next_trial_no_longer(db: Connection[Any]) -> None:
    enqueue(db, 1)
    for suspicions in (0, 1, 1, 1):
        died = die_with(db, Findings([Outcome.CRASHED], [0], "killed"))
        assert [row.suspicions for row in died.rows] == [suspicions]
        db.execute("update pgworker.job_queue set run_at = now()")


def test_what_goes_back_keeps_its_place_but_was_not_due_while_it_ran(db: Connection[Any]) -> None:
    ran, retried, unstarted, other = enqueue(db, 4)
    age = "update pgworker.job_queue set run_at = run_at - interval '1 hour'"
    for statement in (
        age,
        age.replace("job_queue", "jobs").replace(" set", " set created_at = created_at - interval '1 hour',"),
    ):
        db.execute(statement.encode())
    die_with(
        db, Findings([Outcome.CRASHED, Outcome.CRASHED, None, Outcome.LOST], [10**9, 0, None, 0], "killed", suspects=2)
    )
    again = Worker(db).claim()
    assert again.ids == [ran, retried, unstarted, other]
    hour_ago = [row.waited > 3000 for row in again.rows]
    assert hour_ago == [False, False, True, False]


def test_only_for_jobs_that_have_run_before_a_claim_looks_at_executions(db: Connection[Any], worker: Worker) -> None:
    again, *_ = enqueue(db, 5)
    db.execute("update pgworker.job_queue set execution = 2 where job_id = %s", [again])
    calls = "select calls from pg_stat_xact_user_functions where funcname = 'last_execution'"
    with worker.connection.transaction():
        worker.connection.execute("set local track_functions = 'pl'")
        assert len(worker.claim().rows) == 5
        assert ask(worker.connection, calls) == [1]


def test_a_suspect_is_one_until_its_next_execution_has_ended_otherwise(db: Connection[Any], worker: Worker) -> None:
    job, _ = enqueue(db, 2)
    die_with(db, suspects(2))
    die_with(db, Findings([None, None], [None, None], "killed"))
    assert ended(db, job) == [(1, "lost", 0)], "claimed and not started is no execution"
    held = worker.claim(1)
    assert [row.suspicions for row in held.rows] == [1]
    assert worker.settle(held.settlement(outcome=Outcome.SNOOZED, then=Next.REQUEUE))
    assert not any(row.suspicions for row in Worker(db).claim().rows if row.job_id == job)


def test_who_is_lost_for_another_reason_is_no_suspect(db: Connection[Any]) -> None:
    enqueue(db, 2)
    error = '{"type": "pgworker.crashed", "message": "killed", "traceback": ""}'
    die_with(db, Findings([Outcome.LOST, Outcome.CRASHED], [0, 0], "killed", error=error))
    assert [row.suspicions for row in Worker(db).claim().rows] == [0, 1]


@pytest.mark.parametrize("slots", [1, 2])
def test_where_nobody_could_look_the_first_of_a_lease_are_suspects_if_more_than_one_could_run(
    slots: int, db: Connection[Any]
) -> None:
    poison, _, unstarted = enqueue(db, 3, max_attempts=1)
    nothing: list[None] = [None] * 3
    findings = Findings(nothing, nothing, "its lease expired", assumed_running=slots, suspects=slots)
    deaths = 0
    while not list_dead_letters(db):
        die_with(db, findings)
        deaths += 1
    assert deaths == slots
    assert ended(db, poison)[-1] == (slots, "crashed", 1)
    assert ended(db, unstarted) == []
    [letter, *_] = list_dead_letters(db)
    assert letter.cause is not None
    assert ("up to 2 jobs that ran" in letter.cause) == (slots > 1)


def test_the_job_whose_row_is_gone_becomes_a_dead_letter_at_its_reclaim(db: Connection[Any], worker: Worker) -> None:
    [orphan, job] = enqueue(db, 2)
    worker.claim()
    worker.die()
    db.execute("delete from pgworker.jobs where id = %s", [orphan])
    assert Monitor(db).reclaim_all()
    assert [(letter.job_id, letter.outcome) for letter in list_dead_letters(db)] == [(orphan, "lost")]
    assert waiting(db) == [(job, 2, 0)]


def test_a_reclaim_whose_look_fails_leaves_everything_as_it_was(db: Connection[Any], worker: Worker) -> None:
    enqueue(db)
    worker.claim()
    worker.die()
    before = everything(db)
    [lease] = Monitor(db).reclaimable()
    with pytest.raises(ZeroDivisionError):
        Monitor(db).reclaim(lease, meanwhile=lambda: 1 // 0)
    assert everything(db) == before
    assert Monitor(db).reclaim(lease)


# -- cancel


def test_a_waiting_job_is_cancelled_at_once_and_has_a_row_that_says_so(db: Connection[Any], worker: Worker) -> None:
    [job] = enqueue(db)
    assert cancel_job(db, job) is CancelAnswer.CANCELLED
    columns = "job_id, execution, outcome::text, failures, lease_id, worker_id, started_at, cause"
    assert ask(db, f"select {columns} from pgworker.job_executions") == [
        (job, 1, "cancelled", 0, None, None, None, "cancelled while it waited")
    ]
    assert worker.claim().rows == []
    assert cancel_job(db, job) is CancelAnswer.TOO_LATE


def test_a_running_job_is_marked_in_its_lease_and_its_monitor_is_told_however_often_it_is_cancelled(
    db: Connection[Any], worker: Worker, connect: Connect
) -> None:
    monitor = connect()
    monitor.execute("listen pgworker")
    [_, job] = enqueue(db, 2)
    held = worker.claim()
    for _ in range(2):
        assert cancel_job(db, job) is CancelAnswer.REQUESTED
        assert ask(db, "select cancelled from pgworker.job_leases") == [[job]]
        assert [told.payload for told in monitor.notifies(timeout=10, stop_after=1)] == [f"!cancel {held.lease_id}"]


def test_a_cancelled_job_that_fails_ends_as_cancelled_and_one_that_succeeds_has_succeeded(
    db: Connection[Any], worker: Worker
) -> None:
    ids = enqueue(db, 4)
    held = worker.claim()
    for job in ids:
        cancel_job(db, job)
    assert worker.settle(held.settlement(1, 1))
    assert worker.settle(held.settlement(2, 2, outcome=Outcome.FAILED, then=Next.REQUEUE))
    assert worker.settle(held.settlement(3, 3, outcome=Outcome.FAILED, then=Next.BURY))
    assert worker.settle(held.settlement(4, 4, outcome=Outcome.CANCELLED))
    assert statuses(db, ids) == ["succeeded", "cancelled", "cancelled", "cancelled"]
    assert waiting(db) == []
    assert list_dead_letters(db) == []


def test_a_job_that_has_ended_can_not_be_cancelled_and_one_that_never_was_is_not_found(
    db: Connection[Any], worker: Worker
) -> None:
    [done, dead] = enqueue(db, 2)
    assert worker.settle(worker.claim(1).settlement())
    fail(worker, worker.claim(1), Next.BURY)
    assert cancel_job(db, done) is CancelAnswer.TOO_LATE
    assert cancel_job(db, dead) is CancelAnswer.TOO_LATE
    assert statuses(db, [done, dead]) == ["succeeded", "dead_letter"]
    with pytest.raises(JobNotFound):
        cancel_job(db, uuid4())


def test_cancel_refuses_a_connection_whose_looks_would_share_a_snapshot(dsn: str) -> None:
    with psycopg.connect(dsn) as connection, pytest.raises(ValueError, match="autocommit"):
        cancel_job(connection, uuid4())


# -- dead letters


def test_dead_letters_are_listed_the_latest_first_by_queue_and_task(db: Connection[Any], worker: Worker) -> None:
    for queue, task in (("default", "t"), ("mail", "t"), ("default", "u")):
        enqueue(db, queue=queue, task=task)
        fail(worker, worker.claim(tasks=["t", "u"], queues=["default", "mail"]), Next.BURY)
    listed = [(letter.queue, letter.task) for letter in list_dead_letters(db)]
    assert listed == [("default", "u"), ("mail", "t"), ("default", "t")]
    assert [letter.task for letter in list_dead_letters(db, queue="default", limit=1)] == ["u"]
    assert [letter.queue for letter in list_dead_letters(db, task="t")] == ["mail", "default"]


def test_a_dead_letter_brings_back_its_job_when_its_partition_was_dropped_meanwhile(
    db: Connection[Any], worker: Worker
) -> None:
    [job] = enqueue(db, payload='{"a": 1}', priority=8, headers='{"h": 1}')
    fail(worker, worker.claim(), Next.BURY)
    before = ask(db, "select * from pgworker.jobs")
    db.execute("truncate pgworker.jobs, pgworker.job_executions")
    assert requeue_dead_letters(db, [job, uuid4()]) == [job]
    assert ask(db, "select * from pgworker.jobs") == before
    assert ask(db, "select job_id, execution, priority, failures from pgworker.job_queue") == [(job, 2, 8, 0)]
    assert list_dead_letters(db) == []


def test_a_discarded_dead_letter_has_ended_as_cancelled(db: Connection[Any], worker: Worker) -> None:
    [job] = enqueue(db)
    fail(worker, worker.claim(), Next.BURY)
    assert discard_dead_letters(db, [job, uuid4()]) == [job]
    assert ended(db, job) == [(1, "failed", 1), (2, "cancelled", 1)]
    assert statuses(db, [job]) == ["cancelled"]


# -- heartbeats


def test_heartbeats_keep_who_lives_and_how_the_others_ended(db: Connection[Any]) -> None:
    one, two, never_beat = uuid4(), uuid4(), uuid4()
    pool = PoolIdentity(uuid4(), "host", "boot", ("default", "mail"))
    alive = [WorkerProcess(one, 10, 0, 5_000_000), WorkerProcess(two, 11, 1, 0)]
    beat_workers(db, pool, alive)
    end_worker(db, pool, alive[0], "exited with 0")
    end_worker(db, pool, WorkerProcess(never_beat, 12, 2, 0), "killed by signal 9")
    [ended_at] = ask(db, "select ended_at from pgworker.worker_heartbeats where worker_id = %s", one)
    [beat_at] = ask(db, "select beat_at from pgworker.worker_heartbeats where worker_id = %s", one)
    beat_workers(db, pool, alive)
    rows = ask(
        db,
        "select worker_id, pool_id, host, pid_space, pid, number, queues, ended_how, ended_at is null, beat_at > %s "
        "from pgworker.worker_heartbeats order by pid",
        beat_at,
    )
    queues = ["default", "mail"]
    assert rows == [
        (one, pool.pool_id, "host", "boot", 10, 0, queues, "exited with 0", False, False),
        (two, pool.pool_id, "host", "boot", 11, 1, queues, None, True, True),
        (never_beat, pool.pool_id, "host", "boot", 12, 2, queues, "killed by signal 9", False, True),
    ]
    assert ask(db, "select ended_at from pgworker.worker_heartbeats where worker_id = %s", one) == [ended_at]
    [age] = ask(db, "select beat_at - started_at from pgworker.worker_heartbeats where pid = 10")
    assert abs(age - timedelta(seconds=5)) < timedelta(seconds=1)


def test_silent_workers_of_other_pools_are_found_by_host_and_pid_space_and_ended_unless_they_beat_again(
    db: Connection[Any],
) -> None:
    ours, theirs = (PoolIdentity(uuid4(), "host", "boot:1", ("default",)) for _ in range(2))
    silent, ended, beating, elsewhere, other_space = workers = [WorkerProcess(uuid4(), pid, 0, 0) for pid in range(5)]
    for worker in workers[:3]:
        beat_workers(db, theirs, [worker])
    beat_workers(db, replace(theirs, host="elsewhere"), [elsewhere])
    beat_workers(db, replace(theirs, pid_space="boot:2"), [other_space])
    beat_workers(db, ours, [WorkerProcess(uuid4(), 9, 0, 0)])
    end_worker(db, theirs, ended, "said so")
    db.execute("update pgworker.worker_heartbeats set beat_at = beat_at - interval '10 s'")
    beat_workers(db, theirs, [beating])
    (found,) = find_silent_workers(db, ours, silence=9)
    assert (found.worker_id, found.pid, found.number) == (silent.worker_id, silent.pid, 0)
    assert find_silent_workers(db, ours, silence=60) == []
    beat_workers(db, theirs, [silent])
    assert not end_silent_worker(db, found, "gone"), "it has beaten since it was found"
    db.execute("update pgworker.worker_heartbeats set beat_at = beat_at - interval '10 s' where pid = %s", [silent.pid])
    (found,) = find_silent_workers(db, ours, silence=9)
    assert end_silent_worker(db, found, "gone")
    assert not end_silent_worker(db, found, "gone once more"), "somebody was quicker"
    assert find_silent_workers(db, ours, silence=9) == []
    assert ask(db, "select ended_how from pgworker.worker_heartbeats where ended_at is not null order by pid") == [
        "gone",
        "said so",
    ]


def test_a_heartbeat_tells_what_a_worker_does_as_long_as_its_lease_has_not_ended(
    db: Connection[Any], worker: Worker
) -> None:
    first, second = enqueue(db, 2, queue="mail", task="u")
    held = worker.claim(queues=["mail"], tasks=["u"])
    runs = RunningJob(held.lease_id, 2, 1_000_000), RunningJob(held.lease_id, 1, 9_000_000), RunningJob(uuid4(), 1, 5)
    doing = Activity(WorkerState.BUSY, runs, jobs_done=7, uss_bytes=1 << 40, cpu_seconds=1.5)
    busy_one = WorkerProcess(worker.worker_id, 10, 3, 0, activity=doing)
    beat_workers(db, POOL, [busy_one, WorkerProcess(uuid4(), 11, 2, 0)])
    silent, busy = list_workers(db)
    assert (silent.number, silent.state, silent.uss_bytes, silent.runs) == (2, None, None, ())
    assert (busy.host, busy.number, busy.pid, busy.state, busy.jobs_done) == ("host", 3, 10, "busy", 7)
    assert (busy.uss_bytes, busy.cpu_seconds, busy.is_silent) == (1 << 40, 1.5, False)
    assert [(run.job_id, run.task, run.queue, run.execution) for run in busy.runs] == [
        (first, "u", "mail", 1),
        (second, "u", "mail", 1),
    ], "the longest first; of a lease that is gone nothing"
    assert busy.runs[0].seconds - busy.runs[1].seconds == pytest.approx(8, abs=0.001)
    claim = show_job(db, second).claim
    assert claim is not None
    assert claim.started_at is not None
    assert claim.beat_at is not None
    assert claim.beat_at - claim.started_at == timedelta(seconds=1)
    assert worker.settle(held.settlement())
    assert list_workers(db)[1].runs == ()


def test_a_heartbeat_tells_of_the_hundred_jobs_that_have_run_for_longest(db: Connection[Any], worker: Worker) -> None:
    runs = tuple(RunningJob(UUID(int=age), 1, age) for age in range(150))
    beat_workers(db, POOL, [WorkerProcess(worker.worker_id, 1, 0, 0, activity=Activity(runs=runs))])
    ages = "select array_agg((run->>'age_us')::int) from pgworker.worker_heartbeats, jsonb_array_elements(runs) run"
    [told] = ask(db, ages)
    assert told == list(range(149, 49, -1))


def test_old_incarnations_are_forgotten_unless_a_lease_names_them(db: Connection[Any], worker: Worker) -> None:
    enqueue(db)
    worker.claim()
    fresh, old = uuid4(), uuid4()
    for worker_id in (worker.worker_id, fresh, old):
        end_worker(db, POOL, WorkerProcess(worker_id, 1, 0, 0), "killed")
    db.execute(
        "update pgworker.worker_heartbeats set beat_at = beat_at - interval '8 days' where worker_id <> %s", [fresh]
    )
    forget_workers(db)
    assert set(ask(db, "select worker_id from pgworker.worker_heartbeats")) == {worker.worker_id, fresh}


# -- partitions


def test_jobs_and_executions_lie_in_the_partition_of_their_ids_day_and_otherwise_in_the_default_one(
    db: Connection[Any], worker: Worker
) -> None:
    """Midnight of UTC, whatever the session's time zone."""
    db.execute("set timezone = 'Pacific/Kiritimati'")
    assert make_partitions(db) == []
    [day] = ask(db, "select (clock_timestamp() at time zone 'UTC')::date + 10")
    midnight = datetime(day.year, day.month, day.day, tzinfo=timezone.utc)
    ids = ask(
        db,
        "select pgworker.uuid7(at) from unnest(%s::timestamptz[]) as at",
        [midnight - timedelta(milliseconds=1), midnight, midnight + timedelta(days=1, milliseconds=-1)],
    )
    assert ask(db, "select pgworker.create_partition(%s)", day) == [True]
    db.execute(
        "insert into pgworker.jobs (id, created_at, run_at, priority, max_attempts, queue, task, payload) "
        "select id, now(), now(), 5, 1, 'default', 't', '{}' from unnest(%s) as id",
        [ids],
    )
    places = ask(db, "select tableoid::regclass::text from pgworker.jobs order by id")
    name = f"pgworker.jobs_{day:%Y%m%d}"
    assert places == ["pgworker.jobs_default", name, name]


def test_a_partition_has_what_its_parent_has(db: Connection[Any]) -> None:
    [child] = ask(db, "select min(relname) from pg_class where relname ~ '^jobs_[0-9]{8}$'")
    columns = (
        "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute "
        "where attrelid = %s::regclass and attnum > 0"
    )
    checks = (
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = %s::regclass and contype in ('c', 'p')"
    )
    for what in (columns, checks):
        assert sorted(ask(db, what, f"pgworker.{child}")) == sorted(ask(db, what, "pgworker.jobs"))


# -- what people ask


def test_each_status_has_its_name_and_a_job_that_is_nowhere_is_lost_not_null(
    db: Connection[Any], worker: Worker
) -> None:
    [done, failed, dead, cancelled, lost] = enqueue(db, 5, max_attempts=2)
    assert worker.settle(worker.claim(1).settlement())
    held = worker.claim(1)
    assert worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.REQUEUE, delay=60))
    fail(worker, worker.claim(1), Next.BURY)
    cancel_job(db, cancelled)
    db.execute("delete from pgworker.job_queue where job_id = %s", [lost])
    [running] = enqueue(db)
    worker.claim(1)
    [pending], [scheduled] = enqueue(db), enqueue(db, run_at=datetime(2099, 1, 1, tzinfo=timezone.utc))
    assert statuses(db, [done, failed, dead, cancelled, lost, running, pending, scheduled, uuid4()]) == [
        "succeeded", "failed", "dead_letter", "cancelled", "LOST", "running", "pending", "scheduled", None
    ]  # fmt: skip
    assert ask(db, "select id, execution, failures, last_outcome::text from pgworker.job_status order by id") == [
        (done, 1, 0, "succeeded"),
        (failed, 1, 1, "failed"),
        (dead, 1, 1, "failed"),
        (cancelled, 1, 0, "cancelled"),
        (lost, 0, 0, None),
        (running, 1, 0, None),
        (pending, 0, 0, None),
        (scheduled, 0, 0, None),
    ]


def test_a_job_whose_retry_runs_shows_as_running_while_the_lease_of_its_first_execution_lives_on(
    db: Connection[Any], worker: Worker
) -> None:
    [job, other] = enqueue(db, 2)
    first = worker.claim()
    assert worker.settle(first.settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE))
    second = worker.claim()
    assert ask(db, "select pgworker.job_status(%s), pgworker.job_status(%s)", job, other) == [("running", "running")]
    assert ask(db, "select id, status, execution, lease_id from pgworker.job_status order by id") == [
        (job, "running", 2, second.lease_id),
        (other, "running", 1, first.lease_id),
    ]
    assert ask(
        db, "select job_id, execution, outcome, lease_id from pgworker.executions order by job_id, execution"
    ) == [
        (job, 1, "failed", first.lease_id),
        (job, 2, "running", second.lease_id),
        (other, 1, "running", first.lease_id),
    ]


def test_nothing_of_the_schema_is_open_to_everybody(db: Connection[Any]) -> None:
    ours, to_all = "'pgworker'::regnamespace", "acl::text ~ '[{,]='"  # null: the default, which is open for functions
    open_tables = f"select relname from pg_class where relnamespace = {ours} and rel{to_all}"
    open_functions = f"select proname from pg_proc where pronamespace = {ours} and (proacl is null or pro{to_all})"
    assert ask(db, open_tables) == []
    assert sorted(ask(db, open_functions)) == ["current_org", "protect_table"], "which lend no right"


def test_a_released_job_whose_row_is_missing_becomes_a_dead_letter(db: Connection[Any], worker: Worker) -> None:
    enqueue(db, 2)
    held = worker.claim(2)
    db.execute("delete from pgworker.jobs where id = %s", [held.ids[1]])
    assert not release_jobs(db, held.lease_id, 1).is_busy
    assert ask(db, "select job_id from pgworker.job_queue") == [held.ids[0]]
    assert ask(db, "select job_id from pgworker.dead_letter_jobs") == [held.ids[1]]


def test_no_lease_has_expired_once_the_clock_shows_more_than_it_can(db: Connection[Any]) -> None:
    enqueue(db)
    Worker(db).claim(ttl=-1)

    def find(until: datetime) -> list[Reclaimable]:
        return find_reclaimable(db, by_expiry=True, pool_id=POOL.pool_id, silence=60, patience=10, until=until)

    assert find(now(db) - timedelta(seconds=1)) == []
    [lease] = find(now(db) + timedelta(hours=1))
    findings = Findings([None], [None], "expired")
    assert reclaim_lease(db, lease, lambda _: findings, AT_ONCE, now(db) - timedelta(seconds=1)) is None
    assert reclaim_lease(db, lease, lambda _: findings, AT_ONCE, now(db) + timedelta(hours=1)) is not None
