"""Dropping a day while its jobs are enqueued, claimed, settled, released, cancelled, reclaimed and requeued."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.dead_letters import discard_dead_letters, requeue_dead_letters
from pgworker.lifecycle.partitions import when_free
from pgworker.lifecycle.prune import PruneAction, prune
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome
from pgworker.sql.load import query
from tests.sql.actors import DEADLINE, Blocked, Connect, Held, Monitor, Worker, ask, enqueue, impatient, statuses
from tests.sql.history import DAY, RETENTION, age, day_of, enqueue_ago, partitions, places
from tests.sql.invariants import STORED, offences

WATCH = "select pgworker.watch_expired_partitions('7 days')"
DROP = "select pgworker.drop_expired_partitions('7 days')"
AGO = 9


@dataclass(frozen=True, slots=True)
class Scene:
    """A job of an expired day; `act` is the verb that meets the prune, and `then` what the job must be after it."""

    job: UUID
    act: Callable[[Connection[Any]], object]
    then: str | None


Setting = Callable[[Connection[Any]], Scene]


_LATE = """
    with job as (
        insert into pgworker.jobs (id, created_at, run_at, priority, max_attempts, queue, task, payload)
        values (%s, now(), now(), 5, 25, 'default', 't', '{}') returning *
    )
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task)
    select id, run_at, 1, priority, 0, queue, task from job
