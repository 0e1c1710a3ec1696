"""No room for the server's log, or for anything that it writes: it may end, and is started when there is room again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import psycopg

from tests.chaos.servers import PostgresServer, SmallDisk, binaries_of
from tests.chaos.trials.figures import in_time, one_line_a_second, told
from tests.chaos.trials.ground import pause, running_pool
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.chaos.trials.work import APP, Work
from tests.process.pool import eventually

_PROMISED = 5.0
_ENOUGH = 10
"""Seconds without room from which on times are judged."""

_DISKS: dict[SmallDisk, int] = {"wal": 96, "data": 256}
"""MiB of the log's disk, and of one that has everything."""

_SETTINGS = {"wal_keep_size": "0", "max_wal_size": "48MB"}


def run(bench: Bench) -> Sequence[Figure]:
    """Each disk is full for `size` seconds from when the server has met that."""
    return [figure for disk in _DISKS for figure in _filled(bench, disk)]


def _filled(bench: Bench, disk: SmallDisk) -> list[Figure]:
    directory = bench.directory / disk
    directory.mkdir()
    with PostgresServer(
        small_disk=disk, disk_mib=_DISKS[disk], settings=_SETTINGS, binaries=binaries_of(bench.server.pid)
    ) as server:
        work = Work(bench, server.make_database(), directory)
        with running_pool(work.dsn, directory / "log", app=APP, workers=2) as pool:
            with work.producing(10, batch=10, seconds=0.01):
                eventually(lambda: len(work.ends()) > 20, "jobs run")
                server.fill_disk()
                eventually(lambda: _has_met_it(server), lambda: f"no space left: {server.log[-500:]}")
                pause(float(bench.size))
                server.free_disk()
                eventually(lambda: _is_back(server), lambda: f"a server: {server.log[-500:]}")
                back = time.monotonic()
            keys = work.enqueue(2, task="plain")
            work.wait_for("end", keys)
            seconds = time.monotonic() - back
            work.wait_until_done()
            is_alive = pool.process.poll() is None
            log = pool.log()
        return [
            told(f"{disk}: the server", "ended" if "PANIC" in server.log else "refused"),
            in_time(bench, _ENOUGH, f"{disk}: to work again", _PROMISED, seconds),
            Figure(f"{disk}: the pool is the same", "yes", "yes" if is_alive else "no", is_alive),
            one_line_a_second(bench, _ENOUGH, log),
            *work.figures(),
        ]


def _has_met_it(server: PostgresServer) -> bool:
    """What room there is in segments of the log that were made before is used up."""
    with suppress(psycopg.Error), server.connect() as connection:
        connection.execute("select pg_switch_wal()")
    return "No space left on device" in server.log


def _is_back(server: PostgresServer) -> bool:
    """Whether it takes connections; started if it has ended."""
    if not server.is_running:
        server.start(wait=False)
    with suppress(psycopg.OperationalError), server.connect():
        return True
    return False


TRIAL = Trial(
    name="full_disk",
    promise="a pool outlives a full disk of the server's, and is at work 5 s after it is back: nothing lost or charged",
    unit="seconds without room",
    full=60,
    short=1,
    run=run,
)
