"""Put a pool together, and hand it to the master: what `pgworker start` does, and demo and bench do too.

What can be wrong is found first, in a child that is gone before the pool forks: the database, its schema, the app.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from uuid import UUID, uuid4

import click
import setproctitle

from pgworker.cli import boot, reload
from pgworker.config.layers import likely_typos
from pgworker.config.settings import MAX_WORKERS, PoolSettings, parse_cpus, parse_listen
from pgworker.config.sources import embedded_directory, redact
from pgworker.config.token import NoToken, is_readable_by_all, read_token
from pgworker.db import embedded
from pgworker.errors import ConfigurationError, PgworkerError
from pgworker.lifecycle.claim import PRIORITIES
from pgworker.linux.board import Board
from pgworker.linux.control import ControlChannel, Shared
from pgworker.linux.cpus import cpu_quota, divide_cpus, require_usable
from pgworker.linux.memory import cgroup_limit
from pgworker.linux.signals import SignalQueue
from pgworker.linux.stacks import StackFile
from pgworker.master.main import OBEYED_LATER, PoolParts, run_pool
from pgworker.monitor.main import run_monitor
from pgworker.observe import logs
from pgworker.sql import load
from pgworker.worker.main import WorkerPlace, run_worker

log = logs.logger("start")

_SPARE_PLACES = 8  # at least so many, or as many again as there are workers
_DESCRIPTORS_PER_PLACE = 3  # a pipe, and a file for stacks
_OTHER_DESCRIPTORS = 64

_YOUNG_OBJECTS = 2500
"""So many more objects than went set off Python's cyclic collector. 500 claimed jobs are some thousands, which live
until they are settled: with the 700 of Python 3.11 the collector takes 1 µs a job."""


@dataclass(frozen=True, slots=True)
class _Children:
    """What the children of a pool run, each in its own process."""

    dsn: str
    app_path: str
    settings: PoolSettings
    shared: Shared
    cpus: Callable[[int], frozenset[int]]
    pool_id: UUID

    def work(self, index: int) -> int:
        read, write = self.shared.wakes[index]
        events, stack = self.shared.events_out.fileno(), self.shared.stacks[index].fileno()
        place = WorkerPlace(self.shared.board, index, read, write, events, stack, self.cpus(index))
        return run_worker(self.dsn, self.app_path, self.settings, place)

    def monitor(self, control: ControlChannel) -> int:
        return run_monitor(self.dsn, self.settings, self.shared, control, self.pool_id, version("pgworker"))

    def check(self) -> int:
        """Once more, before the workers are replaced."""
        return boot.check(self.dsn, self.app_path, self.settings, _log_refusal, accepts_newer=True)


def start_pool(dsn: str, app_path: str, settings: PoolSettings, *, starts_server: bool) -> int:
    """Run a pool until it is told to stop; returns the exit code. `starts_server`: the private one of this DSN."""
    logs.configure(settings.log_format, settings.log_level)
    logs.set_process("master")
    if settings.reload:
        reload.check_installed()
        sys.dont_write_bytecode = True  # an edit within a second that keeps the size would be taken for the file before
    signals = SignalQueue()
    signals.install(OBEYED_LATER)
    with boot.Interruptible(), ExitStack() as undoing:
        setproctitle.setproctitle("pgworker: master")
        cpus = _choose_cpus(settings)
        settings = _with_token(settings)
        listening = _bind(settings.metrics_listen)
        dsn, directory = _fixed(dsn)
        restart = partial(embedded.start, directory) if starts_server and directory is not None else None
        service = _start_server(restart) if restart is not None else None
        if service is not None:
            undoing.callback(service.stop)
        code = boot.in_child(partial(boot.check, dsn, app_path, settings, _say, migrates=starts_server))
        if code:
            return code
        gc.set_threshold(_YOUNG_OBJECTS)  # before the app is imported, wherever that is: it may know better
        opened = boot.preload(app_path) if settings.preload else frozenset()
        undoing.pop_all()
    _warn_of_memory(settings)
    shared = _share(settings, listening, opened)
    children = _Children(dsn, app_path, settings, shared, cpus, uuid4())
    logs.set_process("master", pool=str(children.pool_id))
    _log_start(settings, dsn, children.pool_id)
    load.keep_all()
    gc.collect()
    gc.freeze()  # what is imported by now stays shared with every child
    check = None if settings.preload else children.check
    watch = partial(reload.start, app_path) if settings.reload else None
    return run_pool(
        PoolParts(settings, shared, signals, children.work, children.monitor, check, service, restart, watch)
    )


def _fixed(dsn: str) -> tuple[str, Path | None]:
    """The same from every directory, as a handler may change that; and where the private server lives, if it is one."""
    directory = embedded_directory(dsn)
    if directory is None:
        return dsn, None
    return f"embedded:{directory.resolve()}", directory.resolve()


def _start_server(start: Callable[[], embedded.Server]) -> embedded.Server:
    server = start()
    log.info(
        'a private PostgreSQL runs in %s: psql "%s"',
        server.directory,
        server.dsn,
        extra=logs.fields("postgres_started"),
    )
    return server


def _say(error: PgworkerError) -> None:
    click.echo(f"pgworker: {error}", err=True)


def _log_refusal(error: PgworkerError) -> None:
    log.error("HUP: %s; the old workers go on", error, extra=logs.fields("restart_failed"))


def _log_start(settings: PoolSettings, dsn: str, pool_id: UUID) -> None:
    queues = ", ".join(settings.queues)
    log.info(
        "pgworker %s starts: workers %d, slots of each %d, queues %s",
        version("pgworker"),
        settings.workers,
        settings.slots,
        queues,
        extra=logs.fields(
            "pool_starting",
            version=version("pgworker"),
            workers=settings.workers,
            slots=settings.slots,
            queues=queues,
            database=redact(dsn),
            pool=pool_id,
            pid=os.getpid(),
        ),
    )
    for typo in likely_typos(os.environ):
        log.warning("%s", typo, extra=logs.fields("setting_unknown"))


def _choose_cpus(settings: PoolSettings) -> Callable[[int], frozenset[int]]:
    """Which CPUs the worker of an index is to run on; an empty set: any."""
    usable = os.sched_getaffinity(0)
    if settings.cpus == "auto":
        own = dict(enumerate(divide_cpus(settings.workers, cpu_quota(), usable)))
        return lambda index: own.get(index, frozenset())
    listed = parse_cpus(settings.cpus)
    if not listed:
        return lambda _index: frozenset()
    require_usable(listed, usable)
    return lambda index: frozenset({listed[index % len(listed)]})


def _warn_of_memory(settings: PoolSettings) -> None:
    """Limits that can't all be reached are no protection: the kernel kills before any of them is."""
    allowed = cgroup_limit()
    if settings.memory_limit is not None and allowed is not None and settings.workers * settings.memory_limit > allowed:
        log.warning(
            "%d workers of --memory-limit %dM are more than the %dM of this cgroup: the kernel may kill one of them",
            settings.workers,
            settings.memory_limit >> 20,
            allowed >> 20,
            extra=logs.fields("memory_overcommitted", workers=settings.workers),
        )