"""


def an_enqueue(db: Connection[Any]) -> Scene:
    """Its id was young enough when it was checked, a moment before midnight."""
    enqueue_ago(db, AGO)
    [job] = ask(db, "select pgworker.uuid7(clock_timestamp() - %s * interval '1 day')", AGO)
    return Scene(job, lambda connection: connection.execute(_LATE, [job]), "pending")


def claimed(db: Connection[Any]) -> tuple[UUID, Worker, Held]:
    [job] = enqueue_ago(db, AGO)
    worker = Worker(db)
    held = worker.claim()
    assert held.ids == [job]
    return job, worker, held


def a_claim(db: Connection[Any]) -> Scene:
    [job] = enqueue_ago(db, AGO)
    return Scene(job, lambda connection: Worker(connection).claim(), "running")


def settling(outcome: Outcome, next_: Next, then: str) -> Setting:
    def setting(db: Connection[Any]) -> Scene:
        job, worker, held = claimed(db)
        delay = 3600.0 if next_ is Next.REQUEUE else 0.0
        settlement = held.settlement(outcome=outcome, then=next_, delay=delay)
        return Scene(job, lambda connection: Worker(connection, worker.worker_id).settle(settlement), then)

    return setting


def a_release(db: Connection[Any]) -> Scene:
    job, _, held = claimed(db)
    return Scene(job, lambda connection: release_jobs(connection, held.lease_id, 1), "pending")


def a_reclaim(db: Connection[Any]) -> Scene:
    job, worker, _ = claimed(db)
    worker.die()
    [lease] = Monitor(db).reclaimable()

    def act(connection: Connection[Any]) -> None:
        """Both halves in the transaction of the caller, if there is one."""
        findings = {"job_ids": [job], "executions": [1], "failures": [0], "cancelled": [], "outcomes": ["crashed"]}
        others = {"lease_id": lease.lease_id, "worker_id": worker.worker_id, "started_us": [1], "assumed_running": 0}
        nobody = dict.fromkeys(("cause_spared", "cause_again", "error_spared")) | {"suspects": 1, "had_ended": False}
        backoff = {"error": None, "cause": "dead", "backoff_base": 9, "backoff_cap": 9, "backoff_jitter": 0}
        connection.execute(query("take_lease"), {"lease_id": lease.lease_id, "only_expired": False, "until": None})
        connection.execute(query("reclaim_jobs"), findings | others | nobody | backoff)

    return Scene(job, act, "failed")


def a_cancel_of_a_waiting_job(db: Connection[Any]) -> Scene:
    [job] = enqueue_ago(db, AGO)
    return Scene(
        job, lambda connection: connection.execute(query("cancel_waiting_jobs"), {"job_ids": [job]}), "cancelled"
    )


def a_cancel_of_a_running_job(db: Connection[Any]) -> Scene:
    job, _, held = claimed(db)
    parameters = {"job_id": job, "lease_ids": [held.lease_id]}
    return Scene(job, lambda connection: connection.execute(query("cancel_running_job"), parameters), "running")


def buried(db: Connection[Any]) -> UUID:
    job, worker, held = claimed(db)
    assert worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.BURY))
    age(db, [job], 8)
    return job


def a_requeue_of_a_dead_letter(db: Connection[Any]) -> Scene:
    job = buried(db)
    return Scene(job, lambda connection: requeue_dead_letters(connection, [job]), "pending")


def a_discard_of_a_dead_letter(db: Connection[Any]) -> Scene:
    job = buried(db)
    return Scene(job, lambda connection: discard_dead_letters(connection, [job]), "cancelled")


VERBS: dict[str, Setting] = {
    "enqueue": an_enqueue,
    "claim": a_claim,
    "success": settling(Outcome.SUCCEEDED, Next.END, "succeeded"),
    "failure": settling(Outcome.FAILED, Next.REQUEUE, "failed"),
    "death": settling(Outcome.FAILED, Next.BURY, "dead_letter"),
    "release": a_release,
    "reclaim": a_reclaim,
    "cancel waiting": a_cancel_of_a_waiting_job,
    "cancel running": a_cancel_of_a_running_job,
    "requeue dead letter": a_requeue_of_a_dead_letter,
    "discard dead letter": a_discard_of_a_dead_letter,
}

each_verb = pytest.mark.parametrize("setting", VERBS.values(), ids=VERBS.keys())


def is_well(db: Connection[Any], scene: Scene) -> None:
    assert statuses(db, [scene.job]) == [scene.then]
    assert ask(db, "select id from pgworker.job_status where status = 'LOST'") == []
    assert offences(db, STORED) == {}
    assert not any("default" in place for place in places(db, [scene.job]))


def is_gone(db: Connection[Any]) -> bool:
    """Whether the day was dropped."""
    return not [name for name in partitions(db) if name.startswith("jobs_2") and name < min(kept_days(db))]


def kept_days(db: Connection[Any]) -> list[str]:
    return ask(
        db,
        "select 'jobs_' || to_char((clock_timestamp() at time zone 'UTC')::date - ago, 'YYYYMMDD') "
        "from generate_series(-2, 7) as ago",
    )


# -- one after the other, with the first one's transaction open


@each_verb
def test_while_the_transaction_of_a_verb_is_open_nothing_is_dropped_and_afterwards_nothing_is_lost(
    connect: Connect, setting: Setting
) -> None:
    db, actor, pruner = connect(), connect(), connect()
    scene = setting(db)
    there = partitions(db)
    with actor.transaction():
        scene.act(actor)
        [said] = prune(pruner, RETENTION)
        assert said.action is PruneAction.BUSY
        assert said.why
        assert partitions(db) == there
    assert {partition.action for partition in prune(pruner, RETENTION)} == {PruneAction.DROPPED}
    assert is_gone(db)
    is_well(db, scene)


@each_verb
def test_a_verb_that_waited_for_a_drop_does_what_it_would_have_done_before_it(
    connect: Connect, setting: Setting
) -> None:
    db, actor, pruner = connect(), connect(), connect()
    scene = setting(db)
    pruner.execute(WATCH)
    with pruner.transaction():
        assert ask(pruner, DROP) == [True]
        late = Blocked(actor, lambda: scene.act(actor))
    late.answer()
    assert is_gone(db)
    then = scene if scene.then != "cancelled" or not was_buried(db, scene) else Scene(scene.job, scene.act, None)
    is_well(db, then)


def was_buried(db: Connection[Any], scene: Scene) -> bool:
    """A dead letter that is discarded after its job was dropped leaves nothing."""
    return ask(db, "select count(*) from pgworker.jobs where id = %s", scene.job) == [0]


@each_verb
def test_what_a_verb_does_between_the_copy_and_the_swap_is_in_the_copy(connect: Connect, setting: Setting) -> None:
    db, actor, pruner, reader = connect(), connect(), connect(), connect()
    scene = setting(db)
    pruner.execute(WATCH)
    with ThreadPoolExecutor(2) as threads:
        with reader.transaction():
            reader.execute("select from pgworker.jobs limit 1")
            dropping = threads.submit(ask, pruner, DROP)
            wait_for_copy(db, pruner)
            acting = threads.submit(scene.act, actor)
            waits = "select count(*) from pg_locks where pid = %s and locktype = 'advisory' and not granted"
            ends = time.monotonic() + DEADLINE
            while not acting.done() and ask(db, waits, actor.info.backend_pid) == [0]:
                assert time.monotonic() < ends, "neither done nor told to wait until the drop is over"
        assert dropping.result(DEADLINE) == [True]
        acting.result(DEADLINE)
    assert is_gone(db)
    is_well(db, scene)


def wait_for_copy(db: Connection[Any], pruner: Connection[Any]) -> None:
    """Until the pruner asks for the locks with which it will put the copy in place."""
    asks = "select count(*) from pg_locks where pid = %s and mode = 'AccessExclusiveLock' and not granted"
    ends = time.monotonic() + DEADLINE
    while ask(db, asks, pruner.info.backend_pid) == [0]:
        assert time.monotonic() < ends, "no copy"


def test_a_job_enqueued_with_an_id_of_a_day_ago_is_never_in_a_day_that_is_dropped(connect: Connect) -> None:
    """A producer's own id may be a day old, and its transaction may take long."""
    db, producer = connect(), connect()
    finished = enqueue_ago(db, 2)
    cancel_job(db, finished[0])
    age(db, finished, 2)
    [own] = ask(db, "select pgworker.uuid7(clock_timestamp() - interval '23 hours 59 minutes')")
    with producer.transaction():
        assert enqueue(producer, id=own) == [own]
        assert {partition.action for partition in prune(db, DAY)} <= {PruneAction.BUSY}
    assert {partition.action for partition in prune(db, DAY)} <= {PruneAction.DROPPED}
    assert statuses(db, [own]) == ["pending"]
    assert Worker(db).claim().ids == [own]
    assert offences(db, STORED) == {}


