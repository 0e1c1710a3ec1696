"""python -m tests.chaos.trials.apps.hostile_doors DSN SEED N: try N hostile values at the doors of the API and SQL.

Of each a line of JSON says how it was answered, and how quickly. The last line is the MiB of memory that it took. A
program of its own: what crashes it is seen, and its memory is its own.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any
from uuid import UUID

import django  # type: ignore[import-untyped]
import psycopg
from django.conf import settings  # type: ignore[import-untyped]
from django.db import connection as django_connection  # type: ignore[import-untyped]
from django.db import transaction as django_transaction
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine, text

from pgworker import App, PgworkerError
from pgworker.cli.root import main as pgworker_command
from pgworker.errors import EXIT_CONFIGURATION, EXIT_USAGE
from tests.chaos.trials.apps import hostile_values as hostile
from tests.chaos.trials.apps.hostile import app, narrow, swallow

TYPED = (PgworkerError, TypeError, ValueError)
OPTIONS = ("queue", "priority", "run_at", "max_attempts", "timeout", "org_id", "headers", "id")
STORED, REFUSED = "stored", "refused"

Door = Callable[["Attacker", Any], object]

RAW = {
    "payload": (
        "{}",
        '{"value": 1}',
        '{"value": 1e100000}',
        '{"value": -1e-16000}',
        '{"value": ' + "9" * 100_000 + "}",
        '{"value": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"value": ' + '{"a":' * 5000 + "1" + "}" * 5001,
        '{"value": 1, "value": 2}',
        '{"value": "\\u0000"}',
        '{"value": "\\ud800"}',
        '{"number": 1, "words": "none"}',
        '{"number": 1e300, "words": [1]}',
        '{"number": 99999999999999999999999999, "words": [], "ratio": 1e999}',
        '{"": 1, "self": 2, "ctx": 3, "__class__": 4}',
        "[]",
        "null",
        "1",
        None,
    ),
    "run_at": (
        "infinity",
        "-infinity",
        "4713-01-01 BC",
        "0001-01-01",
        "9999-12-31",
        "294276-12-31",
        "now",
        "nonsense",
        None,
    ),
    "timeout": ("0", "-1 s", "1 microsecond", "1 ms", "178000000 years", "infinity", "-infinity", "NaN", None),
    "headers": ("{}", "[]", "null", "1", '{"a": 1e100000}', '{"a": ' + "[" * 5000 + "]" * 5000 + "}", '{"": ""}', None),
    "priority": (-1, 10, 32768, 2**31, 5, None),
    "max_attempts": (0, -1, 1, 3, 32768, None),
}


def main(dsn: str, seed: str, attempts: int) -> None:
    attacker = Attacker(dsn, random.Random(seed))
    doors = list(DOORS)
    for number in range(attempts):
        _say(attacker.try_at(doors[number % len(doors)]))
    attacker.close()
    _say(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _say(told: object) -> None:
    sys.stdout.write(json.dumps(told) + "\n")


class Attacker:
    """One who stands at every door, with a connection of each kind."""

    def __init__(self, dsn: str, dice: random.Random) -> None:
        self.dsn = dsn
        self.dice = dice
        app.use_dsn(dsn)
        words = conninfo_to_dict(dsn)
        names = {"NAME": words["dbname"], "USER": words["user"], "HOST": words["host"]}
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **names}})
        django.setup()
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
        self.loop = asyncio.new_event_loop()
        self.asynchronous = self.loop.run_until_complete(psycopg.AsyncConnection.connect(dsn, autocommit=True))
        self.done = swallow.enqueue(1)
        self.done.cancel()

    def close(self) -> None:
        self.loop.run_until_complete(self.asynchronous.close())
        self.loop.close()
        self.engine.dispose()
        self.connection.close()
        app.close()

    def try_at(self, door: str) -> tuple[str, str, str, float, float]:
        """Door, kind of value, how it was answered, milliseconds by the clock, and of CPU."""
        kind, value = hostile.value(self.dice)
        began, began_cpu = time.perf_counter(), time.process_time()
        try:
            answer = DOORS[door](self, value)
            answered = STORED if answer is None else str(answer)
        except TYPED:
            answered = REFUSED
        except psycopg.Error as error:
            answered = REFUSED if door == "raw SQL" else f"untyped {type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001  that is what is looked for
            answered = f"untyped {type(error).__name__}"
        took, cpu = (time.perf_counter() - began) * 1000, (time.process_time() - began_cpu) * 1000
        if not self._is_usable():
            answered = f"the connection is left in a mess, after: {answered}"
        return door, kind, answered, took, cpu

    def _is_usable(self) -> bool:
        return all(
            connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
            for connection in (self.connection, self.asynchronous)
        )

    # -- the doors of the API

    def arguments(self, value: Any) -> None:
        swallow.using(self.connection).enqueue(value)

    def names_of_arguments(self, value: Any) -> None:
        name = str.__str__(value) if issubclass(type(value), str) else self.dice.choice(hostile.NAMES)
        swallow.using(self.connection).enqueue(**{name: value})

    def annotated_arguments(self, value: Any) -> None:
        given: dict[str, Any] = {"number": 1, "words": [], "ratio": 0.5}
        given[self.dice.choice(list(given))] = value
        narrow.using(self.connection).enqueue(**given)

    def pooled(self, value: Any) -> None:
        swallow.enqueue(value)

    def asynchronously(self, value: Any) -> None:
        self.loop.run_until_complete(swallow.using(self.asynchronous).enqueue_async(value))

    def among_many(self, value: Any) -> None:
        app.enqueue_many([swallow.job(1), swallow.job(value), swallow.job(2)], self.connection)

    def instead_of_jobs(self, value: Any) -> None:
        app.enqueue_many([swallow.job(1), value], self.connection)

    def in_sqlalchemy(self, value: Any) -> None:
        with self.engine.begin() as connection:
            with _refusal_kept() as refusals:
                swallow.using(connection).enqueue(value)
            connection.execute(text("select 1"))
        _raise_first(refusals)

    def in_django(self, value: Any) -> None:
        with django_transaction.atomic():
            with _refusal_kept() as refusals:
                swallow.using(django_connection).enqueue(value)
            with django_connection.cursor() as cursor:
                cursor.execute("select 1")
        _raise_first(refusals)

    def options(self, value: Any) -> None:
        given: dict[str, Any] = {self.dice.choice(OPTIONS): value}
        swallow.using(self.connection).options(**given).enqueue(1)

    def extreme_options(self, _value: Any) -> None:
        """Of the type that is asked for."""
        number = self.dice.choice(
            [0, -1, 1e-4, 1e300, float("nan"), float("inf"), 10**400, timedelta.max, 32767, 2**63]
        )
        given: dict[str, Any] = {self.dice.choice(["timeout", "priority", "max_attempts"]): number}
        swallow.using(self.connection).options(**given, run_at=hostile.VALUES["a datetime"](self.dice)).enqueue(1)

    def a_target(self, value: Any) -> None:
        swallow.using(value).enqueue(1)

    def an_org(self, value: Any) -> None:
        with app.org(value):
            swallow.using(self.connection).enqueue(1)

    def a_paused_queue(self, value: Any) -> None:
        app.pause(value)
        app.resume(value)

    def a_purged_queue(self, value: Any) -> None:
        app.purge(value, task="nobody")

    def a_filter(self, value: Any) -> None:
        given: dict[str, Any] = {self.dice.choice(["queue", "task", "org_id", "older_than"]): value}
        app.cancel(**{"task": "nobody", **given, "org_id": given.get("org_id", "nobody")})

    def an_id(self, value: Any) -> None:
        app.job(value).status()

    def a_wait(self, value: Any) -> None:
        app.job(self.done.id).wait(timeout=value if value is not None else 1)

    def a_task(self, value: Any) -> None:
        App(self.dsn).task(name=value)(lambda: None)

    # -- the others

    def a_command(self, _value: Any) -> str | None:
        """In this process; a word can have no NUL, as the kernel would not pass it on."""
        word = self.dice.choice([*hostile.NAMES, *RAW["payload"][1:-1], *map(str, RAW["run_at"]), str(UUID(int=5))])
        command = self.dice.choice(COMMANDS)
        words = [str(word).replace("\0", "0") if part == "?" else part for part in command]
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = pgworker_command([*words, "--dsn", self.dsn])
        if code in (EXIT_USAGE, EXIT_CONFIGURATION, 1):
            return REFUSED
        return STORED if code == 0 else f"exit code {code} of {words}: {said.getvalue()[-500:]}"

    def raw_sql(self, _value: Any) -> None:
        """What no producer in Python would send."""
        tasks = ["swallow", "narrow", "misbehave", "misbehave_async"]
        task = self.dice.choice(tasks if self.dice.random() < 0.9 else hostile.NAMES)
        given: dict[str, Any] = {"payload": self.dice.choice(RAW["payload"][:-4]), "max_attempts": 2}
        for name in self.dice.sample(list(RAW), self.dice.randrange(2)):
            given[name] = self.dice.choice(RAW[name])
        if self.dice.random() < 0.3:
            given[self.dice.choice(["queue", "org_id", "id"])] = self.dice.choice(hostile.NAMES)
        types = {"payload": "jsonb", "headers": "jsonb", "run_at": "timestamptz", "timeout": "interval", "id": "uuid"}
        types |= {"priority": "integer", "max_attempts": "integer", "queue": "text", "org_id": "text"}
        arguments = ", ".join(f"{name} => %({name})s::{types[name]}" for name in given)
        self.connection.execute(f"select pgworker.enqueue(%(task)s, {arguments})".encode(), {"task": task, **given})


COMMANDS = (
    ("enqueue", "swallow", "?"),
    ("enqueue", "?", "{}"),
    ("enqueue", "swallow", "--queue", "?"),
    ("enqueue", "swallow", '{"value": 1}', "--run-at", "?"),
    ("enqueue", "swallow", '{"value": 1}', "--timeout", "?"),
    ("enqueue", "swallow", '{"value": 1}', "--in", "?"),
    ("enqueue", "swallow", '{"value": 1}', "--org", "?"),
    ("enqueue", "swallow", '{"value": 1}', "--priority", "?"),
    ("jobs", "show", "?"),
    ("jobs", "explain", "?"),
    ("jobs", "retry", "?"),
    ("jobs", "cancel", "?"),
    ("jobs", "list", "--queue", "?"),
    ("jobs", "list", "--task", "?"),
    ("jobs", "list", "--org", "?"),
    ("jobs", "list", "--limit", "200"),
    ("jobs", "list", "--json", "--limit", "200"),
    ("queues", "pause", "?"),
    ("queues", "resume", "?"),
    ("queues", "list"),
    ("dead-letters", "list"),
    ("dead-letters", "show", "?"),
    ("status",),
    ("workers",),
)

DOORS: dict[str, Door] = {
    "arguments": Attacker.arguments,
    "names of arguments": Attacker.names_of_arguments,
    "annotated arguments": Attacker.annotated_arguments,
    "the App's own connection": Attacker.pooled,
    "asynchronously": Attacker.asynchronously,
    "among many": Attacker.among_many,
    "instead of jobs": Attacker.instead_of_jobs,
    "in SQLAlchemy": Attacker.in_sqlalchemy,
    "in Django": Attacker.in_django,
    "options": Attacker.options,
    "extreme options": Attacker.extreme_options,
    "a target": Attacker.a_target,
    "an org": Attacker.an_org,
    "a paused queue": Attacker.a_paused_queue,
    "a purged queue": Attacker.a_purged_queue,
    "a filter": Attacker.a_filter,
    "an id": Attacker.an_id,
    "a wait": Attacker.a_wait,
    "a task": Attacker.a_task,
    "a command": Attacker.a_command,
    "raw SQL": Attacker.raw_sql,
}


@contextmanager
def _refusal_kept() -> Iterator[list[BaseException]]:
    """The transaction goes on after a refusal, as a caller's would that catches it."""
    kept: list[BaseException] = []
    try:
        yield kept
    except BaseException as error:  # noqa: BLE001  raised again behind the commit
        kept.append(error)


def _raise_first(kept: list[BaseException]) -> None:
    if kept:
        raise kept[0]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
