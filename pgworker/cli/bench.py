"""`pgworker bench`: figures of this machine and this server, in a database of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgworker.cli.database import require_dsn
from pgworker.cli.figures import print_report
from pgworker.cli.options import dsn_option

if TYPE_CHECKING:
    from pgworker.bench.drain import Load
    from pgworker.bench.ground import Ground
    from pgworker.bench.run import Measure

_Command = TypeVar("_Command", bound=Callable[..., Any])
_COSTS = ("wal_bytes_per_job", "pool_cpu_us_per_job", "server_cpu_us_per_job")
_RATE = "jobs_per_second"
_QUANTILES = ("p50_ms", "p95_ms", "p99_ms", "max_ms")
_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.group()
def bench() -> None:
    """Measure pgworker on this machine and server.

    Each measurement has a database of its own on the server of the DSN, made for it and dropped afterwards, so its user
    must be allowed to create one; nothing of yours is touched, but for the time of your server. WAL and CPU are those
    of the whole server: measure where nothing else goes on.
    """


def _where(command: _Command) -> _Command:
    """--dsn, --embedded and --json."""
    command = click.option("as_json", "--json", is_flag=True, help="One JSON object.")(command)
    command = click.option("--embedded", is_flag=True, help="On a private PostgreSQL, made for it and removed.")(
        command
    )
    return dsn_option(command)


def _runs(command: _Command) -> _Command:
    return click.option(
        "--runs",
        type=_COUNT,
        default=1,
        show_default=True,
        callback=_odd,
        help="Repeat it, an odd number of times; the medians are printed.",
    )(command)


def _odd(_context: click.Context, _option: click.Parameter, runs: int) -> int:
    if runs % 2 == 0:
        raise click.BadParameter(f"{runs} runs have no median among them: {runs + 1} have")
    return runs


def _pooler(command: _Command) -> _Command:
    return click.option("--pooler", is_flag=True, help="As `pgworker start --pooler`: the DSN leads to one.")(command)


def _workers(default: int) -> Callable[[_Command], _Command]:
    return click.option(
        "-w", "--workers", type=_COUNT, default=default, show_default=True, help="Processes of each pool."
    )


@bench.command(short_help="How many no-op jobs a second a pool can do.")
@click.option("--jobs", type=_COUNT, default=50_000, show_default=True)
@_workers(2)
@click.option("--slots", type=_COUNT, default=1, show_default=True, help="Of each worker.")
@click.option("--pools", type=_COUNT, default=1, show_default=True)
@_pooler
@_runs
@_where
def drain(jobs: int, workers: int, slots: int, pools: int, runs: int, **where: Any) -> None:
    """Enqueue no-op jobs of about 100 bytes in bulk, then let a pool drain them."""
    from pgworker.bench.drain import Load
    from pgworker.bench.drain import drain as measure

    load = Load(jobs, workers, slots, pools)
    _run("drain", [lambda ground: [measure(ground, load)]], runs=runs, key=_RATE, **where)


@bench.command(short_help="How drain grows with workers and pools.")
@click.option("--jobs", type=_COUNT, default=50_000, show_default=True, help="In each case.")
@click.option("-w", "--workers", type=_COUNT, default=4, show_default=True, help="Up to so many, by doubling.")
@click.option("--pools", type=_COUNT, default=2, show_default=True, help="Also so many pools of one worker.")
@_runs
@_where
def scale(jobs: int, workers: int, pools: int, runs: int, **where: Any) -> None:
    """Drain with 1, 2, 4, ... workers in one pool, and with several pools."""
    from pgworker.bench.drain import Load
    from pgworker.bench.drain import drain as measure

    counts = sorted({1, workers, *(1 << power for power in range(workers.bit_length()))})
    loads = [Load(jobs, count) for count in counts] + [Load(jobs, 1, pools=pools)]

    def one(load: Load, ground: Ground) -> Sequence[object]:
        return [measure(ground, load)]

    shows = ("pools", "workers", "jobs_per_second", *_COSTS)
    _run("scale", [partial(one, load) for load in loads], shows, runs=runs, key=_RATE, **where)


@bench.command(short_help="Jobs of a millisecond, many at a time: threads and async.")
@click.option("--jobs", type=_COUNT, default=30_000, show_default=True, help="Of each kind.")
@_workers(2)
@click.option("--in-flight", type=_COUNT, default=256, show_default=True, help="Of all workers together.")
@click.option("--milliseconds", type=_POSITIVE, default=1.0, show_default=True, help="That a handler sleeps.")
@_runs
@_where
def mixed(jobs: int, workers: int, in_flight: int, milliseconds: float, runs: int, **where: Any) -> None:
    """Handlers that wait for something else, first in threads and then on event loops."""
    from pgworker.bench.mixed import KINDS, measure_mixed

    def one(kind: str, ground: Ground) -> Sequence[object]:
        return measure_mixed(ground, kind, jobs, workers, in_flight, milliseconds / 1000)

    shows = ("handlers", "in_flight", "drained_jobs_per_second", *_COSTS)
    _run("mixed", [partial(one, kind) for kind in KINDS], shows, runs=runs, key=f"drained_{_RATE}", **where)


@bench.command(short_help="How many jobs a second come in, by each door.")
@click.option("--jobs", type=_COUNT, default=50_000, show_default=True, help="Of the bulk.")
@click.option("--seconds", type=_POSITIVE, default=5.0, show_default=True, help="Of each case of single commits.")
@click.option("-c", "--connections", type=_COUNT, default=16, show_default=True, help="At a time; also one alone.")
@_runs
@_where
def enqueue(jobs: int, seconds: float, connections: int, runs: int, **where: Any) -> None:
    """In bulk, one by one, and beside a pool that is told; bare COPY and INSERT are the measure of it."""
    from pgworker.bench.enqueue import enqueue_beside_a_pool, enqueue_in_bulk, enqueue_one_by_one

    measures: list[Measure] = [
        lambda ground: enqueue_in_bulk(ground, jobs),
        *(partial(enqueue_one_by_one, connections=count, seconds=seconds) for count in sorted({1, connections})),
        lambda ground: enqueue_beside_a_pool(ground, connections, seconds),
    ]
    shows = (
        "door",
        "connections",
        "jobs",
        "jobs_per_second",
        "of_first",
        "transactions_per_job",
        "wal_bytes_per_job",
        "server_cpu_us_per_job",
    )
    _run("enqueue", measures, shows, runs=runs, key=_RATE, **where)


@bench.command(short_help="From enqueue to the start of the handler.")
@click.option("--rate", type=_POSITIVE, default=50.0, show_default=True, help="Jobs a second.")
@click.option("--seconds", type=_POSITIVE, default=20.0, show_default=True)
@_workers(1)
@click.option("--slots", type=_COUNT, default=1, show_default=True, help="Of each worker.")
@click.option(
    "--large", type=click.IntRange(min=0), default=0, show_default=True, help="Bytes of every fifth job's argument."
)
@_pooler
@_where
def latency(rate: float, seconds: float, workers: int, slots: int, large: int, **where: Any) -> None:
    """A steady load that leaves the pool idle: what a single job waits for, the commit of its enqueue included.

    With --large, what small jobs wait for beside large ones.
    """
    from pgworker.bench.latency import Rhythm, measure_latency

    rhythm = Rhythm(rate, seconds, large)
    _run("latency", [lambda ground: [measure_latency(ground, rhythm, workers, slots)]], **where)


@bench.command(short_help="How long a killed job waits until it runs again.")
@click.option("--kills", type=_COUNT, default=100, show_default=True, help="Of workers.")
@click.option("--hosts", type=click.IntRange(min=0), default=3, show_default=True, help="Of whole pools.")
@_workers(2)
@click.option(
    "--lease-ttl", type=click.FloatRange(min=1), default=5.0, show_default=True, help="Seconds, of the hosts."
)
@_where
def recover(kills: int, hosts: int, workers: int, lease_ttl: float, **where: Any) -> None:
    """Kill workers in the midst of a job, then whole pools at one moment, as if their host had lost power."""
    from pgworker.bench.recover import kill_hosts, kill_workers

    measures: list[Measure] = [lambda ground: [kill_workers(ground, kills, workers)]]
    if hosts:
        measures.append(lambda ground: [kill_hosts(ground, hosts, lease_ttl)])
    shows = ("killed", "workers", "lease_ttl_seconds", "rerun_count", *(f"rerun_{name}" for name in _QUANTILES))
    _run("recover", measures, shows, **where)


@bench.command(short_help="Whether claims mind what else is stored.")
@click.option(
    "--waiting", default="0,100000,1000000", show_default=True, help="Jobs that wait, a case for each number."
)
@click.option("--scheduled", type=click.IntRange(min=0), default=1_000_000, show_default=True, help="Above them.")
@click.option("--finished", type=click.IntRange(min=0), default=1_000_000, show_default=True, help="Of the last week.")
@click.option("--claims", type=_COUNT, default=500, show_default=True)
@click.option("--batch", type=click.IntRange(1, 500), default=100, show_default=True, help="Jobs in a claim.")
@_where
def backlog(waiting: str, scheduled: int, finished: int, claims: int, batch: int, **where: Any) -> None:
    """Claims of an empty system, then beside a backlog, jobs scheduled above it, and the history of a week.

    Ten million of each take some ten minutes to store, and about 10 GB.
    """
    from pgworker.bench.backlog import Backlog, measure_backlogs

    besides = [Backlog(), *(Backlog(count, scheduled, finished) for count in _numbers(waiting))]
    shows = ("waiting", "scheduled", "finished", *(f"claim_{name}" for name in _QUANTILES), _COSTS[2])
    _run("backlog", [lambda ground: measure_backlogs(ground, besides, claims, batch)], shows, **where)


@bench.command(short_help="Whether an old transaction slows the queue down.")
@click.option("--minutes", type=_POSITIVE, default=2.0, show_default=True, help="That it is open.")
@click.option("--rate", type=_POSITIVE, default=2000.0, show_default=True, help="Jobs a second.")
@click.option(
    "--readers",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Each rests nine times as long as its report took.",
)
@_where
def xmin(minutes: float, rate: float, readers: int, **where: Any) -> None:
    """A steady load, before and while a transaction keeps vacuum from removing anything and reports read it all."""
    from pgworker.bench.xmin import measure_xmin

    shows = ("phase", "settled_per_second", "reports", "dead_rows", *(f"claim_{name}" for name in _QUANTILES[:-1]))
    _run("xmin", [lambda ground: measure_xmin(ground, rate, minutes, readers)], shows, **where)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 0,100000", param_hint="waiting")
    return [int(part) for part in parts]


def _run(
    name: str,
    measures: Sequence[Measure],
    shows: Sequence[str] = (),
    *,
    dsn: str | None,
    embedded: bool,
    as_json: bool,
    runs: int = 1,
    key: str | None = None,
    pooler: bool = False,
) -> None:
    from pgworker.bench.run import run

    for number in (signal.SIGTERM, signal.SIGHUP):  # whatever ends it, pools and databases are to go with it
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    with open_server(dsn, embedded) as server:
        report = run(server, name, measures, say, runs=runs, key=key, pooler=pooler)
    say("")
    print_report(report, as_json, shows)


@contextmanager
def open_server(dsn: str | None, embedded: bool) -> Iterator[str]:
    """The DSN of the server to measure on: the one that is named, or a private one."""
    if not embedded:
        yield require_dsn(dsn)
        return
    if dsn is not None:
        raise click.UsageError("give --dsn or --embedded, not both")
    from pgworker.db.embedded import start
    from pgworker.db.scratch import scratch_directory

    with scratch_directory() as directory, start(directory) as server:
        yield server.dsn


def say(told: str) -> None:
    """In place of what was said before, at a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{told}")
        sys.stderr.flush()
