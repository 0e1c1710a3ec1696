"""How large a job may be: said in Python where it is enqueued, and by the tables to whoever writes SQL. Tried as the
login that only enqueues, of whom a worker must not run out of memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgworker import App
from pgworker.errors import InvalidJob, InvalidPayload
from pgworker.model.payload import MAX_DEPTH, MAX_PAYLOAD_BYTES, encode_payload
from tests.process import jobs, test_pool
from tests.process.test_pool import Scene, StartPool
from tests.sql.actors import ask
from tests.sql.test_roles import state_of

scene = test_pool.scene
start_pool = test_pool.start_pool

TOO_LARGE = psycopg.errors.CheckViolation
MIB = 1 << 20

app = App("postgresql://nowhere")


@app.task(name="t")
def anything(name: str, value: object) -> None: ...


@pytest.fixture
def enqueuer(login: Callable[..., str]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(login("pgworker_enqueuer"), autocommit=True) as connection:
        yield connection


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        "x" * MAX_PAYLOAD_BYTES,
        ["x" * 1000] * 1100,
        "\x01" * (MAX_PAYLOAD_BYTES // 5),  # six bytes each, as they are written
        nested(MAX_DEPTH),
        nested(100_000),
        "a\0b",
        "\ud800",
        float("nan"),
        10**400,
    ],
    ids=["long", "many", "escaped", "deep", "deeper", "nul", "surrogate", "nan", "huge"],
)
def test_in_python_too_much_is_refused_before_anything_is_sent(value: object) -> None:
    with pytest.raises(InvalidPayload):
        anything.job("x", value)


def test_names_keys_and_numbers_have_limits_in_python_too() -> None:
    for options in ({"org_id": "o" * 257}, {"org_id": ""}, {"queue": "q" * 129}, {"max_attempts": 0}, {"priority": 10}):
        with pytest.raises((InvalidJob, ValueError, TypeError)):
            anything.options(**options)


REFUSED = {
    "9 MiB of text": "select pgworker.enqueue('t', jsonb_build_object('a', repeat('x', 9 * 1024 * 1024)))",
    "9 MiB in many": """select pgworker.enqueue('t', jsonb_build_object('a',
                        (select jsonb_agg(n) from generate_series(1, 900000) as n)))""",
    "an array": "select pgworker.enqueue('t', '[1]')",
    "a number": "select pgworker.enqueue('t', '1')",
    "null": "select pgworker.enqueue('t', 'null')",
    "nothing": "select pgworker.enqueue('t', null)",
    "headers of 1 MiB": "select pgworker.enqueue('t', headers => jsonb_build_object('a', repeat('x', 1024 * 1024)))",
    "headers that are a list": "select pgworker.enqueue('t', headers => '[]')",
    "a long org": "select pgworker.enqueue('t', org_id => repeat('o', 257))",
    "an empty org": "select pgworker.enqueue('t', org_id => '')",
    "a long task": "select pgworker.enqueue(repeat('t', 257))",
    "a long queue": "select pgworker.enqueue('t', queue => repeat('q', 129))",
    "no queue": "select pgworker.enqueue('t', queue => null)",
    "a priority above": "select pgworker.enqueue('t', priority => 10)",
    "a priority below": "select pgworker.enqueue('t', priority => -1)",
    "no attempts": "select pgworker.enqueue('t', max_attempts => 0)",
    "attempts without end": "select pgworker.enqueue('t', max_attempts => 40000)",
    "no time": "select pgworker.enqueue('t', timeout => '0')",
    "time before": "select pgworker.enqueue('t', timeout => '-1 hour')",
    "an id of another day": "select pgworker.enqueue('t', id => '01000000-0000-7000-8000-000000000000')",
    "an id of another version": "select pgworker.enqueue('t', id => '01000000-0000-4000-8000-000000000000')",
    "many of which one is an array": "select pgworker.enqueue_many('t', array['{}', '[1]']::jsonb[])",
    "many of which one is nothing": "select pgworker.enqueue_many('t', array['{}', null]::jsonb[])",
    "many of which one is of 9 MiB": """select pgworker.enqueue_many('t',
                                        array['{}', jsonb_build_object('a', repeat('x', 9 * 1024 * 1024))])""",
    "many in no queue": "select pgworker.enqueue_many('t', array['{}']::jsonb[], queue => null)",
    "many of a long task": "select pgworker.enqueue_many(repeat('t', 257), array['{}']::jsonb[])",
    "another depth than jsonb has": "select pgworker.enqueue('t', (repeat('[', 100000) || repeat(']', 100000))::jsonb)",
}


def test_in_sql_too_much_is_refused_by_the_tables(roles_dsn: str, enqueuer: psycopg.Connection[Any]) -> None:
    states = {name: state_of(enqueuer, statement) for name, statement in REFUSED.items()}
    assert {name: state for name, state in states.items() if state[:2] not in ("22", "23", "54")} == {}
    with psycopg.connect(roles_dsn) as connection:
        assert ask(connection, "select count(*) from pgworker.jobs") == [0]


@pytest.mark.parametrize("value", [0, 1, "", [], {}, None, 0.5], ids=repr)
def test_whatever_python_lets_through_the_tables_take_though_jsonb_is_larger_than_json(
    enqueuer: psycopg.Connection[Any], value: object
) -> None:
    """Nothing is larger than six times its text: digits, one each. A dead letter with it can be copied whole, too."""
    each = len(json.dumps(value)) + 1
    payload = {"a": [value] * ((MAX_PAYLOAD_BYTES - 16) // each)}
    sent = encode_payload(payload)
    assert MAX_PAYLOAD_BYTES - 32 < len(sent) <= MAX_PAYLOAD_BYTES
    (stored,) = ask(enqueuer, "select pg_column_size(%s::jsonb)", sent.decode())
    assert stored <= 6 * MAX_PAYLOAD_BYTES
    assert ask(enqueuer, "select pgworker.enqueue('t', %s)", sent.decode())


def test_a_payload_that_comes_compressed_counts_by_what_it_will_be(enqueuer: psycopg.Connection[Any]) -> None:
    """16 MiB of one letter are 190 kB in a table of the enqueuer's own, and would be that for `pg_column_size`."""
    enqueuer.execute("create temp table mine (payload jsonb)")
    enqueuer.execute("insert into mine select jsonb_build_object('a', repeat('x', 16 * 1024 * 1024))")
    (stored,) = ask(enqueuer, "select pg_column_size(payload) from mine")
    assert stored < 8 * MIB, "it would slip through"
    calls = (
        "select pgworker.enqueue('t', payload) from mine",
        """select pgworker.enqueue_jobs(array['t'], array_agg(payload), array['q'], array[5::smallint],
               array[null::timestamptz], array[1::smallint], array[null::bigint], array[null], array[null::jsonb],
               array[null::uuid]) from mine""",
        "select pgworker.enqueue('t', headers => payload) from mine",
    )
    for call in calls:
        with pytest.raises(TOO_LARGE):
            enqueuer.execute(call.encode())