# -- somebody else


def test_two_who_drop_at_once_are_one_who_does_and_one_who_is_told(connect: Connect) -> None:
    db, one, two = connect(), connect(), connect()
    enqueue_ago(db, AGO)
    one.execute(WATCH)
    with one.transaction():
        one.execute(DROP)
        with pytest.raises(psycopg.errors.LockNotAvailable, match="somebody else makes or drops partitions"):
            two.execute(WATCH)
        with pytest.raises(psycopg.errors.LockNotAvailable, match="somebody else makes or drops partitions"):
            ask(two, "select pgworker.create_partition('2020-01-01')")
    assert prune(two, RETENTION) == []


def test_what_was_watched_and_never_dropped_is_dropped_by_whoever_comes_next(connect: Connect) -> None:
    db, worker = connect(), Worker(connect())
    ids = enqueue_ago(db, AGO, 2)
    db.execute(WATCH)
    assert worker.settle(worker.claim(1).settlement())
    assert ask(db, "select job_id from pgworker.partition_writes") == ids[:1]
    assert [partition.kept for partition in prune(db, RETENTION)] == [2]
    assert ask(db, "select count(*) from pgworker.partition_writes") == [0]
    assert statuses(db, ids) == ["succeeded", "pending"]


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_claim_that_waited_for_its_job_to_move_out_of_the_default_partition_finds_it(
    connect: Connect, is_prepared: bool
) -> None:
    """A plan made while the rows move must not be one without the partition that they move to."""
    db, worker, maker = connect(), Worker(connect()), connect()
    worker.connection.prepare_threshold = 0 if is_prepared else None
    day = day_of(db, 3)
    [job] = enqueue_ago(db, 3, partition=False)
    for _ in range(8):
        release_jobs(db, worker.claim().lease_id, 1)
    with maker.transaction():
        assert ask(maker, "select pgworker.create_partition(%s)", day) == [True]
        late = Blocked(worker.connection, worker.claim)
    assert [(row.job_id, row.payload) for row in late.answer().rows] == [(job, "{}")]
    assert places(db, [job]) == {f"jobs_{day:%Y%m%d}"}


# -- claims don't wait


@contextmanager
def reading(connect: Connect) -> Iterator[Connection[Any]]:
    """A cursor left open over everything, as a report or a dump does."""
    reader = connect()
    reader.execute("begin isolation level repeatable read")
    reader.execute("declare report cursor for select * from pgworker.jobs join pgworker.job_executions on id = job_id")
    reader.execute("fetch 1 from report")
    yield reader
    reader.execute("commit")


