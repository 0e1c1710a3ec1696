"""`pgworker start`: put a pool together, and hand it to the master.

What can be wrong is found first, in a child that is gone before the pool forks: the database, its schema, the app.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from uuid import uuid4

import click
import setproctitle

from pgworker.app.registry import load_app
from pgworker.cli.database import require_dsn
from pgworker.cli.options import length_of_time
from pgworker.config.settings import PoolSettings, default_workers, parse_listen
from pgworker.config.sources import embedded_directory
from pgworker.db import embedded
from pgworker.db.connect import check_schema, connect
from pgworker.db.migrate import migrate
from pgworker.errors import EXIT_BUG, EXIT_CONFIGURATION, EXIT_UNAVAILABLE, ConfigurationError, PgworkerError
from pgworker.lifecycle.claim import PRIORITIES
from pgworker.linux.board import Board
from pgworker.linux.control import ControlChannel, Shared
from pgworker.linux.fork import fork_child
from pgworker.linux.pidfd import Exit
from pgworker.linux.stacks import StackFile
from pgworker.master.main import PoolParts, run_pool
from pgworker.monitor.main import run_monitor
from pgworker.observe import logs
from pgworker.worker.main import WorkerPlace, run_worker

log = logs.logger("start")


@click.command("start")
@click.option("--app", "app_path", required=True, metavar="MODULE:APP", help="Where the App is, such as shop.jobs:app.")
@click.option("-w", "--workers", type=int, default=None, help="Worker processes.  [default: the CPUs we have]")
@click.option("-q", "--queue", "queues", multiple=True, help="A queue to serve; repeat it, first ones first.")
@click.option("--dsn", default=None, help="The database; else PGWORKER_DSN or DATABASE_URL.")
@click.option(
    "--embedded",
    "embedded_in",
    is_flag=False,
    flag_value=str(embedded.DEFAULT_DIRECTORY),
    default=None,
    metavar="[DIR]",
    help="Run a private PostgreSQL in DIR, for development.  [DIR: ./.pgworker]",
)
@click.option(
    "--metrics-listen", default="127.0.0.1:9464", show_default=True, metavar="HOST:PORT|off", help="Where /metrics is."
)
@click.option(
    "--drain-timeout", type=float, default=25.0, show_default=True, help="Seconds that running jobs get after TERM."
)
@click.option("--lease-ttl", type=float, default=60.0, show_default=True, help="Seconds a lease lasts without renewal.")
@click.option(
    "--retention",
    type=length_of_time,
    default="7d",
    show_default=True,
    metavar="1d..14d",
    help="How long the history of ended jobs is kept.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def start(
    app_path: str,
    workers: int | None,
    queues: tuple[str, ...],
    dsn: str | None,
    embedded_in: str | None,
    metrics_listen: str,
    drain_timeout: float,
    lease_ttl: float,
    retention: float,
    log_format: str,
) -> None:
    """Run a pool of workers until TERM or Ctrl-C."""
    settings = PoolSettings(
        workers=default_workers() if workers is None else workers,
        queues=queues or ("default",),
        drain_timeout=drain_timeout,
        lease_ttl=lease_ttl,
        retention=retention,
        metrics_listen=None if metrics_listen == "off" else metrics_listen,
        log_format="json" if log_format == "json" else "text",
    )
    if dsn is not None and embedded_in is not None:
        raise ConfigurationError("--dsn and --embedded name two databases: give one of them")
    where = require_dsn(dsn) if embedded_in is None else f"embedded:{embedded_in}"
    raise SystemExit(start_pool(where, app_path, settings, starts_server=embedded_in is not None))


def start_pool(dsn: str, app_path: str, settings: PoolSettings, *, starts_server: bool) -> int:
    """Run a pool until it is told to stop; returns the exit code. `starts_server`: the private one of this DSN."""
    logs.configure(settings.log_format)
    logs.set_process("master")
    setproctitle.setproctitle("pgworker: master")
    listening = _bind(settings.metrics_listen)
    directory = embedded_directory(dsn)
    if directory is not None:
        dsn = f"embedded:{directory.resolve()}"  # a handler may change the working directory
    restart = partial(embedded.start, directory) if starts_server and directory is not None else None
    service = restart() if restart is not None else None
    try:
        code = _in_child(partial(_check, dsn, app_path, migrates=starts_server))
    except BaseException:
        code = None
        raise
    finally:
        if code != 0 and service is not None:
            service.stop()
    if code:
        return code
    shared = _share(settings, listening)
    pool_id = uuid4()
    gc.collect()
    gc.freeze()  # what is imported by now stays shared with every child

    def work(index: int) -> int:
        read, write = shared.wakes[index]
        place = WorkerPlace(shared.board, index, read, write, shared.events_out.fileno(), shared.stacks[index].fileno())
        return run_worker(dsn, app_path, settings, place)

    def monitor(control: ControlChannel) -> int:
        return run_monitor(dsn, settings, shared, control, pool_id, version("pgworker"))

    return run_pool(PoolParts(settings, shared, work, monitor, service, restart))


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


def _share(settings: PoolSettings, listening: socket.socket | None) -> Shared:
    events_in, events_out = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Shared(
        Board(settings.workers, len(settings.queues) * len(PRIORITIES)),
        tuple(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(settings.workers)),
        tuple(StackFile() for _ in range(settings.workers)),
        events_in,
        events_out,
        listening,
    )


def _check(dsn: str, app_path: str, *, migrates: bool) -> int:
    """What would be wrong for every worker is said once, here."""
    setproctitle.setproctitle("pgworker: start")
    try:
        if migrates:
            migrate(dsn)
        with connect(dsn, application_name="pgworker start") as connection:
            check_schema(connection)
        load_app(app_path)
    except PgworkerError as error:
        click.echo(f"pgworker: {error}", err=True)
        return error.exit_code
    return 0


def _in_child(run: Callable[[], int]) -> int:
    """Its exit code. ConfigurationError for one that no check ends with: importing the app has ended the process."""
    pid = fork_child(run, keep_fds=(), death_signal=signal.SIGKILL, blocked=())
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (0, EXIT_UNAVAILABLE, EXIT_BUG, EXIT_CONFIGURATION):
        return code
    exit_ = Exit(pid, code if code >= 0 else None, -code if code < 0 else None, os.WCOREDUMP(status))
    raise ConfigurationError(
        f"the process that tried to import the app ended with it ({exit_.describe()}):"
        " an app must not exit or crash while it is imported"
    )
