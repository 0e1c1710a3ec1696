"""python -m tests.chaos.boundary_client DSN DIRECTORY: a producer and operator of the app of `boundary_jobs`.

It may be killed anywhere and started again: its ledger says what it has planned, what it was told, and how far it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import psycopg

from pgworker.control.queues import pause_queues, resume_queues
from pgworker.db.connect import connect
from pgworker.errors import InvalidJob
from pgworker.lifecycle.cancel import cancel_job, cancel_jobs
from pgworker.lifecycle.dead_letters import discard_dead_letters, requeue_dead_letters
from pgworker.lifecycle.hasten import hasten_jobs, hasten_matching
from pgworker.lifecycle.purge import purge_queue
from pgworker.model.job import JobRequest
from pgworker.model.selection import JobFilter
from pgworker.model.state import CancelAnswer
from tests.chaos import boundary_jobs as jobs

PATIENCE = 4.0
"""Seconds that a step waits for what it needs; a pool that has just died may never give it."""

Step = Callable[["Client"], None]


class Ledger:
    """Lines of a word and what it is about, each written at once, in a file outside of what is tested."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "client"

    def note(self, word: str, about: object) -> None:
        opened = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(opened, f"{word} {about}\n".encode())
        finally:
            os.close(opened)

    def noted(self, word: str) -> list[str]:
        """What was noted with this word."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return [line[len(word) + 1 :] for line in lines if line.startswith(f"{word} ")]


class Client:
    """One life of the program."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        self.directory = str(directory)
        self.ledger = Ledger(directory)
        self.connection = connect(dsn, application_name="client")
        jobs.app.use_dsn(dsn)

    def plan(self, name: str, *requests: JobRequest) -> list[JobRequest]:
        """These with ids of our own, the same ones in every life."""
        ids = [UUID(text) for text in self.ledger.noted(f"PLAN {name}")]
        for _ in requests[len(ids) :]:
            ids.append(_new_id())
            self.ledger.note(f"PLAN {name}", ids[-1])
        return [request._replace(id=job_id) for request, job_id in zip(requests, ids, strict=True)]

    def acknowledged(self, requests: Sequence[JobRequest]) -> None:
        for request in requests:
            self.ledger.note("ACKED", request.id)

    def enqueue(self, name: str, *requests: JobRequest) -> list[UUID]:
        """Through the App, all at once; that they are there already is an answer too."""
        planned = self.plan(name, *requests)
        try:
            jobs.app.enqueue_many(planned)
        except InvalidJob as error:
            if "exists already" not in str(error):
                raise
        self.acknowledged(planned)
        return [request.id for request in planned if request.id is not None]

    def eventually(self, statement: str, *parameters: object) -> bool:
        """Whether this is true within a while."""
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            row = self.connection.execute(statement.encode(), parameters).fetchone()
            if row and row[0]:
                return True
            time.sleep(0.02)
        return False

    def cancel(self, job_id: UUID) -> None:
        if cancel_job(self.connection, job_id) is CancelAnswer.CANCELLED:
            self.ledger.note("CANCELLED", job_id)


