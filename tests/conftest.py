"""The database of the tests: a private server per pytest process, a fresh database per test.

PGWORKER_TEST_PG_BINDIR chooses the PostgreSQL to test on: a directory with `postgres` and `initdb`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from pgworker.db import embedded

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def binaries() -> Path | None:
    """PostgreSQL's binaries as the environment asks for, or None for the default."""
    named = os.environ.get("PGWORKER_TEST_PG_BINDIR")
    return Path(named) if named else None


@pytest.fixture(scope="session")
def server(binaries: Path | None) -> Iterator[embedded.Server]:
    """A private server. Every xdist worker has its own, so none depends on how long another one lives."""
    with (
        _open_directory() as directory,
        embedded.start(directory, options={"fsync": "off"}, binaries=binaries) as started,
    ):
        yield started


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory for a private server of the test's own; its socket goes with it, however the server ended."""
    with _open_directory() as opened:
        yield opened
        shutil.rmtree(str(conninfo_to_dict(embedded.dsn(opened))["host"]), ignore_errors=True)


@pytest.fixture(scope="session")
def template(server: embedded.Server) -> Iterator[str]:
    """The name of a migrated database that the databases of tests are copied from."""
    from pgworker.db.migrate import migrate

    with _database(server, "template0") as name:
        migrate(make_conninfo(server.dsn, dbname=name))
        yield name


@pytest.fixture
def dsn(server: embedded.Server, template: str) -> Iterator[str]:
    """The conninfo string of a fresh, migrated database."""
    with _database(server, template) as name:
        yield make_conninfo(server.dsn, dbname=name)


@pytest.fixture
def blank_dsn(server: embedded.Server) -> Iterator[str]:
    """The conninfo string of a fresh, empty database."""
    with _database(server, "template0") as name:
        yield make_conninfo(server.dsn, dbname=name)


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


@contextmanager
def _open_directory() -> Iterator[Path]:
    """Unlike pytest's own, a directory that the unprivileged user reaches that a server of root runs as."""
    with tempfile.TemporaryDirectory(prefix="pgworker-tests-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def _database(server: embedded.Server, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    _administer(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield name
    finally:
        _administer(server, f'DROP DATABASE "{name}" WITH (FORCE)')


def _administer(server: embedded.Server, statement: str) -> None:
    _run(server.dsn, statement)


def _run(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())
