"""Databases, and directories for servers, that live as long as a test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker.config.sources import embedded_directory, redact
from pgworker.db import embedded
from pgworker.db.connect import connect
from pgworker.errors import ConfigurationError
from pgworker.linux.signals import interrupts_held_back

_NAME = "pgworker scratch"
_PATIENCE = 60.0  # seconds for a drop


@contextmanager
def scratch_database(server: str, template: str) -> Iterator[str]:
    """A copy of `template` on the server of this DSN, dropped at the end whoever is still connected; its DSN.

    ConfigurationError: the user may not create databases, or somebody is connected to the template.
    """
    name = f"pgworker_scratch_{uuid4().hex[:16]}"
    connection = connect(server, application_name=_NAME)
    try:
        with connection:
            _create(connection, name, template)
        directory = embedded_directory(server)
        yield make_conninfo(embedded.dsn(directory) if directory else server, dbname=name)
    finally:  # whatever has come before it was there, or while it was made
        with interrupts_held_back(), connect(server, application_name=_NAME, patience=_PATIENCE) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def _create(connection: Connection[Any], name: str, template: str) -> None:
    names = sql.Identifier(name), sql.Identifier(template)
    try:
        connection.execute(sql.SQL("create database {} template {}").format(*names))
    except psycopg.errors.InsufficientPrivilege as error:
        user = connection.info.user
        raise ConfigurationError(
            f"{user} may not create databases at {redact(connection.info.dsn)}: `alter role {user} createdb`,"
            " or name another"
        ) from error
    except psycopg.errors.ObjectInUse as error:
        raise ConfigurationError(
            f"the database {template} can't be copied while somebody is connected to it: "
            "close what has filled it (`engine.dispose()` of SQLAlchemy, for example)"
        ) from error


def name_of(dsn: str) -> str:
    """The name of the database in a DSN."""
    return str(conninfo_to_dict(dsn)["dbname"])


@contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """An empty directory for a server: of root's too, which runs as an unprivileged user. In TMPDIR, or in `parent`."""
    with tempfile.TemporaryDirectory(prefix="pgworker-", dir=parent) as name:
        Path(name).chmod(0o755)
        yield Path(name)
