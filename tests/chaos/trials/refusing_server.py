"""A server that is there and refuses: read-only, out of connections, its disk full, a table locked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests.chaos.servers import PostgresServer, binaries_of
from tests.chaos.trials.figures import in_time, one_line_a_second, told
from tests.chaos.trials.ground import pause, running_pool
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.chaos.trials.work import APP, Work

_PROMISED = 5.0
_ENOUGH = 10
"""Seconds of a refusal from which on times are judged."""

Refusal = Callable[[PostgresServer, str], AbstractContextManager[None]]


@contextmanager
def _read_only(server: PostgresServer, dsn: str) -> Iterator[None]:
    name = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
    with server.connect() as operator:
        operator.execute(sql.SQL("alter database {} set default_transaction_read_only = on").format(name))
        end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgworker%'"
        operator.execute(end.encode())
        yield
        operator.execute(sql.SQL("alter database {} reset default_transaction_read_only").format(name))
        operator.execute(end.encode())


@contextmanager
def _disk_full(server: PostgresServer, dsn: str) -> Iterator[None]:
    server.fill_disk()
    yield
    server.free_disk()


def _no_connections(server: PostgresServer, dsn: str) -> AbstractContextManager[None]:
    return server.fill_connections()


def _table_locked(server: PostgresServer, dsn: str) -> AbstractContextManager[None]:
    return server.locked_table(dsn, "pgworker.job_queue")


_REFUSALS: dict[str, Refusal] = {
    "read-only": _read_only,
    "no connections": _no_connections,
    "disk full": _disk_full,
    "table locked": _table_locked,
}


def run(bench: Bench) -> Sequence[Figure]:
    """Each refusal lasts `size` seconds."""
    figures: list[Figure] = []
    with PostgresServer(
        small_disk="tablespace", disk_mib=64, settings={"max_connections": "30"}, binaries=binaries_of(bench.server.pid)
    ) as server:
        work = Work(bench, server.make_database())
        with running_pool(work.dsn, bench.directory / "log", app=APP, workers=2) as pool:
            for name, refuse in _REFUSALS.items():
                seconds = _refused(bench, server, work, refuse)
                figures.append(in_time(bench, _ENOUGH, f"{name}: to work again", _PROMISED, seconds))
            work.wait_until_done()
            assert pool.process.poll() is None
            log = pool.log()
        full = "yes" if "No space left" in log else "no"
        return [
            *figures,
            told("the pool has met the full disk", full),
            one_line_a_second(bench, _ENOUGH, log),
            *work.figures(),
        ]


def _refused(bench: Bench, server: PostgresServer, work: Work, refuse: Refusal) -> float:
    """Seconds from the end of the refusal to the end of a job that waited for it."""
    work.enqueue(600 if refuse is _disk_full else 20, task="plain")  # what is recorded of so many needs room
    with refuse(server, work.dsn):
        pause(float(bench.size))
    healed = time.monotonic()
    keys = work.enqueue(2, task="plain")
    work.wait_for("end", keys)
    return max(noted.at for noted in work.worked() if noted.event == "end" and noted.key in keys) - healed


TRIAL = Trial(
    name="refusing_server",
    promise="a server that refuses for a while is waited for, charges nobody, and is at work 5 s after it takes writes",
    unit="seconds of each refusal",
    full=60,
    short=1,
    run=run,
)
