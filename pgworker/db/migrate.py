"""Bring a database to this package's schema: forward only, each migration once, whoever else tries at the same time."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psycopg
from psycopg import sql

from pgworker.db.connect import Connection, connect, dsn_of, explain
from pgworker.errors import ConfigurationError, DatabaseUnavailable, SchemaError
from pgworker.sql import load
from pgworker.sql.load import Migration

OLDEST_SERVER = 14

# One lock per database, held to the end of a transaction: it needs no session, so a pooler can't leave it behind.
# The number is "pgwmigra" in ASCII; locks of one bigint never meet those of two integers.
_LOCK_KEY = 0x7067776D69677261

_SETTINGS = "set local search_path = pg_catalog, pg_temp"

# CREATE ... IF NOT EXISTS wants the right to create even when there is nothing to create.
# Whoever migrates acts as the owner of the schema, so that what he makes belongs to the same role as all the rest.
_BOOKS = """\
do $$
declare
    its_owner regrole := (select nspowner from pg_namespace where nspname = 'pgworker');
begin
    if its_owner is null then
        create schema pgworker;
    elsif its_owner <> current_user::regrole then
        begin
            execute format('set local role %s', its_owner);
        exception when insufficient_privilege then
            raise exception 'the schema belongs to %: only who may SET ROLE to it can migrate', its_owner
                using errcode = 'insufficient_privilege';
        end;
    end if;
    if to_regclass('pgworker.schema_migrations') is null then
        create table pgworker.schema_migrations (
            version    integer not null primary key,
            name       text not null,
            checksum   text not null,
            applied_at timestamptz not null default clock_timestamp()
        );
    end if;
end $$;"""

_RECORD = sql.SQL("insert into pgworker.schema_migrations (version, name, checksum) values ({}, {}, {});")

_GIVES_WAY = 0.5
"""Seconds that a migration waits for a table, and about as many that it leaves it alone: less than deadlock_timeout, so
that it gives way and not a claim, and what queues up behind its lock soon goes on."""

_IS_SHARED = "select nspowner = to_regrole('pgworker_owner') from pg_namespace where nspname = 'pgworker'"

_HOLDER = """\
select activity.pid, coalesce(activity.application_name, ''), coalesce(activity.usename, '')
from pg_catalog.pg_locks as held join pg_catalog.pg_stat_activity as activity using (pid)
where held.locktype = 'advisory' and held.granted and held.objsubid = 1
  and (held.classid::bigint << 32 | held.objid::bigint) = %s
  and held.database = (select oid from pg_catalog.pg_database where datname = current_database())
"""


def migrate(
    dsn: str,
    *,
    migrations: Sequence[Migration] | None = None,
    grants: str | None = None,
    lock_wait: float = 60.0,
    on_applied: Callable[[str], object] = lambda _: None,
) -> list[str]:
    """Apply what is missing, each migration in its own transaction; the names of those that this call applied.

    Needs no superuser: CREATE on the database, or ownership of the schema `pgworker` once it is there. Where
    pgworker_owner owns it, the last migration's transaction runs `grants` too: no role lacks a right, not for a moment.
    `lock_wait`: seconds to wait for another migration of this database before each of ours, and as many for those who
    use its tables. `on_applied` hears the name of each that was applied, once it is committed.
    Raises SchemaError when the database holds a migration that this package doesn't have, or has with another text;
    DatabaseUnavailable when `lock_wait` was not enough.
    """
    steps = load.migrations() if migrations is None else migrations
    with connect(dsn, application_name="pgworker migrate", prepare_threshold=None) as connection:
        refuse_old_server(connection.info.server_version)
        rights = load.script("grants") if grants is None else grants
        pending = _pending(connection, steps)
        applied = []
        for step in pending:
            if _apply(connection, step, steps, rights, lock_wait):
                applied.append(step.name)
                on_applied(step.name)
        return applied


def script(migrations: Sequence[Migration]) -> str:
    """SQL that does for `migrations` what `migrate` does: to review, and to run with psql, with or without -1."""
    parts = [_SCRIPT_HEAD, *(_script_of(step) for step in migrations)]
    return "\n\n".join(parts) + "\n"


def refuse_old_server(version: int) -> None:
    """ConfigurationError for a server older than 14. `version` as libpq gives it: 150004 is 15.4."""
    if version < OLDEST_SERVER * 10_000:
        raise ConfigurationError(
            f"This server is PostgreSQL {version // 10_000}.{version % 10_000}, "
            f"and pgworker needs {OLDEST_SERVER} or newer. Upgrade the server, or name another one in the DSN."
        )


SCRIPT_BEGIN = "\n".join(
    [
        "begin isolation level read committed;",
        f"{_SETTINGS};",
        f"select pg_advisory_xact_lock({_LOCK_KEY});",
    ]
)
"""How a transaction of a printed script begins: as `begin_change`."""

_SCRIPT_HEAD = """\
-- Migrations of pgworker, each in its own transaction. Run with psql; a second run stops at the first insert.
\\set ON_ERROR_STOP on"""


def _script_of(step: Migration) -> str:
    return "\n".join(
        [
            f"-- {step.name}",
            SCRIPT_BEGIN,
            _BOOKS,
            _record(step),
            step.text.rstrip(),
            "commit;",
        ]
    )


def _record(step: Migration) -> str:
    return _RECORD.format(step.number, step.name, step.checksum).as_string(None)


def _pending(connection: Connection, steps: Sequence[Migration]) -> list[Migration]:
    """What of `steps` the database lacks; SchemaError if it holds anything else than the others."""
    applied = _applied(connection)
    known = {step.number: step for step in steps}
    for version, (name, checksum) in sorted(applied.items()):
        if version not in known:
            raise SchemaError(
                f"The database holds migration {name}, which this package doesn't have: "
                "the package is older than the database. Upgrade pgworker on this host."
            )
        if checksum != known[version].checksum:
            raise SchemaError(
                f"Migration {name} was applied to the database with another text than this package has "
                f"(SHA-256 {checksum[:12]}…, here {known[version].checksum[:12]}…). "
                "Run the release of pgworker that migrated the database, or restore its migration file."
            )
    return [step for step in steps if step.number not in applied]


def _applied(connection: Connection) -> dict[int, tuple[str, str]]:
    try:
        rows = connection.execute("select version, name, checksum from pgworker.schema_migrations").fetchall()
    except psycopg.errors.UndefinedTable:
        return {}
    except psycopg.Error as error:
        raise explain(error, dsn_of(connection)) from error
    return {version: (name, checksum) for version, name, checksum in rows}


def begin_change(connection: Connection, lock_wait: float) -> None:
    """Begin a transaction that nobody else changes the schema beside, with names that mean the catalogs' own."""
    connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    connection.execute(_SETTINGS)
    _lock(connection, lock_wait)