def test_what_sql_lets_through_and_python_would_not_costs_its_own_job_and_nobody_else(
    scene: Scene, start_pool: StartPool, login: Callable[..., str]
) -> None:
    """A payload of 7 MiB, of more levels than a decoder likes, with numbers that no float holds, with other keys."""
    pool = start_pool(log_format="json")
    workers = pool.workers
    task = jobs.quick.name
    strange = {
        "large": json.dumps({"directory": "x" * (7 * MIB)}),
        "deep": '{"directory": ' + "[" * 5000 + "]" * 5000 + "}",
        "huge": '{"directory": 1' + "0" * 5000 + "}",
        "tiny": '{"directory": 1e-5000}',
        "other": '{"directory": "x", "name": "y", "__class__": "z", "self": 1}',
        "none": "{}",
    }
    with psycopg.connect(login("pgworker_enqueuer"), autocommit=True) as enqueuer:
        made = [
            ask(enqueuer, "select pgworker.enqueue(%s, %s, max_attempts => 1)", task, payload)[0]
            for payload in strange.values()
        ]
    scene.wait_for_status("dead_letter", *made)
    scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "afterwards"))
    outcomes = {name: scene.outcomes(job)[-1][1] for name, job in zip(strange, made, strict=True)}
    assert outcomes == dict.fromkeys(strange, "failed")
    assert pool.workers == workers, "no worker died of it"
