"""The job of a dead-letter hook: made with the burial, by whatever verb it is, and never in its way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from psycopg import Connection
from psycopg.types.json import Jsonb

from pgworker import App, DeadLetter
from pgworker.db.listen import Listener
from pgworker.lifecycle.dead_letter_hooks import DeadLetterHook, declare_hooks, restore_hooks
from pgworker.lifecycle.dead_letters import requeue_dead_letters
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome
from tests.process.pool import eventually
from tests.sql.actors import Connect, Held, Monitor, Worker, again, ask, ended, enqueue, statuses
from tests.sql.invariants import STORED

HOOK = DeadLetterHook("t", "t:dead_letter", "late", 8, 3, 60.0)
ERROR = '{"type": "ValueError", "message": "no", "traceback": "here"}'


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    connection = connect()
    declare_hooks(connection, ["t", "u"], [HOOK])
    return connection


@pytest.fixture
def worker(db: Connection[Any]) -> Worker:
    return Worker(db)


def bury(worker: Worker, held: Held, **options: Any) -> None:
    assert worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.BURY, error=ERROR, **options))


def hook_jobs(db: Connection[Any]) -> list[dict[str, Any]]:
    """The dead letters in the payloads of the jobs of hooks."""
    return ask(db, "select payload -> 'dead' from pgworker.jobs where task = %s order by id", HOOK.handler)


def test_a_job_buried_by_a_settle_gives_its_hook_a_job_like_any_other(db: Connection[Any], worker: Worker) -> None:
    [job] = enqueue(db, payload='{"a": 1}', org_id="acme", headers='{"trace": "1"}', max_attempts=5)
    bury(worker, worker.claim())
    columns = "task, queue, priority, max_attempts, timeout_ms, org_id, headers"
    assert ask(db, f"select {columns} from pgworker.jobs where id <> %s", job) == [
        ("t:dead_letter", "late", 8, 3, 60_000, "acme", {"trace": "1"})
    ]
    held = worker.claim(tasks=[HOOK.handler], queues=["late"])
    [row] = held.rows
    died_at: datetime = ask(db, "select died_at from pgworker.dead_letter_jobs")[0]
    created_at: datetime = ask(db, "select created_at from pgworker.jobs where id = %s", job)[0]
    assert msgspec.json.decode(row.payload or "", type=dict[str, DeadLetter]) == {
        "dead": DeadLetter(
            id=job,
            task="t",
            queue="default",
            payload={"a": 1},
            org_id="acme",
            headers={"trace": "1"},
            execution=1,
            failures=1,
            max_attempts=5,
            outcome=Outcome.FAILED,
            error={"type": "ValueError", "message": "no", "traceback": "here"},
            cause=None,
            created_at=created_at,
            died_at=died_at,
        )
    }
    assert worker.settle(held.settlement())
    assert statuses(db, [job, row.job_id]) == ["dead_letter", "succeeded"]


def test_the_app_reads_what_the_database_writes(db: Connection[Any], worker: Worker) -> None:
    app = App("")
    task = app.task(name="t")(lambda: None)
    hook = task.on_dead_letter(lambda dead: dead)
    declare_hooks(db, list(app.tasks), app.dead_letter_hooks)
    [job] = enqueue(db)
    bury(worker, worker.claim())
    [row] = worker.claim(tasks=list(app.tasks)).rows
    letter = hook.invoke(row.payload or "", None, lambda: pytest.fail("nobody asked for the job"))
    assert (letter.id, letter.org_id, letter.headers, letter.reason) == (job, None, None, "ValueError: no")


def test_a_burial_that_is_rolled_back_leaves_no_job_of_the_hook(db: Connection[Any], connect: Connect) -> None:
    enqueue(db)
    with connect() as other, other.transaction(force_rollback=True):
        held = Worker(other).claim()
        bury(Worker(other), held)
        assert len(hook_jobs(other)) == 1
    assert hook_jobs(db) == []


def test_a_settle_that_is_sent_again_buries_once_and_calls_once(db: Connection[Any], worker: Worker) -> None:
    enqueue(db, 2)
    held = worker.claim()
    settlement = held.settlement(1, 1, outcome=Outcome.FAILED, then=Next.BURY)
    assert [worker.settle(settlement), worker.settle(again(settlement))] == [True, False]
    assert len(hook_jobs(db)) == 1


def test_a_job_that_dies_with_its_worker_calls_its_hook_with_the_cause(db: Connection[Any], worker: Worker) -> None:
    [poison, good] = enqueue(db, 2, max_attempts=1)
    worker.claim()
    worker.die()
    monitor = Monitor(db)
    [lease] = monitor.reclaimable()
    monitor.reclaim(lease, [Outcome.CRASHED])
    [letter] = hook_jobs(db)
    assert (letter["id"], letter["outcome"], letter["cause"]) == (str(poison), "crashed", "killed by signal 9")
    assert statuses(db, [poison, good]) == ["dead_letter", "pending"]


def test_a_release_that_buries_calls_the_hook_too(db: Connection[Any], worker: Worker) -> None:
    """Of a job without its row nobody knows the task: it is buried as one of `unknown`."""
    declare_hooks(db, ["unknown"], [DeadLetterHook("unknown", HOOK.handler, "late", 5, 1, None)])
    [job] = enqueue(db)
    held = worker.claim()
    db.execute("delete from pgworker.jobs where id = %s", [job])
    release_jobs(db, held.lease_id, first=1)
    [letter] = hook_jobs(db)
    assert (letter["id"], letter["task"], letter["cause"]) == (
        str(job),
        "unknown",
        "its row in pgworker.jobs is missing",
    )


def test_other_ends_and_other_tasks_call_nobody(db: Connection[Any], worker: Worker) -> None:
    enqueue(db, 3)
    enqueue(db, task="u")
    held = worker.claim(tasks=["t", "u"])
    assert worker.settle(held.settlement(1, 1))
    assert worker.settle(held.settlement(2, 2, outcome=Outcome.FAILED, then=Next.REQUEUE))
    assert worker.settle(held.settlement(3, 3, outcome=Outcome.CANCELLED))
    bury(worker, held, first=4)
    assert ask(db, "select task from pgworker.dead_letter_jobs") == ["u"]
    assert hook_jobs(db) == []


def test_a_hook_that_is_given_up_itself_calls_nobody(db: Connection[Any], worker: Worker) -> None:
    enqueue(db)
    bury(worker, worker.claim())
    bury(worker, worker.claim(tasks=[HOOK.handler], queues=["late"]))
    assert ask(db, "select task from pgworker.dead_letter_jobs order by died_at") == ["t", HOOK.handler]
    assert len(hook_jobs(db)) == 1
    with pytest.raises(psycopg.errors.CheckViolation):
        declare_hooks(db, [], [DeadLetterHook("v", "v", "late", 5, 1, None)])


def test_a_job_that_dies_a_second_time_calls_a_second_time(db: Connection[Any], worker: Worker) -> None:
    [job] = enqueue(db)
    bury(worker, worker.claim())
    assert requeue_dead_letters(db, [job]) == [job]
    bury(worker, worker.claim())
    assert [letter["execution"] for letter in hook_jobs(db)] == [1, 2]


def test_a_payload_too_large_to_be_copied_is_left_out_and_the_job_is_buried_all_the_same(
    db: Connection[Any], worker: Worker
) -> None:
    enough = 8 * 1024 * 1024 - 2000
    for size in (enough - 2000, enough + 1900):
        db.execute("select pgworker.enqueue('t', %s)", [Jsonb({"a": "x" * size})])
    bury(worker, worker.claim())
    assert [letter["payload"] is None for letter in hook_jobs(db)] == [False, True]
    assert ask(db, "select count(*) from pgworker.dead_letter_jobs") == [2]


def test_a_pool_that_sleeps_is_told_as_by_an_enqueue(db: Connection[Any], worker: Worker) -> None:
    enqueue(db, 2)
    with closing(Listener(db.info.dsn, application_name="test")) as listener:
        assert listener.sleep_lock("late")
        bury(worker, worker.claim())
        told = eventually(lambda: [each for each in listener.read() if each.startswith("late=")], "a notification")
    assert {each.partition(",")[0] for each in told} == {"late=1"}


def test_buried_jobs_and_their_hooks_break_no_invariant(db: Connection[Any], worker: Worker) -> None:
    ids = enqueue(db, 50, max_attempts=1)
    bury(worker, worker.claim(20))
    worker.claim(30)
    worker.die()
    for lease in Monitor(db).reclaimable():
        Monitor(db).reclaim(lease, [Outcome.CRASHED] * 30)
    assert len(hook_jobs(db)) == 50
    assert statuses(db, ids) == ["dead_letter"] * 50
    assert {name: rows for name, query in STORED.items() if (rows := ask(db, query.replace("%", "%%")))} == {}
    assert [ended(db, job)[-1][1] for job in ids] == ["failed"] * 20 + ["crashed"] * 30


# -- declarations


def declared(db: Connection[Any]) -> dict[str, tuple[Any, ...]]:
    columns = "handler, queue, priority, max_attempts, timeout_ms, xmin::text"
    return {task: tuple(rest) for task, *rest in ask(db, f"select task, {columns} from pgworker.dead_letter_hooks")}


def hook(task: str, **changes: Any) -> DeadLetterHook:
    fields = {"handler": f"{task}:dead_letter", "queue": "q", "priority": 5, "max_attempts": 25, "timeout": None}
    return DeadLetterHook(task=task, **{**fields, **changes})


def test_a_declaration_is_the_whole_truth_about_the_tasks_that_it_serves_and_no_others(db: Connection[Any]) -> None:
    declare_hooks(db, ["t"], [])
    declare_hooks(db, ["a", "b", "c"], [hook("a"), hook("b")])
    declare_hooks(db, ["x"], [hook("x")])
    before = declared(db)
    declare_hooks(db, ["a", "b", "c"], [hook("a"), hook("c", queue="r", priority=9, max_attempts=1, timeout=1.5)])
    after = declared(db)
    assert before.keys() == {"a", "b", "x"}
    assert after["c"][:-1] == ("c:dead_letter", "r", 9, 1, 1500)
    assert after.keys() == {"a", "c", "x"}
    assert (after["a"], after["x"]) == (before["a"], before["x"]), "what stays is not written again"
    declare_hooks(db, ["a", "b", "c"], [hook("a", queue="other")])
    assert declared(db)["a"][1] == "other"


def test_what_a_server_has_forgotten_is_restored_and_what_others_have_declared_since_stays(db: Connection[Any]) -> None:
    declare_hooks(db, ["a"], [hook("a", queue="newer")])
    restore_hooks(db, [hook("b"), hook("a")])
    restore_hooks(db, [])
    assert {task: declared(db)[task][1] for task in "ab"} == {"a": "newer", "b": "q"}


def test_workers_that_declare_at_the_same_time_do_not_deadlock(db: Connection[Any], connect: Connect) -> None:
    tasks = [f"task{number}" for number in range(40)]

    def declare(turn: int) -> None:
        connection = connect()
        for round_ in range(15):
            hooks = [hook(task, priority=(turn + round_) % 10) for task in (tasks if turn % 2 else reversed(tasks))]
            declare_hooks(connection, tasks, hooks if round_ % 3 else hooks[::2])
        declare_hooks(connection, tasks, [hook(task) for task in tasks])

    with ThreadPoolExecutor(4) as workers:
        assert list(workers.map(declare, range(4))) == [None] * 4
    assert declared(db).keys() == {"t", *tasks}


@pytest.mark.parametrize(
    "wrong",
    [{"queue": "a b"}, {"handler": "a b"}, {"priority": 10}, {"max_attempts": 0}, {"timeout": 0.0}, {"queue": ""}],
)
def test_a_hook_whose_job_could_not_be_stored_cannot_be_declared(db: Connection[Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        declare_hooks(db, ["a"], [hook("a", **wrong)])


def test_a_burial_without_a_hook_costs_one_look_and_a_settle_without_a_burial_none(
    db: Connection[Any], worker: Worker
) -> None:
    declare_hooks(db, ["t"], [])
    enqueue(db, 6)
    held = worker.claim()
    calls = "select coalesce(sum(calls), 0) from pg_stat_user_functions where funcname = 'enqueue_dead_letter_hook'"
    db.execute("set track_functions = 'pl'")
    assert worker.settle(held.settlement(1, 4))
    bury(worker, held, first=5)
    if db.info.server_version >= 150_000:
        db.execute("select pg_stat_force_next_flush()")
    eventually(lambda: ask(db, calls) != [0], "calls that the server has counted")
    assert ask(db, calls) == [2]
    assert hook_jobs(db) == []


def test_ids_of_hooks_jobs_are_time_ordered_ids_of_the_server(db: Connection[Any], worker: Worker) -> None:
    enqueue(db)
    bury(worker, worker.claim())
    [job] = ask(db, "select id from pgworker.jobs where task = %s", HOOK.handler)
    assert isinstance(job, UUID)
    assert job.version == 7
