"""The pytest plugin, in a project of a user's: his app, his table, his tests, run by his own pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

PROJECT = {
    "shop.py": """
from pgworker import App, Context

app = App()

@app.task
def order(ctx: Context, number: int) -> None:
    with ctx.transaction() as conn:
        conn.execute("insert into orders values (%s)", [number])

@app.task
async def mail(to: str) -> str:
    return to
""",
    "conftest.py": """
import psycopg
import pytest

@pytest.fixture(scope="session")
def pgworker_template(pgworker_template):
    with psycopg.connect(pgworker_template) as conn:
        conn.execute("create table orders (number integer primary key)")
    return pgworker_template
""",
    "test_shop.py": """
import psycopg
import pytest
from pgworker.testing import assert_enqueued, drain
from shop import app, mail, order

pytestmark = pytest.mark.usefixtures("pgworker_database")

def orders():
    with psycopg.connect(app.dsn) as conn:
        return conn.execute("select number from orders").fetchall()

@pytest.mark.parametrize("number", range(4))
def test_an_order(number):
    assert orders() == []
    mail.enqueue("ada")
    order.enqueue(number)
    assert [job.outcome for job in drain(app, raising=True)] == ["succeeded"] * 2
    assert orders() == [(number,)]
    order.enqueue(number)
    assert_enqueued(order, {"number": 2 if number == 1 else number})
""",
}
"""Its second test fails in the middle, with a job left in the queue."""

STAYS_CONNECTED = """
import psycopg
import pytest

@pytest.fixture(scope="session")
def pgworker_template(pgworker_template):
    with psycopg.connect(pgworker_template):
        yield pgworker_template
"""

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, binaries: Path | None) -> Run:
    for name, text in PROJECT.items():
        (tmp_path / name).write_text(text)

    def run(*options: str, **environment: str) -> str:
        """What its pytest prints, which fails on every warning. A DSN that is exported must not be used."""
        own = {"PGWORKER_DSN": "postgresql://production.example/shop"}
        if binaries is not None:
            own["PGWORKER_PG_BINDIR"] = str(binaries)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PGWORKER_"))}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "--tb=short", *options],
            cwd=tmp_path,
            env={**inherited, **own, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        ).stdout

    return run


def left_behind(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("select datname from pg_database where datname like 'pgworker_scratch%'").fetchall()
    return sorted(name for (name,) in found)


@pytest.mark.parametrize("options", [["-n0"], ["-n2"]], ids=["one process", "two processes"])
def test_every_test_has_a_database_of_its_own_with_the_users_table_whatever_became_of_the_last_one(
    run: Run, options: list[str]
) -> None:
    printed = run(*options)
    assert "1 failed, 3 passed in" in printed
    assert "should wait a job of shop.order with {'number': 2}; found 0. What waits:" in printed


def test_on_a_server_of_the_users_an_ordinary_role_makes_databases_and_drops_them(
    run: Run, roles_dsn: str, login: Callable[..., str]
) -> None:
    role = login()
    with psycopg.connect(role) as connection:
        user = connection.info.user
    before = left_behind(roles_dsn)
    refused = run("-n0", PGWORKER_TEST_DSN=role)
    assert f"{user} may not create databases at {user}@" in refused
    assert "Traceback" not in refused
    with psycopg.connect(roles_dsn) as connection:
        connection.execute(f"alter role {user} createdb".encode())
    assert "1 failed, 3 passed in" in run("-n2", PGWORKER_TEST_DSN=role)
    assert left_behind(roles_dsn) == before


def test_without_a_server_it_says_how_to_get_one(run: Run, tmp_path: Path) -> None:
    printed = run("-n0", "-x", PGWORKER_PG_BINDIR=str(tmp_path))
    assert f"no server for tests: there is no postgres in {tmp_path}" in printed
    assert "Or name one of yours in PGWORKER_TEST_DSN." in printed
    assert "Traceback" not in printed


def test_a_server_that_is_not_there_is_one_sentence(run: Run, tmp_path: Path) -> None:
    printed = run("-n0", "-x", PGWORKER_TEST_DSN=make_conninfo(host=str(tmp_path)))
    assert "Start PostgreSQL, or correct host and port in the DSN." in printed
    assert "Traceback" not in printed


def test_a_template_that_somebody_is_still_connected_to_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(STAYS_CONNECTED)
    printed = run("-n0", "-x")
    assert "can't be copied while somebody is connected to it: close what has filled it" in printed


def test_pytest_loads_nothing_of_the_package_but_the_plugin() -> None:
    """In every run, wherever the package is installed."""
    program = (
        "import sys, pgworker.testing.plugin; print(*(m for m in sys.modules if m.startswith(('pgworker', 'psy'))))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert sorted(printed.split()) == ["pgworker", "pgworker.testing", "pgworker.testing.plugin"]
