"""`app.queue()`: a worker of one's own, and what it may get wrong without losing a job."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import Connection

from pgworker import App
from pgworker.errors import ConfigurationError, InvalidJob
from tests.sql.actors import Connect, ask, enqueue


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


@pytest.fixture
def app(dsn: str) -> App:
    app = App(dsn)

    @app.task(name="t")
    def t() -> None: ...

    return app


def states(db: Connection[Any]) -> dict[str, int]:
    counted = "select pgworker.job_status(id), count(*) from pgworker.jobs group by 1"
    return dict(db.execute(counted.encode()).fetchall())


def test_what_is_said_is_recorded_and_the_rest_goes_back(app: App, db: Connection[Any]) -> None:
    enqueue(db, 5)
    with app.queue("default") as queue:
        first, second, *_ = queue.claim(4)
        queue.succeed(first)
        queue.fail(second, ValueError("no"))
    assert states(db) == {"succeeded": 1, "failed": 1, "pending": 3}
    assert ask(db, "select count(*) from pgworker.job_leases") == [0]


def test_a_block_that_fails_gives_back_what_it_had_not_begun(app: App, db: Connection[Any]) -> None:
    enqueue(db, 5)

    def fail() -> None:
        with app.queue("default") as queue:
            queue.succeed(queue.claim(4)[0])
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert states(db) == {"succeeded": 1, "pending": 4}
    assert ask(db, "select count(*) from pgworker.job_leases") == [0]


def test_a_block_that_fails_with_its_connection_raises_what_it_failed_with(app: App, db: Connection[Any]) -> None:
    enqueue(db, 2)
    ours = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgworker queue'"

    def fail() -> None:
        with app.queue("default") as queue:
            queue.claim(2)
            db.execute(ours.encode())
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert states(db) == {"running": 2}


def test_more_claims_than_leases_may_be_held_are_refused_before_they_take_anything(
    app: App, db: Connection[Any]
) -> None:
    enqueue(db, 20)
    with app.queue("default") as queue:
        held = [queue.claim(1)[0] for _ in range(4)]
        with pytest.raises(RuntimeError, match="4 claims have jobs of which nobody has said how they ended"):
            queue.claim(1)
        assert states(db) == {"running": 4, "pending": 16}
        queue.succeed(held[0])
        assert len(queue.claim(3)) == 3  # in the trip that ends a lease there is room for one
    assert states(db) == {"succeeded": 1, "pending": 19}


def test_a_job_that_is_said_to_have_ended_twice_does_not_take_its_neighbour_with_it(
    app: App, db: Connection[Any]
) -> None:
    enqueue(db, 2)
    with app.queue("default") as queue:
        first, second = queue.claim(2)
        queue.succeed(first)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="was said before"):
                queue.succeed(first)
            queue.claim(0)
        assert states(db) == {"succeeded": 1, "running": 1}
        queue.succeed(second)
    assert states(db) == {"succeeded": 2}


def test_a_queue_that_is_named_twice_gives_each_job_once(app: App, db: Connection[Any]) -> None:
    enqueue(db)
    with app.queue("default", "default") as queue:
        assert len(queue.claim(2)) == 1


@pytest.mark.parametrize("jobs", [-1, True, 1.5, "a", None, 10_001])
def test_a_number_of_jobs_that_cannot_be_is_refused(app: App, jobs: Any) -> None:
    with app.queue("default") as queue, pytest.raises(ValueError, match="a number of jobs from 0 to 10000"):
        queue.claim(jobs)


def test_names_and_times_that_cannot_be_are_refused(app: App) -> None:
    for names in (("a b",), (5,)):
        with pytest.raises(InvalidJob), app.queue(*names):
            pass
    with pytest.raises(ConfigurationError, match="lease_ttl must be at least 1 s, not 0"):
        app.queue("default", lease_ttl=0)
