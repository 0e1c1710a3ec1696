"""`PostgresQueue` by itself: a queue on a connection, with a row of a board that nobody else looks at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection

from pgworker import App
from pgworker.app.queue.leases import ClaimedJob
from pgworker.app.queue.postgres import PostgresQueue
from pgworker.errors import Discard, Retry, Snooze
from pgworker.lifecycle.claim import Lanes
from pgworker.lifecycle.settle import Ended
from pgworker.linux.board import Board
from pgworker.model.job import JobRequest
from tests.chaos.proxy import Proxy
from tests.sql.actors import (
    DEADLINE,
    Blocked,
    Connect,
    Held,
    Monitor,
    Worker,
    ask,
    ended,
    enqueue,
    leases,
    statuses,
    waiting,
)
from tests.sql.invariants import STORED, offences

APP = App()


@APP.task(name="t")
def nothing() -> None: ...


class Owner:
    """Whoever has a queue and its connection, and takes another one when that is broken."""

    def __init__(self, dsn: str, ttl: float = 60.0) -> None:
        self._dsn = dsn
        self._connection: Connection[Any] | None = None
        lanes = Lanes.of(["default", "other"])
        self.board = Board(1, len(lanes))
        self.row = self.board.rows[0]
        self.row.reset(uuid4(), 0)
        self.queue = PostgresQueue(
            self.connection, row=self.row, floors=self.board.floors, lanes=lanes, tasks=APP.tasks, lease_ttl=ttl
        )

    def connection(self) -> Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._dsn, autocommit=True)
        return self._connection

    def close(self) -> None:
        self.connection().close()

    def claim(self, jobs: int = 100) -> list[ClaimedJob]:
        return self.queue.claim(jobs)

    def settle(self) -> None:
        """Record what has ended, and claim nothing."""
        assert self.queue.claim(0) == []


@pytest.fixture
def db(connect: Connect) -> Iterator[Connection[Any]]:
    """A connection to look with; what is stored is consistent at the end."""
    connection = connect()
    yield connection
    assert offences(connection, STORED) == {}


@pytest.fixture
def owner(dsn: str) -> Iterator[Owner]:
    owner = Owner(dsn)
    yield owner
    owner.close()


def ids(claimed: list[ClaimedJob]) -> list[UUID]:
    return [job.row.job_id for job in claimed]


def break_at(owner: Owner, db: Connection[Any]) -> None:
    """End the backend of the queue's connection; the queue learns of it with its next statement."""
    pid = owner.connection().info.backend_pid
    assert ask(db, "select pg_terminate_backend(%s, %s)", pid, int(DEADLINE * 1000)) == [True]


@pytest.mark.parametrize("shared_by", ["two apps", "one app", "one app, as the other drains"])
def test_while_workers_of_two_apps_share_the_floors_none_steps_over_what_the_other_serves(
    shared_by: str, dsn: str, db: Connection[Any]
) -> None:
    board, lanes = Board(2, len(Lanes.of(["default"]))), Lanes.of(["default"])
    enqueue(db, task="new")
    enqueue(db, 3)
    for table, at in (("jobs", "created_at"), ("job_queue", "run_at")):  # floors stay behind what has just come
        db.execute(f"update pgworker.{table} set {at} = {at} - interval '1 minute'".encode())
    with psycopg.connect(dsn, autocommit=True) as connection:
        old, new = (
            PostgresQueue(
                lambda: connection,
                row=row,
                floors=board.floors,
                lanes=lanes,
                tasks=dict.fromkeys(tasks, APP.tasks["t"]),
                lease_ttl=60.0,
                may_pass_others=lambda: board.serves_one_app,
            )
            for row, tasks in zip(board.rows, (["t"], ["t", "new"]), strict=True)
        )
        for row in board.rows:
            row.reset(uuid4(), 0)
            row.pid = os.getpid()
            row.tasks_hash = 7 if shared_by == "one app" else row.index
            row.set_ready()
        if shared_by == "one app, as the other drains":
            board.rows[0].ask_drain()
        assert [job.row.task for job in old.claim(1)] == ["t"]
        assert [job.row.task for job in new.claim(1)] == ["new" if shared_by == "two apps" else "t"]