def test_while_a_reader_keeps_a_day_from_being_dropped_claims_go_on(connect: Connect) -> None:
    db, pruner, worker = connect(), connect(), Worker(connect())
    old = enqueue_ago(db, AGO, 5)
    worker.connection.execute("set lock_timeout = '1s'")  # the DDL gives up after 50 ms, and only then a claim goes on
    with reading(connect) as reader, ThreadPoolExecutor(1) as thread:
        for job in (*old, *enqueue(db, 5)):
            pruning = thread.submit(prune, pruner, RETENTION)
            held = worker.claim(1)
            assert held.ids == [job]
            assert worker.settle(held.settlement())
            [said] = pruning.result(DEADLINE)
            assert (said.action, said.why) == (
                PruneAction.BUSY,
                "a transaction that reads or writes jobs was in the way for longer than 50 ms",
            )
        reader.execute("fetch all from report")
    assert {partition.action for partition in prune(pruner, RETENTION)} == {PruneAction.DROPPED}
    assert statuses(db, old) == ["succeeded"] * 5


def test_what_is_in_the_way_for_a_moment_is_waited_for_three_tries_long(connect: Connect) -> None:
    db, pruner = connect(), connect()
    old = enqueue_ago(db, AGO, 5)
    tries = 0

    def watch() -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            readers.close()
        pruner.execute(WATCH)

    with ExitStack() as readers:
        readers.enter_context(reading(connect))
        when_free(watch)
        assert tries == 3
    with reading(connect), pytest.raises(psycopg.errors.LockNotAvailable):
        when_free(watch)
    assert tries == 6
    assert {partition.action for partition in prune(pruner, RETENTION)} == {PruneAction.DROPPED}
    assert statuses(db, old) == ["pending"] * 5


def test_a_reader_who_comes_while_rows_are_copied_holds_up_the_drop_and_no_claim(connect: Connect) -> None:
    db, pruner, worker = connect(), connect(), Worker(connect())
    old = enqueue_ago(db, AGO, 5)
    pruner.execute(WATCH)
    worker.connection.execute("set lock_timeout = '1s'")
    with ThreadPoolExecutor(1) as thread:
        with reading(connect):
            dropping = thread.submit(ask, pruner, DROP)
            wait_for_copy(db, pruner)
            for job in old:
                held = worker.claim(1)
                assert held.ids == [job]
                assert worker.settle(held.settlement())
            assert not dropping.done()
        assert dropping.result(DEADLINE) == [True]
    assert statuses(db, old) == ["succeeded"] * 5
    assert offences(db, STORED) == {}


def test_while_what_waits_is_copied_a_claim_waits_for_nothing_at_all(connect: Connect) -> None:
    """The copy is held up where it reads old executions, and is made to bear that."""
    db, pruner, worker, blocker = connect(), connect(), Worker(connect()), connect()
    old = enqueue_ago(db, AGO, 3)
    pruner.execute(WATCH)
    db.execute("alter function pgworker.drop_expired_partitions(interval) set lock_timeout = '20s'")
    with blocker.transaction():
        blocker.execute(f"lock table pgworker.job_executions_{day_of(db, AGO):%Y%m%d}".encode())
        dropping = Blocked(pruner, lambda: ask(pruner, DROP))
        with impatient(worker.connection):
            new = enqueue(worker.connection, 2)
            held = worker.claim()
            assert held.ids == old + new
            release_jobs(worker.connection, held.lease_id, 4)
            today = worker.claim()
            assert worker.settle(today.settlement())
    assert dropping.answer() == [True]
    assert statuses(db, old + new) == ["running"] * 3 + ["succeeded"] * 2
    assert offences(db, STORED) == {}


# -- all at once


