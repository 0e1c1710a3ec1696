"""The database of the tests: a private server per pytest process, a fresh database per test.

PGWORKER_TEST_PG_BINDIR chooses the PostgreSQL to test on: a directory with `postgres` and `initdb`.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
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
    # Not pytest's directories: they are closed to the unprivileged user that a server of root runs as.
    with tempfile.TemporaryDirectory(prefix="pgworker-tests-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        options = {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off"}
        with embedded.start(directory, options=options, binaries=binaries) as started:
            yield started


@pytest.fixture(scope="session")
def template(server: embedded.Server) -> Iterator[str]:
    """The name of a migrated database that the databases of tests are copied from."""
    from pgworker.db.migrate import migrate

    with _database(server, "template0") as conninfo:
        migrate(conninfo)
        yield str(psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"])


@pytest.fixture
def dsn(server: embedded.Server, template: str) -> Iterator[str]:
    """The conninfo string of a fresh, migrated database."""
    with _database(server, template) as conninfo:
        yield conninfo


@pytest.fixture
def blank_dsn(server: embedded.Server) -> Iterator[str]:
    """The conninfo string of a fresh, empty database."""
    with _database(server, "template0") as conninfo:
        yield conninfo


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[[], psycopg.Connection[TupleRow]]]:
    """Opens autocommit connections to `dsn`, all closed when the test ends."""
    with ExitStack() as connections:
        yield lambda: connections.enter_context(psycopg.connect(dsn, autocommit=True))


@contextmanager
def _database(server: embedded.Server, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    _administer(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield make_conninfo(server.dsn, dbname=name)
    finally:
        _administer(server, f'DROP DATABASE "{name}" WITH (FORCE)')


def _administer(server: embedded.Server, statement: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(statement.encode())