def test_what_is_enqueued_is_claimed_in_order_and_settled_with_the_next_claim(
    owner: Owner, db: Connection[Any]
) -> None:
    stored = owner.queue.enqueue([JobRequest("t", f'{{"n": {n}}}') for n in range(3)])
    first = owner.claim(2)
    assert ids(first) == stored[:2]
    assert [job.job().payload for job in first] == [{"n": 0}, {"n": 1}]
    for job in first:
        owner.queue.succeed(job)
    assert statuses(db, ids(first)) == ["running"] * 2
    [last] = owner.claim(2)
    assert statuses(db, ids(first)) == ["succeeded"] * 2
    owner.queue.succeed(last)
    owner.settle()
    assert [ended(db, job) for job in stored] == [[(1, "succeeded", 0)]] * 3
    assert leases(db) == {}
    assert owner.queue.leases == []
    assert list(owner.row.leases()) == []


def test_large_arguments_are_held_for_as_long_as_their_job_and_no_longer(owner: Owner, db: Connection[Any]) -> None:
    owner.queue.enqueue([JobRequest("t", f'{{"data": "{"x" * size}"}}') for size in (10, 10_000)])
    small, large = owner.claim()
    assert len(large.job().payload["data"]) == 10_000
    [lease] = owner.queue.leases
    assert [row.payload is None for row in lease.rows] == [False, True]
    for job in (small, large):
        owner.queue.succeed(job)
    owner.settle()


def test_jobs_of_one_lease_end_in_any_order_and_the_lease_with_the_last_of_them(
    owner: Owner, db: Connection[Any]
) -> None:
    enqueue(db, 5)
    claimed = owner.claim()
    for place in (3, 0, 4, 2):
        owner.queue.succeed(claimed[place])
        owner.settle()
        assert len(leases(db)) == 1
        assert ended(db, claimed[place].row.job_id) == [(1, "succeeded", 0)]
    assert statuses(db, ids(claimed))[1] == "running"
    owner.queue.fail(claimed[1], ValueError("the last one"))
    owner.settle()
    assert leases(db) == {}
    assert [ended(db, job) for job in ids(claimed)] == [
        [(1, "failed", 1) if place == 1 else (1, "succeeded", 0)] for place in range(5)
    ]


def test_what_a_connection_given_up_records_a_moment_later_is_on_record_and_the_rest_of_the_group_too(
    owner: Owner, connect: Connect, db: Connection[Any]
) -> None:
    enqueue(db, 3)
    claimed = owner.claim()
    given_up = Worker(connect(), owner.row.worker_id)
    held = Held(claimed[0].lease.lease_id, given_up.worker_id, [job.row for job in claimed])
    for job in claimed[:2]:
        owner.queue.succeed(job)
    with given_up.connection.transaction():
        assert given_up.settle(held.settlement(1, 1))
        settling = Blocked(owner.connection(), owner.settle)
    settling.answer()
    owner.queue.succeed(claimed[2])
    owner.settle()
    assert [ended(db, job) for job in ids(claimed)] == [[(1, "succeeded", 0)]] * 3
    assert leases(db) == {}
    assert not owner.row.is_lost(claimed[0].lease.entry)


def test_what_was_said_twice_of_a_job_ends_no_lease_that_has_others(owner: Owner, db: Connection[Any]) -> None:
    enqueue(db, 3)
    one, two, three = owner.claim()
    owner.queue.succeed(one)
    owner.settle()
    with pytest.raises(RuntimeError, match="was said before"):
        owner.queue.succeed(one)
    owner.queue.succeed(two)
    owner.settle()
    assert statuses(db, ids([one, two, three])) == ["succeeded", "succeeded", "running"]
    owner.queue.succeed(three)
    owner.settle()
    assert [ended(db, job) for job in ids([one, two, three])] == [[(1, "succeeded", 0)]] * 3
    assert leases(db) == {}


