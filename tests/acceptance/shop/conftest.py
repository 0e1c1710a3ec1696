"""A database with the shop's tables, and a login with the rights of its pool: no superuser, whom no policy stops."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from webshop import SCHEMA


@pytest.fixture(scope="session")
def pgworker_template(pgworker_template: str) -> str:
    subprocess.run([sys.executable, "-m", "pgworker", "migrate", "--roles", "--dsn", pgworker_template], check=True)
    with psycopg.connect(pgworker_template) as conn:
        conn.execute(SCHEMA.encode())
        conn.execute("create role pool login")
        conn.execute("grant pgworker_worker to pool")
        conn.execute("grant select, insert on orders, mails to pool")
    return pgworker_template


@pytest.fixture(autouse=True)
def login(pgworker_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    dsn = make_conninfo(pgworker_database, user="pool")
    monkeypatch.setenv("PGWORKER_DSN", dsn)
    return dsn


@pytest.fixture
def owner(pgworker_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Sees the rows of every org."""
    with psycopg.connect(pgworker_database, autocommit=True) as conn:
        yield conn
