"""A world to be tried: a server behind a proxy, pools that are started again when they end, and the evidence of it."""

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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker.db.roles import make_roles
from tests.chaos import checker
from tests.chaos.evidence import FaultLog
from tests.chaos.failpoints import DIRECTORY as FAILPOINTS_DIRECTORY
from tests.chaos.failpoints import SEED as FAILPOINTS_SEED
from tests.chaos.hosts import Host, hosts
from tests.chaos.plan import FAILPOINTS, HOSTS, Plan, PoolPlan
from tests.chaos.pooler import Pooler
from tests.chaos.proxy import Proxy
from tests.chaos.servers import PostgresServer, SmallDisk
from tests.chaos.witness import VARIABLE
from tests.process.pool import ROOT, Pool

Seen = TypeVar("Seen")

APP = "tests.chaos.app:app"
PATIENCE = 60.0
"""Seconds within which everything must have come to rest once nothing is broken any more."""

_EXPECTED_EXITS = frozenset({0, 69, 71, 75, 78, 130, -signal.SIGKILL})
"""How a pool may end in a world of faults: drained, database away at its start, crash loop, drain too long, an app that
can't be imported, Ctrl-C before there was a pool, killed."""

_BUG = re.compile(r"this is a bug|Traceback \(most recent call last\)|Internal error|terminate called")
_LOGINS = {"chaos_worker": "pgworker_worker", "chaos_producer": "pgworker_enqueuer", "chaos_operator": "pgworker_admin"}