def test_an_error_says_how_the_job_goes_on(owner: Owner, db: Connection[Any]) -> None:
    enqueue(db, 4, max_attempts=5)
    enqueue(db, max_attempts=1)
    errors = [ValueError("what went wrong"), Retry(after=0), Discard("no use"), Snooze(0), ValueError("for good")]
    claimed = owner.claim()
    for job, error in zip(claimed, errors, strict=True):
        owner.queue.fail(job, error)
    owner.settle()
    assert [ended(db, job) for job in ids(claimed)] == [
        [(1, "failed", 1)],
        [(1, "failed", 1)],
        [(1, "failed", 1)],
        [(1, "snoozed", 0)],
        [(1, "failed", 1)],
    ]
    assert statuses(db, ids(claimed)) == ["failed", "failed", "dead_letter", "pending", "dead_letter"]
    said = ask(db, "select error->>'message' from pgworker.job_executions where job_id = %s", claimed[0].row.job_id)
    assert said == ["what went wrong"]
    again = owner.claim()
    assert {job.row.job_id for job in again} >= {claimed[1].row.job_id, claimed[3].row.job_id}
    assert {job.row.execution for job in again} == {2}


def test_a_job_that_waits_can_be_deleted_and_one_that_runs_cannot(owner: Owner, db: Connection[Any]) -> None:
    running, waits = enqueue(db, 2)
    [job] = owner.claim(1)
    assert (owner.queue.delete(waits), owner.queue.delete(running)) == (True, False)
    assert waiting(db) == []
    owner.queue.succeed(job)
    owner.settle()
    assert owner.queue.delete(running) is False
    assert statuses(db, [waits]) == ["cancelled"]


def test_what_was_not_started_is_given_back_uncharged_and_found_again(owner: Owner, db: Connection[Any]) -> None:
    enqueue(db, 5)
    claimed = owner.claim()
    owner.queue.keep_only_started(claimed[2:])
    owner.queue.give_back()
    assert waiting(db) == sorted((job, 1, 0) for job in ids(claimed[2:]))
    for job in claimed[:2]:
        owner.queue.succeed(job)
    again = owner.claim()
    assert (ids(again), {job.row.execution for job in again}) == (ids(claimed[2:]), {1})
    assert list(leases(db).values()) == [ids(again)]


def test_a_lease_that_was_given_back_whole_is_gone(owner: Owner, db: Connection[Any]) -> None:
    enqueue(db, 3)
    claimed = owner.claim()
    owner.queue.keep_only_started(claimed)
    owner.queue.give_back()
    assert (len(waiting(db)), leases(db), owner.queue.leases) == (3, {}, [])
    assert ids(owner.claim()) == ids(claimed)


def test_a_lease_that_is_locked_is_given_back_later(owner: Owner, db: Connection[Any], connect: Connect) -> None:
    enqueue(db, 3)
    claimed = owner.claim()
    owner.queue.keep_only_started(claimed[1:])
    with connect().transaction() as settling:
        settling.connection.execute("select from pgworker.job_leases for key share")
        owner.queue.give_back()
        assert waiting(db) == []
        owner.queue.succeed(claimed[0])
        owner.settle()
        assert len(leases(db)) == 1, "it is all that is known of the other two"
    owner.queue.give_back()
    assert len(waiting(db)) == 2
    owner.settle()
    assert leases(db) == {}


def test_a_job_that_comes_late_is_found_after_others_were_given_back(owner: Owner, db: Connection[Any]) -> None:
    """The floor rises with a claim and comes down with what goes back."""
    enqueue(db, 4)
    claimed = owner.claim()
    owner.queue.keep_only_started(claimed[1:])
    owner.queue.give_back()
    owner.queue.succeed(claimed[0])
    assert ids(owner.claim()) == ids(claimed[1:])


def test_the_floor_is_down_before_anybody_hears_of_what_went_back(owner: Owner, db: Connection[Any]) -> None:
    enqueue(db, 4)
    claimed = owner.claim()
    risen = owner.board.floors.read()
    owner.queue.keep_only_started(claimed[1:])
    assert owner.board.floors.read() < risen


def test_the_floor_is_as_low_as_the_place_to_which_one_that_has_run_before_goes_back(
    owner: Owner, db: Connection[Any]
) -> None:
    enqueue(db)
    db.execute(
        "update pgworker.jobs set created_at = created_at - interval '1 hour', run_at = run_at - interval '1 hour'"
    )
    [job] = owner.claim()
    owner.queue.fail(job, Retry(after=0))
    owner.settle()
    owner.queue.keep_only_started(owner.claim())
    low = owner.board.floors.read().run_at_us
    owner.queue.give_back()
    assert (len(waiting(db)), owner.board.floors.read().run_at_us) == (1, low)


