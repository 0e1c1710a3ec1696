"""`pgworker.protect_table`: users' own tables under row level security. Tried as their owner, who is no superuser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from tests.sql.actors import ask

Login = Callable[..., str]

FORBIDDEN = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def maker(roles_dsn: str, login: Login) -> Iterator[Connection[Any]]:
    """The owner of tables: may create in a schema of his own, and call functions of ours that anybody may."""
    theirs = login()
    user = conninfo_to_dict(theirs)["user"]
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        connection.execute(f"create schema shop authorization {user}".encode())
        connection.execute(f"grant usage on schema pgworker to {user}".encode())
    with psycopg.connect(theirs, autocommit=True) as connection:
        connection.execute("set search_path = shop")
        yield connection


def notices(connection: Connection[Any], statement: str) -> list[str]:
    """What the server says on the side."""
    said: list[str] = []

    def keep(notice: psycopg.errors.Diagnostic) -> None:
        said.append(" ".join(part for part in (notice.message_primary, notice.message_hint) if part))

    connection.add_notice_handler(keep)
    connection.execute(statement.encode())
    connection.remove_notice_handler(keep)
    return said


def as_org(connection: Connection[Any], org: str, statement: str) -> list[Any]:
    """The rows of a statement, in a transaction of that org's."""
    with connection.transaction():
        connection.execute("select set_config('pgworker.org_id', %s, true)", [org])
        return ask(connection, statement)


def test_even_the_owner_of_a_protected_table_sees_one_org_and_without_one_nothing(maker: Connection[Any]) -> None:
    maker.execute("create table notes (org_id text not null, note text)")
    maker.execute("insert into notes values ('acme', 'a'), ('bolt', 'b')")
    assert len(ask(maker, "select note from notes")) == 2
    maker.execute("select pgworker.protect_table('notes')")
    assert ask(maker, "select note from notes") == []
    assert as_org(maker, "acme", "select note from notes") == ["a"]
    assert as_org(maker, "bolt", "select note from notes") == ["b"]
    assert ask(maker, "select pgworker.current_org() is null, current_setting('pgworker.org_id')") == [(True, "")]
    assert ask(maker, "select note from notes") == []
    with pytest.raises(FORBIDDEN, match="row-level security"):
        maker.execute("insert into notes values ('acme', 'nobody''s')")
    with pytest.raises(FORBIDDEN, match="row-level security"):
        as_org(maker, "bolt", "insert into notes values ('acme', 'forged') returning 1")
    with pytest.raises(FORBIDDEN, match="row-level security"):
        as_org(maker, "bolt", "update notes set org_id = 'acme' returning 1")
    maker.execute("set row_security = off")
    with pytest.raises(FORBIDDEN, match="would be affected by row-level security"):
        maker.execute("select from notes")


def test_a_row_that_names_no_org_gets_the_transactions_own(maker: Connection[Any]) -> None:
    maker.execute("create table notes (org_id text not null, note text)")
    maker.execute("create table kept (org_id text not null default 'acme', note text)")
    for table in ("notes", "kept"):
        maker.execute(f"select pgworker.protect_table('{table}')".encode())
    assert as_org(maker, "bolt", "insert into notes (note) values ('b') returning org_id") == ["bolt"]
    assert as_org(maker, "acme", "insert into kept (note) values ('a') returning org_id") == ["acme"]
    with pytest.raises(FORBIDDEN, match="row-level security"):
        as_org(maker, "bolt", "insert into kept (note) values ('b') returning 1")


@pytest.mark.parametrize(
    ("of_type", "acme", "bolt"),
    [
        ("varchar(4)", "acme", "bolt"),
        ("uuid", "00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"),
        ("integer", "1", "2"),
        ("bigint", "1", "5000000000"),
    ],
)
def test_the_column_may_have_another_name_and_type(maker: Connection[Any], of_type: str, acme: str, bolt: str) -> None:
    maker.execute(f'create table notes ("Org" {of_type}, note text)'.encode())
    maker.execute("select pgworker.protect_table('notes', 'Org')")
    for org in (acme, bolt):
        as_org(maker, org, "insert into notes (note) values ('mine') returning 1")
        assert as_org(maker, org, 'select "Org"::text from notes') == [org]
        with pytest.raises(psycopg.Error):
            as_org(maker, f"{org}9x", "insert into notes (note) values ('nobody''s') returning 1")
    with suppress(psycopg.DataError):
        assert as_org(maker, f"{acme} or more", "select from notes") == [], "nothing is cut to the column's length"


def test_no_other_policy_widens_it_and_one_that_was_there_narrows_it(maker: Connection[Any]) -> None:
    maker.execute("create table notes (org_id text, note text)")
    maker.execute("insert into notes values ('acme', 'a'), ('acme', 'hidden'), ('bolt', 'b')")
    maker.execute("create policy theirs on notes using (note <> 'hidden')")
    maker.execute("select pgworker.protect_table('notes')")
    assert as_org(maker, "acme", "select note from notes") == ["a"]
    maker.execute("create policy all_of_it on notes using (true) with check (true)")
    assert as_org(maker, "acme", "select note from notes order by 1") == ["a", "hidden"]
    with pytest.raises(FORBIDDEN, match="pgworker_org"):
        as_org(maker, "bolt", "insert into notes values ('acme', 'forged') returning 1")