def _with_token(settings: PoolSettings) -> PoolSettings:
    """The same, once there is a token in its file; whose path holds from every directory, as an app may change that."""
    if settings.metrics_listen is None or isinstance(settings.metrics_token_file, NoToken):
        return settings
    file = Path(settings.metrics_token_file).absolute()
    read_token(file)
    if is_readable_by_all(file):
        log.warning(
            "every user of this host can read the token of /metrics: chmod o= %s",
            file,
            extra=logs.fields("token_readable"),
        )
    return replace(settings, metrics_token_file=str(file))


def _bind(listen: str | None) -> socket.socket | None:
    """The metrics port, bound once for all monitors that there will be."""
    if listen is None:
        return None
    address = parse_listen(listen)
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=128)
    except OSError as error:
        raise ConfigurationError(
            f"can't listen on {listen} for /metrics: {error.strerror or error}. Is another pool running on this host?"
            " Give this one another --metrics-listen HOST:PORT, or off"
        ) from error


def _share(settings: PoolSettings, listening: socket.socket | None, app_fds: frozenset[int]) -> Shared:
    events_in, events_out = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    places = _count_places(settings.workers)
    return Shared(
        Board(places, len(settings.queues) * len(PRIORITIES), settings.slots),
        tuple(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(places)),
        tuple(StackFile() for _ in range(places)),
        StackFile(),
        events_in,
        events_out,
        listening,
        app_fds,
    )


def _count_places(workers: int) -> int:
    """Room for workers: spare places too, for TTIN, as far as there are descriptors for their pipes and files."""
    wished = min(max(2 * workers, workers + _SPARE_PLACES), MAX_WORKERS)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(workers, min(wished, (limit - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_PLACE))
