"""What a command is told by its flags, the environment and files; and the database that it works on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgworker.cli.options import named_config
from pgworker.config.layers import Sources, find_dsn, likely_typos
from pgworker.config.settings import MAX_WORKERS
from pgworker.errors import ConfigurationError

if TYPE_CHECKING:
    from pgworker.db.connect import Connection


def sources(flags: Mapping[str, Any]) -> Sources:
    """All that settings come from: these flags, the environment, the files of this directory or of --config."""
    return Sources(os.environ, Path(), flags, named_config())


def default_workers() -> int:
    """How many workers a pool has where nobody says so: the CPUs that this process may use."""
    from pgworker.linux.cpus import count_cpus

    return min(count_cpus(), MAX_WORKERS)


def require_dsn(flag: str | None) -> str:
    """The DSN of `--dsn`, the environment or a file; ConfigurationError, with the ways out, if there is none."""
    dsn = find_dsn(sources({"dsn": flag}))
    if dsn is None:
        raise no_database()
    return dsn


def no_database() -> ConfigurationError:
    """What to raise when nothing names a database."""
    ways_out = (
        "no database is named: give --dsn, set PGWORKER_DSN or DATABASE_URL, or write dsn or dsn_file into"
        " pgworker.toml. Without a PostgreSQL of your own, try `pgworker demo`, or `pgworker start --embedded`,"
        " whose private server the other commands reach with --dsn embedded:.pgworker"
    )
    return ConfigurationError(". ".join([ways_out, *likely_typos(os.environ)]))


def no_app() -> ConfigurationError:
    """What to raise when nothing names an app."""
    return ConfigurationError(
        "no app is named: give --app MODULE:APP, such as shop.jobs:app, or set PGWORKER_APP, or write"
        ' app = "shop.jobs:app" into pgworker.toml'
    )


@contextmanager
def open_database(flag: str | None, command: str, *, accepts_newer: bool = False) -> Iterator[Connection]:
    """A connection in autocommit mode to a database with this package's schema. What goes wrong inside is explained.

    `accepts_newer` as in `check_schema`.
    """
    dsn = require_dsn(flag)
    # What the driver ignores on its way out after Ctrl-C would be printed, for want of a handler.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    import psycopg

    from pgworker.db.connect import check_schema, connect, explain_use

    with connect(dsn, application_name=f"pgworker {command}", prepare_threshold=None) as connection:
        try:
            check_schema(connection, accepts_newer=accepts_newer)
            yield connection
        except psycopg.Error as error:
            raise explain_use(error, connection, dsn) from error