class KeptPool:
    """A pool that is started again whenever it ends, each time with a log of its own, as systemd would."""

    def __init__(
        self,
        plan: PoolPlan,
        dsn: str,
        directory: Path,
        log: FaultLog,
        *,
        host: Host | None,
        has_pooler: bool,
        has_failpoints: bool,
    ) -> None:
        self.plan = plan
        self._host = host
        self._has_pooler = has_pooler
        failpoints = {FAILPOINTS_DIRECTORY: str(directory / plan.name), FAILPOINTS_SEED: plan.name}
        self._armed = failpoints if has_failpoints else {}
        self._dsn = dsn
        self._directory = directory
        self._log = log
        self._starts = 0
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=plan.name, daemon=True)
        self.pool = self._start()
        self.exits: list[int] = []
        """How it has ended so far, each time before it was started again."""

    def keep(self) -> None:
        self._thread.start()

    def send(self, number: int) -> None:
        """Send its master a signal, unless Python has not read yet what to do with it: that would end it."""
        with suppress(OSError, StopIteration):
            master = next(pid for pid, title in self.pool.processes().items() if title.startswith("pgworker: master"))
            caught = int(Path(f"/proc/{master}/status").read_text().partition("SigCgt:")[2].split()[0], 16)
            if number == signal.SIGKILL or caught >> (number - 1) & 1:
                os.kill(master, number)

    def let_go_on(self, *pids: int) -> None:
        """Continue processes of it that were stopped, and who entered a host for it: `nsenter` stops itself with what
        it has started there, also when it hears of that only after it has been continued."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.pool.send(signal.SIGCONT)

    def end(self, within: float) -> int:
        """Drain it; its exit code. AssertionError if it takes longer."""
        self._is_ending.set()
        self._thread.join()
        self.let_go_on()
        self.send(signal.SIGTERM)
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
            if self._got_there():
                self.exits.append(code)
            self._log.tell("pool ended", pool=self.plan.name, code=code)
            while not self._is_ending.wait(0.2) and self._host is not None and not self._host.is_up:
                pass
            if not self._is_ending.is_set():
                self.pool = self._start()

    def _got_there(self) -> bool:
        """Whether its host still had power when it was started: else `nsenter` has ended, and nothing of pgworker."""
        return not self.pool.log().startswith("nsenter: ")

    def _start(self) -> Pool:
        self._starts += 1
        log_file = self._directory / f"{self.plan.name}-{self._starts:03}.log"
        settings = json.dumps({"metrics_listen": None, "pooler": self._has_pooler, **self.plan.settings})
        prefix = self._host.prefix if self._host is not None else ()
        with log_file.open("wb") as out:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.chaos.launch", "pool", self._dsn, APP, settings],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    VARIABLE: str(self._directory),
                    **self._armed,
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return Pool(process, log_file)


class World:
    """What a fault can reach, and what it may ask.

    `server` is the primary of the moment, `standby` the synchronous one behind it, if the plan has one. Pools and those
    who enqueue go through `proxy`; who watches, and who breaks, goes past it.
    """

    def __init__(
        self, plan: Plan, server: PostgresServer, proxy: Proxy, directory: Path, whatever_lives: ExitStack
    ) -> None:
        self._whatever_lives = whatever_lives
        self.plan = plan
        self.server = server
        self.standby: PostgresServer | None = None
        self.proxy = proxy
        self.pooler: Pooler | None = None
        self.hosts: list[Host] = []
        self.directory = directory
        self.log = FaultLog(directory)
        self.database = str(conninfo_to_dict(server.make_database())["dbname"])
        self.is_over = threading.Event()
        """Set when no fault may begin any more."""
        self.pools: list[KeptPool] = []
        self.enqueue: Callable[..., None] = _nobody_enqueues
        """That of a `Bystander`."""

    @property
    def is_alone(self) -> bool:
        """Only one kind of fault is injected, so that its own promises can be asked for."""
        return self.plan.is_alone

    def add_standby(self) -> None:
        """Put a synchronous standby behind the primary of the moment."""
        clock = self.server.clock
        made = self.server.add_standby(synchronous=True, with_clock=clock is not None)
        self.standby = self._whatever_lives.enter_context(made)
        if clock is not None:
            self.standby.step_clock(clock.offset)

    def step_clock(self, seconds: float) -> None:
        """Set the clock of all servers."""
        for server in filter(None, (self.server, self.standby)):
            server.step_clock(seconds)

    @property
    def superuser_dsn(self) -> str:
        return self.server.dsn_of(self.database)

    def dsn(self, login: str) -> str:
        """What this login's processes connect to."""
        through = self.proxy.dsn(self.superuser_dsn) if self.pooler is None else self.pooler.dsn
        return make_conninfo(through, user=login)

    def connect(self, login: str | None = None) -> Connection[Any]:
        """An autocommit connection: of a login by its usual way, else of the superuser, past everything in between."""
        if login is None:
            return psycopg.connect(self.superuser_dsn, autocommit=True, application_name="operator")
        prepares = None if self.pooler is not None else 5  # the driver's default
        return psycopg.connect(self.dsn(login), autocommit=True, connect_timeout=5, prepare_threshold=prepares)

    def ask(self, query: str) -> Any:
        """The first column of the first row."""
        with self.connect() as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    @property
    def proxies(self) -> list[Proxy]:
        """All that lead to the server."""
        return [self.proxy, *(host.proxy for host in self.hosts)]

    def waiting_jobs(self) -> int:
        return int(self.ask("select count(*) from pgworker.job_queue"))

    def leases(self) -> int:
        return int(self.ask("select count(*) from pgworker.job_leases"))

    def waiting_jobs_and_leases(self) -> int:
        """By one snapshot: a job that goes back from its lease to the queue in between is not missed."""
        return int(self.ask("select (select count(*) from pgworker.job_queue) + count(*) from pgworker.job_leases"))

    def executions(self) -> int:
        return int(self.ask("select count(*) from pgworker.job_executions"))

    def eventually(self, look: Callable[[], Seen], what: str, within: float) -> Seen:
        """What `look` returns once that is true. AssertionError when it isn't within so many seconds."""
        ends = time.monotonic() + within
        while not (seen := look()):
            assert time.monotonic() < ends, f"not within {within:g} s: {what}"
            time.sleep(0.02)
        return seen

    def goes_on(self, within: float) -> None:
        """Return when jobs have been run since. AssertionError when none was within so many seconds."""
        before = self.executions()
        self.eventually(
            lambda: self.executions() > before or not self.waiting_jobs(), "another job that has ended", within
        )

    def pause(self, seconds: float) -> None:
        """Leave a fault be for so long."""
        time.sleep(seconds)

    def pick_pool(self, dice: random.Random) -> KeptPool:
        return dice.choice(self.pools)

    def pick_worker(self, dice: random.Random) -> int | None:
        """The pid of a worker that is there just now; None: there is none."""
        workers = self.pick_pool(dice).pool.workers
        return dice.choice(workers) if workers else None

    def offences_of_pools(self) -> dict[str, list[tuple[Any, ...]]]:
        """Exit codes and log lines that no fault explains."""
        found: dict[str, list[tuple[Any, ...]]] = {}
        for kept in self.pools:
            if odd := [(kept.plan.name, code) for code in kept.exits if code not in _EXPECTED_EXITS]:
                found.setdefault("a pool ends as documented", []).extend(odd)
            for file in kept.logs():
                lines = file.read_text(errors="replace").splitlines()
                if bugs := [(file.name, line[:500]) for line in lines if _BUG.search(line)]:
                    found.setdefault("no log tells of a bug", []).extend(bugs[:3])
        return found