def test_nobody_else_may_truncate_it(roles_dsn: str, maker: Connection[Any], login: Login) -> None:
    theirs = login()
    user = conninfo_to_dict(theirs)["user"]
    maker.execute("create table notes (org_id text, note text)")
    maker.execute(f"grant usage on schema shop to {user}".encode())
    maker.execute(f"grant all on notes to {user}, public".encode())
    with psycopg.connect(theirs, autocommit=True) as connection:
        connection.execute("truncate shop.notes")
        maker.execute("select pgworker.protect_table('notes')")
        with pytest.raises(FORBIDDEN):
            connection.execute("truncate shop.notes")
        as_org(connection, "acme", "insert into shop.notes values ('acme', 'a') returning 1")
        assert as_org(connection, "acme", "delete from shop.notes returning note") == ["a"]


def test_partitions_and_children_are_protected_with_their_table_and_not_without(maker: Connection[Any]) -> None:
    maker.execute("create table notes (org_id text, day date) partition by range (day)")
    maker.execute("create table notes_1 partition of notes for values from ('2030-01-01') to ('2030-02-01')")
    maker.execute("insert into notes values ('acme', '2030-01-05')")
    with pytest.raises(psycopg.Error, match=r"shop\.notes_1 is a part of shop\.notes\. Protect that one"):
        maker.execute("select pgworker.protect_table('notes_1')")
    maker.execute("select pgworker.protect_table('notes')")
    for table in ("notes", "notes_1"):
        assert ask(maker, f"select from {table}") == []
        assert len(as_org(maker, "acme", f"select org_id from {table}")) == 1
    maker.execute("create table notes_2 partition of notes for values from ('2030-02-01') to ('2030-03-01')")
    maker.execute("select pgworker.protect_table('notes')")
    as_org(maker, "acme", "insert into notes values ('acme', '2030-02-05') returning 1")
    assert ask(maker, "select from notes_2") == []


def test_keys_that_tell_one_org_of_another_are_warned_of_and_an_index_is_advised(maker: Connection[Any]) -> None:
    maker.execute("create table notes (org_id text, id integer primary key, name text, unique (org_id, name))")
    maker.execute("create unique index by_name on notes (lower(name))")
    said = notices(maker, "select pgworker.protect_table('notes')")
    assert len(said) == 2
    assert all("does not begin with org_id" in line and "Make it unique over (org_id, …)" in line for line in said)
    assert {name for name in ("shop.notes_pkey", "shop.by_name") if any(name in line for line in said)} == {
        "shop.notes_pkey",
        "shop.by_name",
    }
    maker.execute("create table bare (org_id text)")
    assert "create index on shop.bare (org_id, …)" in notices(maker, "select pgworker.protect_table('bare')")[0]
    maker.execute("create index on bare (org_id)")
    assert notices(maker, "select pgworker.protect_table('bare')") == []


def test_a_second_time_it_changes_nothing_and_with_another_column_it_moves(maker: Connection[Any]) -> None:
    shown = """select polname, polpermissive, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)
               from pg_policy order by 1"""
    maker.execute("create table notes (org_id text, owner_org text)")
    maker.execute("select pgworker.protect_table('notes')")
    before = ask(maker, shown)
    maker.execute("select pgworker.protect_table('notes')")
    assert ask(maker, shown) == before
    assert len(before) == 2
    maker.execute("select pgworker.protect_table('notes', 'owner_org')")
    assert all("owner_org" in uses and "owner_org" in checks for _, _, uses, checks in ask(maker, shown))


def test_the_planner_finds_an_orgs_rows_by_index(maker: Connection[Any]) -> None:
    maker.execute("create table notes (org_id text not null, note text)")
    maker.execute("create index by_org on notes (org_id)")
    maker.execute("insert into notes select 'org' || n % 500, repeat('x', 100) from generate_series(1, 20000) as n")
    maker.execute("analyze notes")
    maker.execute("select pgworker.protect_table('notes')")
    plan = "\n".join(as_org(maker, "org7", "explain select note from notes"))
    assert "by_org" in plan, plan
    assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "select pgworker.protect_table('lacks')",
            r"shop\.lacks has no column org_id\. Add it \(alter table shop\.lacks",
        ),
        ("select pgworker.protect_table('lacks', 'Org')", r'has no column "Org"'),
        (
            "select pgworker.protect_table('typed')",
            r"is of type character\. It must be text, varchar, uuid",
        ),
        ("select pgworker.protect_table('seen')", r"shop\.seen is not a table\. Protect the tables under it"),
        ("select pgworker.protect_table('nowhere')", r'relation "nowhere" does not exist'),
        ("select pgworker.protect_table('strangers.notes')", r"must be owner of (table|relation) notes"),
    ],
)
def test_what_can_not_be_protected_is_told_in_a_sentence(
    roles_dsn: str, maker: Connection[Any], statement: str, sentence: str
) -> None:
    maker.execute("create table lacks (note text)")
    maker.execute("create table typed (org_id char(4))")
    maker.execute("create view seen as select 'acme' as org_id")
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        connection.execute("create schema strangers; create table strangers.notes (org_id text)")
        connection.execute("grant usage on schema strangers to public")
    with pytest.raises(psycopg.Error, match=sentence):
        maker.execute(statement.encode())


def test_the_tables_of_pgworker_are_not_for_it(login: Login) -> None:
    with (
        psycopg.connect(login("pgworker_owner"), autocommit=True) as connection,
        pytest.raises(psycopg.Error, match=r"pgworker\.jobs is a table of pgworker itself"),
    ):
        connection.execute("select pgworker.protect_table('pgworker.jobs')")
