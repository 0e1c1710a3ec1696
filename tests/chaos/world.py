"""A world to be tried: a server, pools that are started again when they end, producers, and the evidence of it all."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from pgworker.db.migrate import migrate
from pgworker.db.roles import make_roles
from tests.chaos import checker
from tests.chaos.evidence import FaultLog
from tests.chaos.plan import Plan, PoolPlan
from tests.chaos.witness import VARIABLE
from tests.process.pool import ROOT, Pool

Seen = TypeVar("Seen")

APP = "tests.chaos.app:app"
PATIENCE = 60.0
"""Seconds within which everything must have come to rest once nothing is broken any more."""

_EXPECTED_EXITS = frozenset({0, 69, 71, 75, -signal.SIGKILL})
"""How a pool may end in a world of faults: drained, database away at its start, crash loop, drain too long, killed."""

_BUG = re.compile(r"this is a bug|Traceback \(most recent call last\)|Internal error|terminate called")
_LOGINS = {"chaos_worker": "pgworker_worker", "chaos_producer": "pgworker_enqueuer", "chaos_operator": "pgworker_admin"}
_START = """
import json, os, sys
from pgworker.cli.pool import start_pool
from tests.chaos.defects.catalogue import plant_by_environment
from pgworker.config.settings import PoolSettings
from pgworker.model.retry import Backoff
dsn, app, given = sys.argv[1:]
settings = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(given).items()}
settings["restart_backoff"] = Backoff(*settings["restart_backoff"])
plant_by_environment(os.environ)
sys.exit(start_pool(dsn, app, PoolSettings(**settings), starts_server=False))
"""


class KeptPool:
    """A pool that is started again whenever it ends, each time with a log of its own, as systemd would."""

    def __init__(self, plan: PoolPlan, dsn: str, directory: Path, log: FaultLog) -> None:
        self.plan = plan
        self._dsn = dsn
        self._directory = directory
        self._log = log
        self._starts = 0
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=plan.name, daemon=True)
        self.pool = self._start()
        self.exits: list[int] = []

    def keep(self) -> None:
        self._thread.start()

    def end(self, within: float) -> int:
        """Drain it; its exit code. AssertionError if it takes longer."""
        self._is_ending.set()
        self._thread.join()
        with suppress(ProcessLookupError):
            self.pool.send(signal.SIGTERM)
        try:
            return self.pool.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.plan.name} has not drained within {within:g} s") from None

    def kill(self) -> None:
        """End whatever is left of it, for good."""
        self._is_ending.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.pool.kill()

    def logs(self) -> list[Path]:
        return sorted(self._directory.glob(f"{self.plan.name}-*.log"))

    def _keep(self) -> None:
        while not self._is_ending.is_set():
            try:
                code = self.pool.process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            self.exits.append(code)
            self._log.tell("pool ended", pool=self.plan.name, code=code)
            if not self._is_ending.wait(0.2):
                self.pool = self._start()

    def _start(self) -> Pool:
        self._starts += 1
        log_file = self._directory / f"{self.plan.name}-{self._starts:03}.log"
        settings = json.dumps({"metrics_listen": None, **self.plan.settings})
        with log_file.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, self._dsn, APP, settings],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: str(self._directory)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return Pool(process, log_file)


class World:
    """What a fault can reach, and what it may ask."""

    def __init__(self, plan: Plan, superuser_dsn: str, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.log = FaultLog(directory)
        self._superuser_dsn = superuser_dsn
        self.is_over = threading.Event()
        """Set when no fault may begin any more."""
        self.pools: list[KeptPool] = []

    @property
    def is_alone(self) -> bool:
        """Only one kind of fault is injected, so that its own promises can be asked for."""
        return self.plan.is_alone

    def dsn(self, login: str) -> str:
        """What this login's processes connect to."""
        return make_conninfo(self._superuser_dsn, user=login)

    def connect(self, login: str | None = None) -> Connection[Any]:
        """An autocommit connection: of a login by its usual way, else of the superuser, past everything in between."""
        return psycopg.connect(self._superuser_dsn if login is None else self.dsn(login), autocommit=True)

    def eventually(self, look: Callable[[], Seen], what: str, within: float) -> Seen:
        """What `look` returns once that is true. AssertionError when it isn't within so many seconds."""
        ends = time.monotonic() + within
        while not (seen := look()):
            assert time.monotonic() < ends, f"not within {within:g} s: {what}"
            time.sleep(0.02)
        return seen

    def pick_pool(self, dice: random.Random) -> KeptPool:
        return dice.choice(self.pools)

    def pick_worker(self, dice: random.Random) -> int | None:
        """The pid of a worker that is there just now; None: there is none."""
        workers = self.pick_pool(dice).pool.workers
        return dice.choice(workers) if workers else None

    def waiting_jobs(self) -> int:
        return int(self._ask("select count(*) from pgworker.job_queue"))

    def leases(self) -> int:
        return int(self._ask("select count(*) from pgworker.job_leases"))

    def _ask(self, query: str) -> Any:
        with self.connect() as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def offences_of_pools(self) -> dict[str, list[tuple[Any, ...]]]:
        """Exit codes and log lines that no fault explains."""
        found: dict[str, list[tuple[Any, ...]]] = {}
        for kept in self.pools:
            if odd := [(kept.plan.name, code) for code in kept.exits if code not in _EXPECTED_EXITS]:
                found.setdefault("a pool ends as documented", []).extend(odd)
            for file in kept.logs():
                if lines := [
                    (file.name, line[:500])
                    for line in file.read_text(errors="replace").splitlines()
                    if _BUG.search(line)
                ]:
                    found.setdefault("no log tells of a bug", []).extend(lines[:3])
        return found


@contextmanager
def world(plan: Plan, superuser_dsn: str, directory: Path) -> Iterator[World]:
    """The pools of a plan at work on an empty database, until the context is left; whatever is left then is killed."""
    migrate(superuser_dsn)
    make_roles(superuser_dsn)
    made = World(plan, superuser_dsn, directory)
    with made.connect() as connection:
        for login, role in _LOGINS.items():
            connection.execute(f"create role {login} login in role {role}".encode())
        checker.set_up(connection)
    directory.chmod(0o777)
    try:
        for pool in plan.pools:
            made.pools.append(KeptPool(pool, made.dsn("chaos_worker"), directory, made.log))
        for kept in made.pools:
            kept.pool.wait_for_log("the pool is ready")
            kept.keep()
        made.log.begin()
        yield made
    finally:
        made.is_over.set()
        for kept in made.pools:
            kept.kill()
