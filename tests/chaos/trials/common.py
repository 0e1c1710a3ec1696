"""What trials have in common: a database of their own, percentiles, and what is compared at the end."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import count as count_up
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from pgworker.db.migrate import migrate
from pgworker.db.roles import make_roles
from pgworker.db.scratch import scratch_database
from tests.chaos.trials.trial import Bench, Figure
from tests.process.pool import Pool, start
from tests.sql.invariants import STORED, offences

LEFT = "select (select count(*) from pgworker.job_queue) + (select count(*) from pgworker.job_leases)"
"""Jobs that wait, and leases."""

_logins = count_up()


@contextmanager
def database(bench: Bench) -> Iterator[tuple[str, Connection[Any]]]:
    """A migrated database on the bench's server: its DSN, and a connection in autocommit mode."""
    with scratch_database(bench.server.dsn, "template0") as dsn:
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            yield dsn, connection


@contextmanager
def pool(dsn: str, log_file: Path, **settings: Any) -> Iterator[Pool]:
    """A pool that is ready. The end of its log is printed if the trial fails."""
    started = start(dsn, log_file, **settings)
    running = started.__enter__()
    try:
        running.wait_for_log("the pool is ready")
        yield running
    except BaseException:
        sys.stderr.write("".join(running.log().splitlines(keepends=True)[-30:]))
        raise
    finally:
        with quiet():
            started.__exit__(None, None, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is printed: `start` prints the whole log of its pool."""
    with redirect_stdout(io.StringIO()):
        yield


@contextmanager
def logins(dsn: str) -> Iterator[Callable[..., str]]:
    """pgworker's roles, and `login("pgworker_worker")`: the DSN of a new one with this role. Gone afterwards."""
    make_roles(dsn)
    made: list[str] = []

    def run(*statements: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def make(*roles: str) -> str:
        made.append(name := f"trial_{next(_logins)}")
        run(f"create role {name} login", *(f"grant {role} to {name}" for role in roles))
        return make_conninfo(dsn, user=name)

    yield make
    for name in made:
        run(f"drop owned by {name}", f"drop role {name}")


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of all is at or below; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def count(connection: Connection[Any], what: str, *parameters: Any) -> Any:
    """The only value of a statement."""
    row = connection.execute(what.encode(), parameters or None).fetchone()
    assert row is not None
    return row[0]


def wait_until(look: Callable[[], object], within: float, what: str, every: float = 0.05) -> float:
    """Seconds until it was true. AssertionError: it was not, within so many."""
    began = time.monotonic()
    while not look():
        assert time.monotonic() - began < within, f"not within {within:g} s: {what}"
        time.sleep(every)
    return time.monotonic() - began


def none(name: str, found: Sequence[object] | dict[Any, Any], promised: str = "none") -> Figure:
    """A figure of what must not be there."""
    return Figure(name, promised, "none" if not found else f"{len(found)}: {str(found)[:600]}", not found)


def timed(bench: Bench, size: int, holds: bool) -> bool | None:
    """Whether a time is as promised; None if it is not in a trial smaller than this: a busy machine is slow."""
    return holds or (False if bench.size >= size else None)


def invariants(connection: Connection[Any]) -> Figure:
    """All that must be true of the stored jobs at any moment."""
    return none("invariants that are broken", offences(connection, STORED))


def memory(pid: int, what: str = "VmHWM") -> float:
    """MiB of a process: at most so far (VmHWM), now (VmRSS); 0 if it has gone."""
    try:
        found = re.search(rf"^{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