@dataclass(frozen=True, slots=True)
class Melee:
    """Threads that act until it is over, and the jobs of which somebody was told that they have ended."""

    dsn: str
    seed: int
    ended: list[UUID] = field(default_factory=list)
    is_over: Event = field(default_factory=Event)
    errors: list[BaseException] = field(default_factory=list)

    def start(self, number: int, act: Act) -> Thread:
        def run() -> None:
            dice = random.Random(f"{self.seed} {number}")
            try:
                with psycopg.connect(self.dsn, autocommit=True) as connection:
                    while not self.is_over.is_set():
                        act(self, connection, dice)
            except BaseException as error:  # noqa: BLE001  ends the test
                self.errors.append(error)
                self.is_over.set()

        thread = Thread(target=run, daemon=True)
        thread.start()
        return thread


Act = Callable[[Melee, Connection[Any], random.Random], None]


def work(melee: Melee, connection: Connection[Any], dice: random.Random) -> None:
    """Claim a few, and settle, release or abandon them."""
    worker = Worker(connection)
    held = worker.claim(dice.randint(1, 5), ttl=0.05)
    if not held.rows:
        return
    fate = dice.random()
    if fate < 0.2:
        release_jobs(connection, held.lease_id, 1)
    elif fate < 0.6:
        worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.REQUEUE))
    elif fate < 0.7:
        worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.BURY))
    elif fate < 0.75 and worker.settle(held.settlement()):
        melee.ended.extend(held.ids)


def interfere(melee: Melee, connection: Connection[Any], dice: random.Random) -> None:
    """Reclaim what was abandoned, bring dead letters back, cancel one that waits."""
    Monitor(connection).reclaim_all(by_expiry=True, assumed_running=1)
    dead = ask(connection, "select job_id from pgworker.dead_letter_jobs limit 3")
    requeue_dead_letters(connection, dead[:2])
    if dice.random() < 0.05:
        melee.ended.extend(discard_dead_letters(connection, dead[2:]))
    if dice.random() < 0.05:
        waits = ask(connection, "select job_id from pgworker.job_queue limit 1")
        melee.ended.extend(ask(connection, query("cancel_waiting_jobs").replace("%(job_ids)s", "%s"), waits))


def test_in_a_melee_over_days_that_are_being_dropped_no_job_is_lost(dsn: str, connect: Connect) -> None:
    """Whatever happens is a matter of days ago soon, so that nothing is kept only because it is fresh."""
    db = connect()
    seed = time.time_ns() % 1_000_000
    ids = [job for days in range(20, 2, -1) for job in enqueue_ago(db, days, 40, max_attempts=1000)]
    melee = Melee(dsn, seed)
    threads = [melee.start(number, act) for number, act in enumerate([work, work, work, interfere])]
    try:
        for days in range(20, 1, -1):
            db.execute(
                "update pgworker.job_executions set finished_at = finished_at - interval '30 days',"
                " started_at = started_at - interval '30 days' where finished_at > now() - interval '20 days'"
            )
            drop(db, days * DAY, melee)
            assert offences(db, STORED) == {}, seed
    finally:
        melee.is_over.set()
        for thread in threads:
            thread.join(DEADLINE)
    for error in melee.errors:
        raise AssertionError(f"seed {seed}") from error
    assert len([name for name in partitions(db) if "before" in name]) == 1
    finish(db)
    assert offences(db, STORED) == {}, seed
    by_status: dict[str | None, set[UUID]] = {}
    for job, status in zip(ids, statuses(db, ids), strict=True):
        by_status.setdefault(status, set()).add(job)
    assert by_status.keys() <= {"succeeded", "cancelled", None}, seed
    assert by_status.get(None, set()) <= set(melee.ended), seed


def drop(db: Connection[Any], older_than: float, melee: Melee) -> None:
    ends = time.monotonic() + DEADLINE
    while any(partition.action is PruneAction.BUSY for partition in prune(db, older_than)):
        assert not melee.errors, melee.errors
        assert time.monotonic() < ends, melee.seed


def finish(db: Connection[Any]) -> None:
    """Bring whatever is left to its end."""
    monitor, worker = Monitor(db), Worker(db)
    requeue_dead_letters(db, ask(db, "select job_id from pgworker.dead_letter_jobs"))
    ends = time.monotonic() + DEADLINE
    left = "select (select count(*) from pgworker.job_queue) + (select count(*) from pgworker.job_leases)"
    while ask(db, left) != [0]:
        monitor.reclaim_all(by_expiry=True)
        held = worker.claim()
        if held.rows:
            assert worker.settle(held.settlement())
        assert time.monotonic() < ends, ask(db, left)
