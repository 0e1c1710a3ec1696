from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker.db.connect import check_schema
from pgworker.db.migrate import migrate, refuse_old_server, script
from pgworker.errors import ConfigurationError, DatabaseUnavailable, PgworkerError, SchemaError
from pgworker.sql import load
from pgworker.sql.load import Migration, read_migrations
from tests.process.pool import eventually

MIGRATION_LOCK = 0x7067776D69677261

TABLE = """
-- two statements, a body between dollars, and per cents that are nobody's placeholders
create table pgworker.things (name text primary key);
create function pgworker.fives() returns bigint language plpgsql as $$
begin
    return (select count(*) from pgworker.things where name like '5%' and 15 % 10 = 5);
end $$;
"""
ROWS = "insert into pgworker.things select n::text from generate_series(1, 59) as n;"

_roles = itertools.count(1)


@pytest.fixture
def steps(tmp_path: Path) -> Callable[..., tuple[Migration, ...]]:
    """Writes texts as migrations 0001, 0002, ... and reads them."""

    def write(*texts: str) -> tuple[Migration, ...]:
        for number, text in enumerate(texts, 1):
            (tmp_path / f"{number:04}_step.sql").write_text(text)
        return read_migrations(tmp_path)

    return write


@pytest.fixture
def ordinary_role(blank_dsn: str) -> Iterator[str]:
    """A role that may log in, and nothing else."""
    name = f"test_migrate_{next(_roles)}"
    ask(blank_dsn, f"create role {name} login")
    yield name
    ask(blank_dsn, f"drop owned by {name}")
    ask(blank_dsn, f"drop role {name}")


