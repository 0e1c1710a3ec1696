"""Machines to try units on, one per module of tests, and pools on them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from pgworker import App
from pgworker.db import embedded
from pgworker.db.migrate import migrate
from pgworker.db.roles import make_roles
from tests.deploy import private_systemd
from tests.deploy.machine import PASSWORD, Machine, Unit, machine

UnitMaker = Callable[..., Unit]

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def bare_machine(server: embedded.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A host with systemd and PostgreSQL."""
    if (reason := private_systemd.why_not()) is not None:
        pytest.skip(reason)
    arguments = server.process.args
    assert isinstance(arguments, list)
    binaries = next(Path(word).parent for word in arguments if word.endswith("/bin/postgres"))
    directory = tmp_path_factory.mktemp("systemd")
    with ExitStack() as stack:
        try:
            made = stack.enter_context(machine(directory, binaries))
        except private_systemd.NotAllowedError as error:
            pytest.skip(str(error))
        yield made
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def host(bare_machine: Machine) -> Machine:
    """The same with pgworker, its units and a migrated database `app`; the login `pgworker` may run pools."""
    bare_machine.install()
    with psycopg.connect(bare_machine.server, dbname="postgres", autocommit=True) as connection:
        connection.execute("create database app")
    dsn = f"{bare_machine.server} dbname=app"
    migrate(dsn)
    make_roles(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create role pgworker login password '{PASSWORD}'".encode())
        connection.execute("grant pgworker_worker to pgworker")
    bare_machine.systemd.write("/etc/pgworker/dsn", "host=/run/postgresql dbname=app user=pgworker\n", 0o600)
    return bare_machine


@pytest.fixture
def unit(host: Machine) -> Iterator[UnitMaker]:
    """Makes pools that do not run yet: each a template instance, unless the name of a unit is given."""
    dsn = f"{host.server} dbname=app"
    with ExitStack() as stack:

        def make(name: str = "", **settings: object) -> Unit:
            queue = f"queue{next(_numbers)}"
            connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
            app = App(dsn)
            stack.callback(app.close)
            made = Unit(host, name or f"pgworker@{queue}", queue, app, connection)
            stack.callback(_end, made)
            made.configure(**settings)
            return made

        yield make


def _end(unit: Unit) -> None:
    """Stop it, by force, and forget what became of it."""
    print(unit.journal)  # noqa: T201 - pytest shows it when the test fails
    unit.systemd.systemctl("kill", "--signal=KILL", unit.name, check=False)
    unit.systemd.systemctl("stop", unit.name, check=False)
    unit.systemd.systemctl("reset-failed", unit.name, check=False)
