"""The database that a command works on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgworker.config.sources import resolve_dsn
from pgworker.errors import ConfigurationError

if TYPE_CHECKING:
    from pgworker.db.connect import Connection


def require_dsn(flag: str | None) -> str:
    """The DSN of `--dsn` or the environment; ConfigurationError, with two ways out, if there is none."""
    dsn = resolve_dsn(flag, os.environ)
    if dsn is None:
        raise ConfigurationError(
            "no database is named: give --dsn, or set PGWORKER_DSN or DATABASE_URL. "
            "Without a PostgreSQL of your own, try `pgworker demo`, or `pgworker start --embedded`, "
            "whose private server the other commands reach with --dsn embedded:.pgworker"
        )
    return dsn


@contextmanager
def open_database(flag: str | None, command: str) -> Iterator[Connection]:
    """A connection in autocommit mode to a database with this package's schema. What goes wrong inside is explained."""
    dsn = require_dsn(flag)
    # What the driver ignores on its way out after Ctrl-C would be printed, for want of a handler.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    import psycopg

    from pgworker.db.connect import check_schema, connect, explain

    with connect(dsn, application_name=f"pgworker {command}", prepare_threshold=None) as connection:
        try:
            check_schema(connection)
            yield connection
        except psycopg.Error as error:
            raise explain(error, dsn) from error