def _new_id() -> UUID:
    """A UUIDv7."""
    return UUID(int=(time.time_ns() // 1_000_000) << 80 | 7 << 76 | 2 << 62 | int.from_bytes(os.urandom(7), "big"))


def _later(request: JobRequest, seconds: float = 3600.0) -> JobRequest:
    return request._replace(run_at=datetime.now(timezone.utc) + timedelta(seconds=seconds))


def many(client: Client) -> None:
    """What the pool has to do at first, in one statement."""
    d = client.directory
    client.enqueue(
        "many",
        *(jobs.effect.job(d, goes_wrong) for goes_wrong in (False, True)),
        *(jobs.effect_async.job(d, goes_wrong) for goes_wrong in (False, True)),
        *(jobs.quick.job(d), jobs.quick_async.job(d), jobs.flaky.job(d), jobs.tell.job(d), jobs.hopeless.job(d)),
        *(jobs.hopeless.job(d), jobs.poison.job(d), _later(jobs.quick.job(d), 0.3)),
    )


def alike(client: Client) -> None:
    """By the door of one task, which makes their ids: who dies before it is told of them enqueues more."""
    for job in jobs.quick.enqueue_many([{"directory": client.directory}] * 2):
        client.ledger.note("ACKED", job.id)


def in_a_transaction(client: Client) -> None:
    planned = client.plan("transaction", jobs.quick.job(client.directory), jobs.effect.job(client.directory))
    try:
        with client.connection.transaction():
            jobs.app.enqueue_many(planned, client.connection)
    except InvalidJob as error:
        if "exists already" not in str(error):
            raise
    client.acknowledged(planned)


def rolled_back(client: Client) -> None:
    planned = client.plan("rolled back", jobs.quick.job(client.directory))
    with client.connection.transaction(force_rollback=True):
        jobs.app.enqueue_many(planned, client.connection)
    client.ledger.note("ROLLED", planned[0].id)


def on_a_loop(client: Client) -> None:
    planned = client.plan("loop", jobs.quick_async.job(client.directory))

    async def enqueue() -> None:
        async with await psycopg.AsyncConnection.connect(client.dsn) as connection:
            await jobs.app.enqueue_many_async(planned, connection)

    try:
        asyncio.run(enqueue())
    except InvalidJob as error:
        if "exists already" not in str(error):
            raise
    client.acknowledged(planned)


def cancels(client: Client) -> None:
    """One that waits, one that runs, and all of a task."""
    d = client.directory
    [waiting] = client.enqueue("waiting", _later(jobs.quick.job(d)))
    client.cancel(waiting)
    running, other, last = client.enqueue(
        "running", jobs.cooperate.job(d), jobs.cooperate.job(d), _later(jobs.cooperate.job(d))
    )
    client.eventually(
        "select pgworker.job_status(%s) = 'running' and pgworker.job_status(%s) = 'running'", running, other
    )
    client.cancel(running)
    cancel_jobs(client.connection, JobFilter(task="cooperate"))
    client.ledger.note("GONE", last)


def queues(client: Client) -> None:
    client.enqueue("purged", jobs.quick.job(client.directory)._replace(queue="nobodys"))
    pause_queues(client.connection, ["nobodys"])
    resume_queues(client.connection, ["nobodys"])
    purge_queue(client.connection, "nobodys")


def hastens(client: Client) -> None:
    first, _ = client.enqueue(
        "later", _later(jobs.quick.job(client.directory)), _later(jobs.quick_async.job(client.directory))
    )
    hasten_jobs(client.connection, [first])
    for _ in hasten_matching(client.connection, queue="default", scheduled=True):
        pass


def hold_up(client: Client) -> None:
    """Jobs behind one that takes its time, and behind one that holds its GIL."""
    d = client.directory
    behind = [jobs.quick.job(d)._replace(priority=8) for _ in range(6)]
    client.enqueue("gil", *(jobs.hold_the_gil.job(d, 1.3)._replace(priority=9) for _ in range(2)), *behind)
    client.enqueue("slow", *(jobs.tell.job(d, 0.7)._replace(priority=7) for _ in range(2)), *behind)


def dead_letters(client: Client) -> None:
    client.eventually("select count(*) >= 2 from pgworker.dead_letter_jobs where task = 'hopeless'")
    rows = client.connection.execute("select job_id from pgworker.dead_letter_jobs where task = 'hopeless'").fetchall()
    dead = sorted(row[0] for row in rows)
    requeue_dead_letters(client.connection, dead[:1])
    discard_dead_letters(client.connection, dead[1:])


def waits(client: Client) -> None:
    """For a result, as a caller does."""
    [job_id] = client.enqueue("asked", jobs.quick.job(client.directory))
    with suppress(TimeoutError):
        jobs.app.job(job_id).wait(timeout=PATIENCE)


STEPS: Sequence[Step] = (
    many,
    alike,
    in_a_transaction,
    rolled_back,
    on_a_loop,
    cancels,
    queues,
    hastens,
    dead_letters,
    hold_up,
    waits,
)


def main(dsn: str, directory: Path) -> None:
    client = Client(dsn, directory)
    done = client.ledger.noted("DONE")
    for step in STEPS:
        if step.__name__ not in done:
            step(client)
            client.ledger.note("DONE", step.__name__)
    client.connection.close()
    jobs.app.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
