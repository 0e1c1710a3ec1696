"""python -m tests.chaos.trials [NAME ...] [--size N | --full] [--seed N] [--json FILE]"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from _pytest.outcomes import Skipped

from pgworker.db import embedded
from pgworker.db.embedded import Server
from pgworker.db.scratch import scratch_directory
from tests.chaos.trials.catalogue import all_trials
from tests.chaos.trials.trial import Bench, Figure, Trial


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--full", is_flag=True, help="As often as the promise needs to be believed: minutes to an hour each.")
@click.option("--size", type=click.IntRange(min=1), help="So often in place of that, in the trial's own unit.")
@click.option("--seed", type=int, default=7, show_default=True, help="The dice.")
@click.option("--binaries", type=click.Path(path_type=Path, exists=True), help="The directory of another `postgres`.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Append each trial's figures to this file.")
@click.option("--list", "lists", is_flag=True, help="Only say which trials there are.")
def main(
    names: Sequence[str],
    full: bool,
    size: int | None,
    seed: int,
    binaries: Path | None,
    json_file: Path | None,
    lists: bool,
) -> None:
    """Try promises of pgworker that have a number, by default all of them, briefly; exit code 1: one does not hold."""
    trials = all_trials()
    if unknown := [name for name in names if name not in trials]:
        raise click.UsageError(f"no trial is called {unknown[0]!r}; there are: {', '.join(trials)}")
    chosen = [trials[name] for name in names] or list(trials.values())
    if lists:
        for trial in chosen:
            click.echo(f"{trial.name:<24} {trial.promise} ({trial.full:,} {trial.unit})")
        return
    holds = True
    for trial in chosen:
        tries = size or (trial.full if full else trial.short)
        click.echo(f"{trial.name}: {trial.promise}; {tries:,} {trial.unit}, seed {seed}")
        began = time.monotonic()
        try:
            with started([trial], binaries) as server:
                figures = run(trial, tries, seed, server)
        except Skipped as missing:
            click.echo(f"  SKIPPED: {missing}")
            continue
        except AssertionError as error:
            figures = [Figure("the trial itself", "goes through", str(error), holds=False)]
        seconds = time.monotonic() - began
        for figure in figures:
            mark = {True: "holds", False: "BROKEN", None: ""}[figure.holds]
            click.echo(f"  {figure.name:<44} {figure.promised:>20} {figure.found:>24}  {mark}")
        click.echo(f"  in {seconds:,.0f} s")
        holds &= all(figure.holds is not False for figure in figures)
        if json_file is not None:
            _append(json_file, trial, tries, seed, seconds, figures)
    sys.exit(0 if holds else 1)


@contextmanager
def started(trials: Sequence[Trial], binaries: Path | None = None) -> Iterator[Server]:
    """A private server with what these trials need."""
    options = {"fsync": "off"} | {name: value for trial in trials for name, value in trial.server_options}
    connections = "max_connections"
    most = max((int(dict(trial.server_options).get(connections, 100)) for trial in trials), default=100)
    options[connections] = str(most)
    with scratch_directory() as directory, embedded.start(directory, options=options, binaries=binaries) as server:
        yield server


def run(trial: Trial, size: int, seed: int, server: Server) -> Sequence[Figure]:
    """One trial, in a directory of its own."""
    with scratch_directory() as directory:
        return trial.run(Bench(server, directory, random.Random(f"{trial.name} {seed}"), size, _tell))


def _tell(line: str) -> None:
    click.echo(f"  … {line}")


def _append(file: Path, trial: Trial, size: int, seed: int, seconds: float, figures: Sequence[Figure]) -> None:
    told = {
        "trial": trial.name,
        "size": size,
        "unit": trial.unit,
        "seed": seed,
        "seconds": round(seconds, 1),
        "figures": [
            {"name": figure.name, "promised": figure.promised, "found": figure.found, "holds": figure.holds}
            for figure in figures
        ],
    }
    with file.open("a") as out:
        out.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