def test_a_claim_that_the_server_refuses_is_told_and_costs_no_result(owner: Owner, db: Connection[Any]) -> None:
    db.execute("alter table pgworker.job_leases add check (cardinality(job_ids) < 3)")
    enqueue(db, 4)
    with pytest.raises(psycopg.errors.CheckViolation):
        owner.claim()
    [first, second] = owner.claim(2)
    enqueue(db)
    owner.queue.succeed(first)
    owner.queue.succeed(second)
    assert owner.claim() == []
    assert statuses(db, ids([first, second])) == ["succeeded", "succeeded"]
    with pytest.raises(psycopg.errors.CheckViolation):
        owner.claim()
    assert (len(waiting(db)), leases(db)) == (3, {})


def test_results_survive_a_connection_that_breaks_between_claim_and_settle(owner: Owner, db: Connection[Any]) -> None:
    enqueue(db, 4)
    claimed = owner.claim(3)
    owner.queue.succeed(claimed[0])
    owner.queue.fail(claimed[2], ValueError("as asked"))
    break_at(owner, db)
    with pytest.raises(psycopg.OperationalError):
        owner.claim(1)
    assert statuses(db, ids(claimed)) == ["running"] * 3
    owner.queue.give_back()
    [last] = owner.claim(1)
    assert statuses(db, ids(claimed)) == ["succeeded", "running", "failed"]
    for job in (claimed[1], last):
        owner.queue.succeed(job)
    owner.settle()
    assert leases(db) == {}


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with Proxy.before(dsn) as started:
        yield started


@pytest.fixture
def distant(dsn: str, proxy: Proxy) -> Iterator[Owner]:
    """One whose connection goes by the proxy."""
    owner = Owner(proxy.dsn(dsn))
    yield owner
    owner.close()


def lose_reply(owner: Owner, proxy: Proxy, jobs: int = 0) -> None:
    proxy.drop_reply("^commit$")
    with pytest.raises(psycopg.OperationalError):
        owner.claim(jobs)


def test_a_settle_whose_reply_was_lost_is_sent_again_with_what_ended_since_and_recorded_once(
    distant: Owner, proxy: Proxy, db: Connection[Any]
) -> None:
    enqueue(db, 3)
    claimed = distant.claim()
    distant.queue.fail(claimed[0], Retry(after=0))
    distant.queue.succeed(claimed[2])
    lose_reply(distant, proxy)
    assert statuses(db, ids(claimed)) == ["failed", "running", "succeeded"]
    distant.queue.succeed(claimed[1])
    distant.settle()
    assert [ended(db, job) for job in ids(claimed)] == [[(1, "failed", 1)], *[[(1, "succeeded", 0)]] * 2]
    assert (leases(db), len(waiting(db))) == ({}, 1)


def test_the_end_of_a_lease_whose_reply_was_lost_is_known_after_the_next_try(
    distant: Owner, proxy: Proxy, db: Connection[Any]
) -> None:
    enqueue(db, 2)
    claimed = distant.claim()
    for job in claimed:
        distant.queue.succeed(job)
    lose_reply(distant, proxy)
    assert leases(db) == {}
    [more] = enqueue(db)
    assert ids(distant.claim()) == [more]
    assert [ended(db, job) for job in ids(claimed)] == [[(1, "succeeded", 0)]] * 2
    assert len(distant.queue.leases) == 1


def test_a_claim_whose_reply_was_lost_goes_back_and_is_found_again(
    distant: Owner, proxy: Proxy, db: Connection[Any]
) -> None:
    stored = enqueue(db, 3)
    lose_reply(distant, proxy, jobs=10)
    assert len(leases(db)) == 1
    assert distant.queue.has_lost_claims
    distant.queue.give_back()
    assert (leases(db), distant.queue.has_lost_claims) == ({}, False)
    again = distant.claim()
    assert (ids(again), {job.row.execution for job in again}) == (stored, {1})


# -- leases that are gone, and too many of them


def test_results_of_a_lease_that_was_reclaimed_are_refused_and_those_of_another_are_not(
    dsn: str, db: Connection[Any]
) -> None:
    owner = Owner(dsn, ttl=0)
    [stored] = enqueue(db)
    gone = owner.claim()
    [lease] = Monitor(db).reclaimable(by_expiry=True)
    assert Monitor(db).reclaim(lease) is not None
    held = owner.claim()
    for job in (*gone, *held):
        owner.queue.succeed(job)
    owner.settle()
    owner.close()
    assert ids(gone) == ids(held) == [stored]
    assert ended(db, stored) == [(2, "succeeded", 0)]
    assert owner.queue.leases == []