def ask(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def books(dsn: str) -> list[tuple[Any, ...]]:
    return ask(dsn, "select version, name, checksum from pgworker.schema_migrations order by version")


def test_a_blank_database_gets_the_schema_of_the_package_once(blank_dsn: str) -> None:
    names = [step.name for step in load.migrations()]
    assert migrate(blank_dsn) == names
    assert migrate(blank_dsn) == []
    assert books(blank_dsn) == [(step.number, step.name, step.checksum) for step in load.migrations()]
    with psycopg.connect(blank_dsn) as connection:
        check_schema(connection)


def test_a_migration_holds_many_statements_and_per_cents_mean_nothing(
    blank_dsn: str, steps: Callable[..., tuple[Migration, ...]]
) -> None:
    assert migrate(blank_dsn, migrations=steps(TABLE, ROWS)) == ["0001_step", "0002_step"]
    assert ask(blank_dsn, "select pgworker.fives()") == [(11,)]


def test_only_what_is_missing_is_applied(blank_dsn: str, steps: Callable[..., tuple[Migration, ...]]) -> None:
    migrate(blank_dsn, migrations=steps(TABLE))
    assert migrate(blank_dsn, migrations=steps(TABLE, ROWS)) == ["0002_step"]


def test_an_ordinary_role_migrates_with_nothing_but_create_on_the_database(blank_dsn: str, ordinary_role: str) -> None:
    database = conninfo_to_dict(blank_dsn)["dbname"]
    theirs = make_conninfo(blank_dsn, user=ordinary_role)
    with pytest.raises(ConfigurationError, match=r"permission denied for database.*create on the database"):
        migrate(theirs)
    ask(blank_dsn, f'grant create on database "{database}" to {ordinary_role}')
    assert migrate(theirs) == [step.name for step in load.migrations()]
    ask(blank_dsn, f'revoke create on database "{database}" from {ordinary_role}')
    assert migrate(theirs) == []


def test_a_role_that_was_given_the_schema_needs_no_right_on_the_database(blank_dsn: str, ordinary_role: str) -> None:
    ask(blank_dsn, f"create schema pgworker authorization {ordinary_role}")
    assert migrate(make_conninfo(blank_dsn, user=ordinary_role)) == [step.name for step in load.migrations()]


def test_two_hosts_that_migrate_at_once_apply_each_migration_once(
    blank_dsn: str, steps: Callable[..., tuple[Migration, ...]]
) -> None:
    both = steps(TABLE, ROWS)
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    with ThreadPoolExecutor(2) as hosts, psycopg.connect(blank_dsn, autocommit=True) as gate:
        gate.execute("select pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        runs = [hosts.submit(migrate, blank_dsn, migrations=both) for _ in range(2)]
        eventually(lambda: gate.execute(waiting).fetchone() == (2,), "two that wait")
        gate.execute("select pg_advisory_unlock(%s)", (MIGRATION_LOCK,))
        applied = [name for run in runs for name in run.result(30)]
    assert sorted(applied) == ["0001_step", "0002_step"]
    assert ask(blank_dsn, "select count(*) from pgworker.things") == [(59,)]


def test_who_holds_the_lock_for_too_long_is_named(blank_dsn: str) -> None:
    with psycopg.connect(blank_dsn, autocommit=True, application_name="some-deploy") as other:
        other.execute("select pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        with pytest.raises(
            DatabaseUnavailable, match=rf"backend {other.info.backend_pid} \(some-deploy, user postgres\)"
        ):
            migrate(blank_dsn, lock_wait=0.05)
    assert ask(blank_dsn, "select to_regnamespace('pgworker')") == [(None,)]


def test_a_migration_gives_way_to_who_uses_its_table_and_lets_others_pass(
    blank_dsn: str, steps: Callable[..., tuple[Migration, ...]]
) -> None:
    begun = steps(TABLE)
    migrate(blank_dsn, migrations=begun)
    both = steps(TABLE, "alter table pgworker.things add column later integer;")
    tries = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and not granted"
    with (
        ThreadPoolExecutor(1) as host,
        psycopg.connect(blank_dsn) as reader,
        psycopg.connect(blank_dsn, autocommit=True) as other,
    ):
        reader.execute("select from pgworker.things")
        with pytest.raises(DatabaseUnavailable, match=r"0002_step was not applied: transactions of others .* 0\.1 s"):
            migrate(blank_dsn, migrations=both, lock_wait=0.1)
        run = host.submit(migrate, blank_dsn, migrations=both)
        for _ in range(2):
            eventually(lambda: other.execute(tries).fetchone() == (1,), "a try")
            other.execute("select from pgworker.things")
            assert not run.done()
        reader.commit()
        assert run.result(30) == ["0002_step"]


def test_a_migration_that_fails_leaves_nothing_and_keeps_those_before_it(
    blank_dsn: str, steps: Callable[..., tuple[Migration, ...]]
) -> None:
    runs_but_can_not_be_recorded = f"{ROWS} insert into pgworker.schema_migrations values (2, '', '');"
    with pytest.raises(PgworkerError, match=r"Migration 0002_step was not applied\..*duplicate key"):
        migrate(blank_dsn, migrations=steps(TABLE, runs_but_can_not_be_recorded))
    assert [row[:2] for row in books(blank_dsn)] == [(1, "0001_step")]
    assert ask(blank_dsn, "select count(*) from pgworker.things") == [(0,)]
    assert migrate(blank_dsn, migrations=steps(TABLE, ROWS)) == ["0002_step"]


def test_an_applied_migration_with_another_text_is_refused_by_name(
    blank_dsn: str, steps: Callable[..., tuple[Migration, ...]]
) -> None:
    migrate(blank_dsn, migrations=steps(TABLE))
    with pytest.raises(SchemaError, match=r"0001_step was applied .* with another text"):
        migrate(blank_dsn, migrations=steps(TABLE + "-- edited", ROWS))
    assert ask(blank_dsn, "select count(*) from pgworker.things") == [(0,)]


def test_a_database_newer_than_the_package_is_refused(
    blank_dsn: str, steps: Callable[..., tuple[Migration, ...]]
) -> None:
    both = steps(TABLE, ROWS)
    migrate(blank_dsn, migrations=both)
    with pytest.raises(SchemaError, match=r"0002_step, which this package doesn't have.*Upgrade pgworker"):
        migrate(blank_dsn, migrations=both[:1])


def test_the_search_path_and_isolation_level_of_the_database_do_not_matter(
    blank_dsn: str, steps: Callable[..., tuple[Migration, ...]]
) -> None:
    ask(blank_dsn, "create schema evil")
    ask(blank_dsn, "create function evil.to_regclass(text) returns regclass language sql return 'pg_class'::regclass")
    ask(blank_dsn, "create function evil.pg_advisory_xact_lock(bigint) returns int language sql return 1 / 0")
    ask(blank_dsn, "create function evil.upper(text) returns text language sql return 'evil'")
    database = conninfo_to_dict(blank_dsn)["dbname"]
    ask(blank_dsn, f'alter database "{database}" set search_path = evil, pg_catalog')
    ask(blank_dsn, f'alter database "{database}" set default_transaction_isolation = "repeatable read"')
    seen = "insert into pgworker.things values (upper('a')), (current_setting('transaction_isolation'))"
    migrate(blank_dsn, migrations=steps(TABLE, seen))
    assert ask(blank_dsn, "select name from pgworker.things order by 1") == [("A",), ("read committed",)]


@pytest.mark.parametrize("options", [[], ["-1"]], ids=["plain", "single transaction"])
def test_the_printed_script_does_with_psql_what_migrate_does(
    psql: str, blank_dsn: str, tmp_path: Path, options: list[str]
) -> None:
    file = tmp_path / "script"
    file.write_text(script(load.migrations()))

    def run() -> subprocess.CompletedProcess[str]:
        command = [psql, "-X", "-q", *options, "-d", blank_dsn, "-f", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    first = run()
    assert first.returncode == 0, first.stderr
    assert migrate(blank_dsn) == []
    before = books(blank_dsn)
    again = run()
    assert again.returncode != 0
    assert "duplicate key" in again.stderr
    assert books(blank_dsn) == before


def test_a_server_older_than_14_is_refused() -> None:
    refuse_old_server(140000)
    with pytest.raises(ConfigurationError, match=r"PostgreSQL 13\.11, and pgworker needs 14 or newer"):
        refuse_old_server(130011)


def test_a_gap_or_a_wrong_name_among_the_migrations_is_found_when_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(PgworkerError, match="found: none"):
        read_migrations(tmp_path)
    (tmp_path / "0001_first.sql").write_text("")
    (tmp_path / "0003_third.sql").write_text("")
    with pytest.raises(PgworkerError, match="without a gap; found: 0001_first, 0003_third"):
        read_migrations(tmp_path)
    (tmp_path / "0003_third.sql").rename(tmp_path / "second.sql")
    with pytest.raises(PgworkerError, match=r"second\.sql among the migrations"):
        read_migrations(tmp_path)


def test_a_statement_is_sent_without_the_comment_at_its_head() -> None:
    for file in (Path(load.__file__).parent / "queries").glob("*.sql"):
        text = file.read_text()
        statement = load.query(file.stem)
        assert statement
        assert not statement.startswith(("--", " ", "\n"))
        assert text.rstrip().endswith(statement)