def _apply(connection: Connection, step: Migration, steps: Sequence[Migration], grants: str, lock_wait: float) -> bool:
    """Apply `step`, unless somebody did while we waited for the lock: False.

    Whoever holds a table of it for long has us begin again, and others go on between two tries.
    """
    ends = math.inf
    while True:
        try:
            return _try(connection, step, steps, grants, lock_wait)
        except psycopg.errors.LockNotAvailable as error:
            with suppress(psycopg.Error):  # should it be lost, the next try says so
                connection.execute("ROLLBACK")
            ends = min(ends, time.monotonic() + lock_wait)
            if time.monotonic() >= ends:
                raise DatabaseUnavailable(
                    f"Migration {step.name} was not applied: transactions of others were in its way"
                    f" for {lock_wait:g} s. See xact_start in pg_stat_activity, and try again when they have ended."
                ) from error
        except psycopg.Error as error:
            why = explain(error, dsn_of(connection))
            raise type(why)(f"Migration {step.name} was not applied. {why}") from error
        time.sleep(random.uniform(0.5, 1.0) * _GIVES_WAY)


def _try(connection: Connection, step: Migration, steps: Sequence[Migration], grants: str, lock_wait: float) -> bool:
    begin_change(connection, lock_wait)
    connection.execute("select set_config('lock_timeout', %s, true)", (f"{round(_GIVES_WAY * 1000)}ms",))
    connection.execute(_BOOKS)
    pending = _pending(connection, steps)
    missing = step in pending
    if missing:
        connection.execute(step.text.encode())  # no parameters: one simple query, in which % means nothing
        connection.execute(_record(step).encode())
    if pending == [step] and connection.execute(_IS_SHARED).fetchone() == (True,):
        connection.execute(grants.encode())
    connection.execute("COMMIT")
    return missing


def _lock(connection: Connection, wait: float) -> None:
    connection.execute("select set_config('lock_timeout', %s, true)", (f"{max(1, round(wait * 1000))}ms",))
    try:
        connection.execute("select pg_advisory_xact_lock(%s::bigint)", (_LOCK_KEY,))
    except psycopg.errors.LockNotAvailable:
        connection.execute("ROLLBACK")
        holders = connection.execute(_HOLDER, (_LOCK_KEY,)).fetchall()
        raise DatabaseUnavailable(_who_migrates(holders, wait)) from None
    connection.execute("set local lock_timeout = default")


def _who_migrates(holders: Sequence[tuple[int, str, str]], wait: float) -> str:
    if not holders:
        return f"Another migration of this database ran for longer than {wait:g} s. Try again."
    pid, application, user = holders[0]
    return (
        f"Another migration of this database has run for longer than {wait:g} s: backend {pid} "
        f"({application or 'unnamed'}, user {user or 'unknown'}). "
        f"Wait for it and try again, or end it with `select pg_terminate_backend({pid})`."
    )