def test_a_queue_claims_nothing_while_it_holds_as_many_leases_as_its_row_shows(
    owner: Owner, db: Connection[Any]
) -> None:
    enqueue(db, 10)
    held = [owner.claim(1) for _ in range(owner.row.leases_limit)]
    assert all(held)
    with pytest.raises(ValueError, match="have not ended yet"):
        owner.claim(1)
    assert len(leases(db)) == owner.row.leases_limit
    owner.queue.succeed(held[1][0])
    owner.settle()
    assert len(owner.claim(1)) == 1


def test_what_the_server_does_not_take_is_recorded_without_and_no_other_result_is_lost(
    owner: Owner, db: Connection[Any]
) -> None:
    enqueue(db, 3)
    claimed = owner.claim()
    for job in claimed:
        result = "1e1000000" if job.position == 2 else "1"
        ended_now = Ended(job.row.job_id, job.row.execution, 0, 0, result=result)
        owner.queue.succeed(job, ended_now)
    owner.settle()
    results = ask(db, "select result::text from pgworker.job_executions order by position")
    assert results == ["1", None, "1"]
    assert leases(db) == {}


def forget(db: Connection[Any], *jobs: UUID) -> None:
    """Have the server forget how these have ended, as one that is promoted before it has heard of it."""
    db.execute("delete from pgworker.job_executions where job_id = any (%s)", [list(jobs)])


def test_what_a_promoted_standby_never_heard_of_runs_again_when_its_lease_ends(
    owner: Owner, db: Connection[Any]
) -> None:
    enqueue(db, 3)
    claimed = owner.claim()
    owner.queue.succeed(claimed[0])
    owner.settle()
    forget(db, claimed[0].row.job_id)
    owner.close()
    for job in claimed[1:]:
        owner.queue.succeed(job)
    owner.settle()
    assert statuses(db, ids(claimed)) == ["pending", "succeeded", "succeeded"]
    assert waiting(db) == [(claimed[0].row.job_id, 2, 0)]
    assert leases(db) == {}
    [again] = owner.claim()
    assert (again.row.job_id, again.row.execution) == (claimed[0].row.job_id, 2)
    owner.queue.succeed(again)
    owner.settle()


def test_a_transaction_that_a_promoted_standby_never_heard_of_runs_again(owner: Owner, db: Connection[Any]) -> None:
    enqueue(db, 1)
    [claimed] = owner.claim()
    owner.queue.succeeded_itself(claimed)  # its row was on the server that is gone
    owner.close()
    owner.settle()
    assert waiting(db) == [(claimed.row.job_id, 2, 0)]
    assert (leases(db), owner.queue.leases) == ({}, [])


def test_what_was_given_back_to_a_server_that_is_gone_is_given_back_with_the_lease(
    owner: Owner, db: Connection[Any]
) -> None:
    enqueue(db, 2)
    first, second = owner.claim()
    stored = ask(db, "select job_ids, executions, failures from pgworker.job_leases")[0]
    owner.queue.keep_only_started([second])
    owner.queue.give_back()
    db.execute("delete from pgworker.job_queue")
    db.execute("update pgworker.job_leases set job_ids = %s, executions = %s, failures = %s", stored)
    owner.close()
    owner.queue.succeed(first)
    owner.settle()
    assert statuses(db, ids([first, second])) == ["succeeded", "pending"]


def test_the_end_of_a_lease_waits_for_whoever_has_it_in_hand_when_its_server_may_be_another_one(
    owner: Owner, db: Connection[Any], connect: Connect
) -> None:
    enqueue(db, 1)
    [claimed] = owner.claim()
    owner.close()
    owner.queue.succeed(claimed)
    with connect() as other, other.transaction():
        other.execute("select from pgworker.job_leases for key share")
        owner.settle()
        assert statuses(db, ids([claimed])) == ["succeeded"]
        assert owner.queue.has_results
    owner.settle()
    assert (leases(db), owner.queue.leases) == ({}, [])