@contextmanager
def world(plan: Plan, directory: Path, binaries: Path | None = None) -> Iterator[World]:
    """The pools of a plan at work on an empty database, until the context is left; whatever is left then is killed."""
    directory.chmod(0o777)
    small: SmallDisk | None = "tablespace" if "small-disk" in plan.features else None
    with ExitStack() as stack:
        server = PostgresServer(small_disk=small, with_clock="clock" in plan.features, binaries=binaries)
        stack.enter_context(server)
        stack.callback(_keep_logs, server, directory)
        proxy = stack.enter_context(Proxy(server.address, server.port))
        made = World(plan, server, proxy, directory, stack)
        _set_up(made)
        if "standby" in plan.features:
            made.add_standby()
        if "pooler" in plan.features:
            pooler = Pooler(proxy.dsn(made.superuser_dsn), directory, users=tuple(_LOGINS))
            made.pooler = stack.enter_context(pooler)
        if HOSTS in plan.features:
            made.hosts = stack.enter_context(hosts(made.superuser_dsn, "ash", "oak"))
        stack.callback(_end_pools, made)
        made.pools.extend(_pool(made, number) for number in range(len(plan.pools)))
        for kept in made.pools:
            kept.pool.wait_for_log("the pool is ready")
            kept.keep()
        made.log.begin()
        yield made


def _keep_logs(server: PostgresServer, directory: Path) -> None:
    """Of the first primary, with the evidence."""
    (directory / "postgres.log").write_text(server.log)


def _pool(made: World, number: int) -> KeptPool:
    """On the hosts in turn, if there are any."""
    host = made.hosts[number % len(made.hosts)] if made.hosts else None
    dsn = (
        made.dsn("chaos_worker")
        if host is None
        else host.proxy.dsn(make_conninfo(made.superuser_dsn, user="chaos_worker"))
    )
    return KeptPool(
        made.plan.pools[number],
        dsn,
        made.directory,
        made.log,
        host=host,
        has_pooler=made.pooler is not None,
        has_failpoints=FAILPOINTS in made.plan.features,
    )


def _nobody_enqueues(*_: object, **__: object) -> None:
    raise AssertionError("the world has no bystander")


def _set_up(made: World) -> None:
    make_roles(made.superuser_dsn)
    with made.connect() as connection:
        for login, role in _LOGINS.items():
            connection.execute(f"create role {login} login in role {role}".encode())
        checker.set_up(connection)


def _end_pools(made: World) -> None:
    made.is_over.set()
    for kept in made.pools:
        kept.kill()
