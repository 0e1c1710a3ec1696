"""The roles of the schema: who owns it, and what enqueuers, workers and administrators may do there.

`sql/roles.sql` makes them and hands the schema over; `sql/grants.sql` is the one place that says who may do what.
"""

from __future__ import annotations

import psycopg

from pgworker.db.connect import Connection, connect, dsn_of, explain
from pgworker.db.migrate import SCRIPT_BEGIN, begin_change
from pgworker.errors import ConfigurationError
from pgworker.sql import load

_AS_OWNER = "set local role pgworker_owner"

_FORMER_OWNER = "select nspowner::regrole::text from pg_namespace where nspname = 'pgworker'"
_ANYBODY_CREATES = (
    "select nspname from pg_namespace where nspname = 'public' and has_schema_privilege('public', oid, 'create')"
)


def make_roles(dsn: str, *, lock_wait: float = 60.0) -> list[str]:
    """Make the roles, hand the schema `pgworker` to pgworker_owner, grant the others theirs. Returns what to mind.

    May be repeated. `lock_wait`: seconds to wait for somebody who is changing the schema.
    Raises ConfigurationError, with nothing changed, if the user of `dsn` may not do all of that.
    """
    with connect(dsn, application_name="pgworker migrate --roles", prepare_threshold=None) as connection:
        try:
            begin_change(connection, lock_wait)
            remarks = _remarks(connection)
            connection.execute(load.script("roles").encode())
            connection.execute(_AS_OWNER)
            connection.execute(load.script("grants").encode())
            connection.execute("COMMIT")
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigurationError(_refusal(connection, error)) from error
        except psycopg.Error as error:
            raise explain(error, dsn_of(connection)) from error
    return remarks


def script() -> str:
    """SQL that does what `make_roles` does: to review, and to run with psql after the migrations."""
    return "\n".join(
        [
            "-- The roles of pgworker, in one transaction. May be repeated, and is after migrations that psql has run.",
            "\\set ON_ERROR_STOP on",
            SCRIPT_BEGIN,
            load.script("roles").rstrip(),
            f"{_AS_OWNER};",
            load.script("grants").rstrip(),
            "commit;\n",
        ]
    )


def _remarks(connection: Connection) -> list[str]:
    """What an administrator would not think of."""
    remarks = []
    owner = connection.execute(_FORMER_OWNER).fetchone()
    if owner and owner[0] not in ("pgworker_owner", connection.info.user):
        remarks.append(
            f"the schema belonged to {owner[0]}, which has no rights in it any more: "
            f"`grant pgworker_worker to {owner[0]}` if its pools still run"
        )
    if connection.execute(_ANYBODY_CREATES).fetchone():
        remarks.append(
            "anybody may create functions in the schema public, which whoever has it in his search_path then runs, "
            "workers and administrators too: `revoke create on schema public from public`"
        )
    return remarks


def _refusal(connection: Connection, error: psycopg.Error) -> str:
    return (
        f"The roles were not made: {error.diag.message_primary}. {connection.info.user} must be a superuser, or own "
        "the schema pgworker and have CREATEROLE and CREATE on the database; a pgworker_owner that is there already "
        "must be granted to it. Or let an administrator run what `pgworker migrate --roles --print` prints."
    )
