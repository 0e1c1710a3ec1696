"""What the scripts beside this one do alike, by the standard library and psycopg alone: the contract of `compare`.

    INTERPRETER SCRIPT JOBS WORKERS, with the URI of an empty database in BENCH_DSN

One line of JSON comes out. Its `seconds` begin when all worker processes are connected and may claim, and end when the
peer's own tables say that nothing is left to do.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from threading import BrokenBarrierError
from typing import Any

import psycopg

_PATIENCE = 60.0  # seconds for all workers to be connected
_LOOK = 0.02  # seconds between two looks at the peer's tables, at least
_SHARE = 9  # how much longer than the last look lasted

Ready = Callable[[], object]
"""To be called by a worker that is connected; it returns when all may claim."""


@dataclass(frozen=True)
class Peer:
    """`enqueue` returns its seconds, without connecting; `work` never ends by itself.

    `idle`: a question, cheap to ask, whose answer is true once nothing is left to do of `%(jobs)s`.
    `succeeded`: one for how many jobs have succeeded.
    """

    package: str
    settings: str
    install: Callable[[str], None]
    enqueue: Callable[[str, list[dict[str, Any]]], float]
    work: Callable[[str, Ready], None]
    idle: str
    succeeded: str


def measure(peer: Peer) -> None:
    """What the command line asks for."""
    jobs, workers, dsn = int(sys.argv[1]), int(sys.argv[2]), os.environ["BENCH_DSN"]
    peer.install(dsn)
    enqueue_seconds = peer.enqueue(dsn, [payload(number) for number in range(jobs)])
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("analyze")  # as if autovacuum had been here already
        seconds = _drain(peer, dsn, jobs, workers, connection)
        done = _ask(connection, peer.succeeded, jobs)
    if done != jobs:
        sys.exit(f"{jobs} jobs were enqueued and {done} have succeeded")
    told = {"peer": peer.package, "version": version(peer.package), "jobs": jobs, "workers": workers}
    told |= {"runtime": f"Python {platform.python_version()}"}
    told |= {"settings": peer.settings, "enqueue_seconds": enqueue_seconds, "seconds": seconds}
    print(json.dumps(told), flush=True)  # noqa: T201  what it is for


def payload(number: int) -> dict[str, Any]:
    """The same as that of pgworker's jobs."""
    return {"user_id": number, "email": "someone@example.com", "template": "welcome", "note": "x" * 40}


def _drain(peer: Peer, dsn: str, jobs: int, workers: int, connection: psycopg.Connection[Any]) -> float:
    spawning = multiprocessing.get_context("spawn")
    barrier = spawning.Barrier(workers + 1)
    processes = [spawning.Process(target=_work, args=(peer, dsn, barrier), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        barrier.wait(_PATIENCE)
        began = time.perf_counter()
        while True:
            looked = time.perf_counter()
            if _ask(connection, peer.idle, jobs):
                return looked - began
            if any(process.exitcode is not None for process in processes):
                sys.exit("a worker process has ended, see above")
            time.sleep(max(_LOOK, _SHARE * (time.perf_counter() - looked)))
    except BrokenBarrierError:
        sys.exit("a worker process did not start, see above")
    finally:
        for process in processes:
            process.kill()


def _work(peer: Peer, dsn: str, barrier: Any) -> None:
    try:
        peer.work(dsn, lambda: barrier.wait(_PATIENCE))
    except BaseException:
        barrier.abort()
        raise


def _ask(connection: psycopg.Connection[Any], question: str, jobs: int) -> Any:
    return connection.execute(question.encode(), {"jobs": jobs}).fetchall()[0][0]
