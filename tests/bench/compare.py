"""python -m tests.bench.compare --embedded --peer procrastinate=/opt/procrastinate/bin/python"""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec

from pgworker.bench.drain import BATCH as BULK
from pgworker.bench.drain import Load, drain
from pgworker.bench.ground import Conditions, checkpoint, open_ground
from pgworker.bench.run import Report
from pgworker.cli.bench import open_server, say
from pgworker.cli.figures import print_report
from pgworker.db.connect import connect
from pgworker.db.scratch import scratch_database
from pgworker.errors import PgworkerError
from tests.bench.bare_loop import BATCH, run_bare_loop
from tests.bench.outside import IN_NODE, IN_PYTHON, Peer, Run, find_peer, run_peer

_OURS = f"Python {platform.python_version()}"
_SHOWS = ("who", "enqueued_per_second", "jobs_per_second", "pgworker_by_it")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--jobs", type=click.IntRange(min=1), default=50_000, show_default=True)
@click.option("-w", "--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Processes of each.")
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "peers",
    "--peer",
    type=find_peer,
    multiple=True,
    metavar="NAME=WHERE",
    help=f"{', '.join(IN_PYTHON)}: WHERE is the Python that has it. {', '.join(IN_NODE)}: WHERE is the directory"
    " whose node_modules has it, with `node` on the PATH. To be given again for another.",
)
@click.option("--dsn", metavar="DSN", help="A server whose user may create databases.")
@click.option("--embedded", is_flag=True, help="On a private PostgreSQL, made for it and removed.")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write all runs to this file.")
def main(
    jobs: int, workers: int, runs: int, peers: Sequence[Peer], dsn: str | None, embedded: bool, file: Path | None
) -> None:
    """pgworker's drain beside the bare loop of its own statements and beside others, by turns.

    Each enqueues the same number of no-op jobs of about 100 bytes by its best bulk call, then as many worker processes
    drain them; each time in a new database, that of the others analyzed. The table has medians, and pgworker's rate by
    that of the row.
    """
    if len({peer.name for peer in peers}) < len(peers):
        raise click.UsageError("a peer is given twice")
    try:
        with open_server(dsn, embedded) as server:
            conditions, every = compare(server, jobs, workers, runs, peers)
    except PgworkerError as error:
        raise click.ClickException(str(error)) from error
    say("")
    report = Report("compare", conditions, runs, [*_medians(every)])
    print_report(report, as_json=False, shows=_SHOWS)
    click.echo()
    for case in report.cases:
        click.echo(f"{case['who']} {case['version']}, {case['runtime']}: {case['settings']}")
    if file is not None:
        file.write_bytes(msgspec.json.encode(report.as_json() | {"every_run": every}))


def compare(
    server: str, jobs: int, workers: int, runs: int, peers: Sequence[Peer]
) -> tuple[Conditions, dict[str, list[Run]]]:
    """Every run of each, by name, in the order of the table. BenchFailed: one of them came to no figure."""
    contestants: Mapping[str, Callable[[], Run]] = {
        "pgworker": partial(_run_pgworker, server, jobs, workers),
        "bare loop": partial(_run_bare_loop, server, jobs, workers),
    } | {peer.name: partial(_run_peer, server, jobs, workers, peer) for peer in peers}
    every: dict[str, list[Run]] = {name: [] for name in contestants}
    with open_ground(server, say) as ground:
        conditions = ground.conditions()
    turns = deque(contestants.items())
    for number in range(runs):
        for name, run in turns:
            say(f"run {number + 1} of {runs}: {name}")
            every[name].append(run())
        turns.rotate(-1)  # whoever comes first finds the machine as no other does
    return conditions, every


def _medians(every: Mapping[str, Sequence[Run]]) -> Iterator[dict[str, Any]]:
    rates = {name: median(run.jobs / run.seconds for run in runs) for name, runs in every.items()}
    for name, runs in every.items():
        yield {
            "who": name,
            "version": runs[0].version,
            "runtime": runs[0].runtime,
            "settings": runs[0].settings,
            "jobs": runs[0].jobs,
            "workers": runs[0].workers,
            "enqueued_per_second": median(run.jobs / run.enqueue_seconds for run in runs),
            "jobs_per_second": rates[name],
            "pgworker_by_it": rates["pgworker"] / rates[name],
        }


def _run_pgworker(server: str, jobs: int, workers: int) -> Run:
    with open_ground(server, say) as ground:
        told = drain(ground, Load(jobs, workers))
    settings = f"slots {told.slots}, enqueue_many of {BULK}"
    return Run("pgworker", version("pgworker"), _OURS, jobs, workers, settings, told.enqueue_seconds, told.seconds)


def _run_bare_loop(server: str, jobs: int, workers: int) -> Run:
    with _database(server) as dsn:
        enqueue_seconds, seconds = run_bare_loop(dsn, jobs, workers)
    settings = f"batches of {BATCH}, one COPY"
    return Run("bare loop", version("pgworker"), _OURS, jobs, workers, settings, enqueue_seconds, seconds)


def _run_peer(server: str, jobs: int, workers: int, peer: Peer) -> Run:
    with _database(server) as dsn:
        return run_peer(dsn, jobs, workers, peer)


@contextmanager
def _database(server: str) -> Iterator[str]:
    """A new, empty database, with nothing left to be written of what was before."""
    with scratch_database(server, "template0") as dsn:
        with connect(dsn, application_name="pgworker compare") as connection:
            checkpoint(connection)
        yield dsn


if __name__ == "__main__":
    main()
