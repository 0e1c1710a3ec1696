"""The database of the tests: a private server per pytest process, a fresh database per test.

PGWORKER_TEST_PG_BINDIR chooses the PostgreSQL to test on: a directory with `postgres` and `initdb`.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from pgworker.db import embedded
from pgworker.db.scratch import name_of, scratch_database, scratch_directory

_numbers = itertools.count(1)

# A busy machine draws inputs slowly, and that says nothing about what is tested with them.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


def pytest_xdist_auto_num_workers() -> int:
    """Most tests wait for most of their time: for processes to start, leases to end, backoffs to pass."""
    return 2 * (os.cpu_count() or 1)


collect_ignore = ["acceptance/shop"]
"""A project of its own, with tests of its own: `acceptance/test_shop.py` runs them there."""


@pytest.fixture(scope="session")
def binaries() -> Path | None:
    """PostgreSQL's binaries as the environment asks for, or None for the default."""
    named = os.environ.get("PGWORKER_TEST_PG_BINDIR")
    return Path(named) if named else None


_QUICK = {
    "fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0", "max_wal_size": "256MB"
}  # fmt: skip
"""A database is copied in half of the time without what only a crash or a replica would need."""
_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30
"""Bytes that must be free in memory for the servers of a run."""


def _place() -> Path | None:
    """Where servers live: most of a test's time is the copy of a database, and in memory that takes a third of it."""
    has_room = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM
    return _MEMORY if has_room else None


@pytest.fixture(scope="session")
def server(binaries: Path | None) -> Iterator[embedded.Server]:
    """A private server. Every xdist worker has its own, so none depends on how long another one lives."""
    with (
        scratch_directory(_place()) as directory,
        embedded.start(directory, options=_QUICK, binaries=binaries) as started,
    ):
        yield started


@pytest.fixture(scope="session")
def psql(server: embedded.Server) -> str:
    """The command beside the server's own, or any; some builds have none."""
    beside = Path(f"/proc/{server.pid}/exe").resolve().with_name("psql")
    found = str(beside) if beside.exists() else shutil.which("psql")
    if found is None:
        pytest.skip("needs psql")
    return found


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory for a private server of the test's own; its socket goes with it, however the server ended."""
    with scratch_directory() as opened:
        yield opened
        shutil.rmtree(str(conninfo_to_dict(embedded.dsn(opened))["host"]), ignore_errors=True)


@pytest.fixture(scope="session")
def pgworker_server(server: embedded.Server) -> str:
    """Where the fixtures of pgworker's own pytest plugin make databases."""
    return server.dsn


@pytest.fixture
def dsn(server: embedded.Server, pgworker_template: str) -> Iterator[str]:
    """The conninfo string of a fresh, migrated database."""
    with scratch_database(server.dsn, name_of(pgworker_template)) as made:
        yield made


@pytest.fixture
def blank_dsn(server: embedded.Server) -> Iterator[str]:
    """The conninfo string of a fresh, empty database."""
    with scratch_database(server.dsn, "template0") as made:
        yield made


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[[], psycopg.Connection[TupleRow]]]:
    """Opens autocommit connections to `dsn`, all closed when the test ends."""
    with ExitStack() as connections:
        yield lambda: connections.enter_context(psycopg.connect(dsn, autocommit=True))


@pytest.fixture
def roles_dsn(dsn: str) -> str:
    """`dsn`, whose schema belongs to pgworker_owner."""
    from pgworker.db.roles import make_roles

    make_roles(dsn)
    return dsn


@pytest.fixture
def login(roles_dsn: str) -> Iterator[Callable[..., str]]:
    """Makes logins: `login("pgworker_worker")` is the conninfo string of a new one with this role and nothing else."""
    made: list[str] = []

    def make(*roles: str) -> str:
        name = f"login_{next(_numbers)}"
        made.append(name)
        for statement in [f"create role {name} login", *(f"grant {role} to {name}" for role in roles)]:
            _run(roles_dsn, statement)
        return make_conninfo(roles_dsn, user=name)

    yield make
    for name in made:
        for statement in (f"drop owned by {name}", f"drop role {name}"):
            _run(roles_dsn, statement)


def _run(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())
