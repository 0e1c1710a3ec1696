"""Databases that live as long as a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo


@contextmanager
def scratch_database(server: str, template: str) -> Iterator[str]:
    """A copy of `template` on the server of this DSN, dropped at the end whoever is still connected; its DSN.

    The user must be allowed to create databases.
    """
    name = f"pgworker_test_{uuid4().hex[:16]}"
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {name} template {template}").format(**names))
    try:
        yield make_conninfo(server, dbname=name)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {name} with (force)").format(**names))


def name_of(dsn: str) -> str:
    """The name of the database in a DSN."""
    return str(conninfo_to_dict(dsn)["dbname"])
