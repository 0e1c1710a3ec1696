"""python -m tests.chaos --seed 7 --minutes 10 --faults all"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import click
from _pytest.outcomes import Skipped

from tests.chaos.faults.catalogue import all_faults, choose
from tests.chaos.machine import Verdict, try_seed
from tests.chaos.plan import GAP, Plan, plan

_SHOWN = 5  # rows of an offence


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, default=7, show_default=True, help="The first seed.")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="How many, one after the other."
)
@click.option("--minutes", type=float, default=1.0, show_default=True, help="How long each one lasts at most.")
@click.option("--jobs", type=click.IntRange(min=1), help="Jobs of each, when that is reached before the time is up.")
@click.option("--faults", default="all", show_default=True, help="`all`, `none`, or numbers and names: 1,5,signals.")
@click.option(
    "--gap", type=click.FloatRange(min=0.1), default=GAP, show_default=True, help="Seconds between two faults of many."
)
@click.option("--binaries", type=click.Path(path_type=Path, exists=True), help="The directory of another `postgres`.")
@click.option("--keep", type=click.Path(path_type=Path), help="Where evidence of what broke is kept.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Append a line for each seed to this file.")
@click.option("--list", "lists", is_flag=True, help="Only say which faults there are.")
@click.option("--plan", "shows_plan", is_flag=True, help="Only say what the seeds mean.")
def main(
    seed: int,
    seeds: int,
    minutes: float,
    jobs: int | None,
    faults: str,
    gap: float,
    binaries: Path | None,
    keep: Path | None,
    json_file: Path | None,
    lists: bool,
    shows_plan: bool,
) -> None:
    """Try to break pgworker; exit code 1: something broke, and the line that replays it is said."""
    if lists:
        for fault in all_faults():
            click.echo(f"{fault.number:>3}  {fault.name:<28} {(fault.inject.__doc__ or '').partition(chr(10))[0]}")
        return
    try:
        chosen = choose(faults)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--faults") from None
    broken = 0
    for number in range(seed, seed + seeds):
        planned = plan(number, chosen, minutes * 60, gap=gap)
        if shows_plan:
            _show(planned)
            continue
        try:
            verdict = _try(planned, minutes * 60, jobs, binaries, keep)
        except Skipped as missing:
            click.echo(f"seed {number}: SKIPPED: {missing}")
            continue
        broken += not verdict.holds
        replay = f"--seed {number} --minutes {minutes:g} --faults {faults} --gap {gap:g}"
        _report(verdict, replay + (f" --jobs {jobs}" if jobs else ""))
        if json_file is not None:
            _append(json_file, verdict)
    if seeds > 1 and not shows_plan:
        click.echo(f"{seeds} seeds, {broken} of them broken")
    sys.exit(1 if broken else 0)


def _try(planned: Plan, seconds: float, jobs: int | None, binaries: Path | None, keep: Path | None) -> Verdict:
    """One seed on a private server of its own; its evidence stays if something broke."""
    evidence = Path(tempfile.mkdtemp(prefix=f"pgworker-chaos-{planned.seed}-", dir=keep))
    verdict = try_seed(planned, evidence, seconds=seconds, jobs=jobs, tell=click.echo, binaries=binaries)
    if verdict.holds:
        shutil.rmtree(evidence)
    return verdict


def _show(planned: Plan) -> None:
    click.echo(f"seed {planned.seed}: {', '.join(sorted(planned.features)) or 'a plain world'}")
    for pool in planned.pools:
        click.echo(f"  {pool.name}: {json.dumps(pool.settings)}")
    for step in planned.steps:
        click.echo(f"  {step.at:7.2f} s  {step.fault.number} {step.fault.name}")


def _report(verdict: Verdict, replay: str) -> None:
    done = ", ".join(
        f"{times} {what}" for what, times in sorted(verdict.happened.items()) if not what.startswith("healed")
    )
    state = "holds" if verdict.holds else "BROKEN"
    click.echo(
        f"seed {verdict.seed}: {state}; {verdict.jobs:,} jobs, {verdict.executions:,} executions"
        f" in {verdict.seconds:.0f} s; {done}"
    )
    for what, rows in verdict.offences.items():
        click.echo(f"  {what}: {len(rows)}")
        for row in rows[:_SHOWN]:
            click.echo(f"    {row}")
    if not verdict.holds:
        click.echo(f"  evidence: {verdict.directory}\n  again: python -m tests.chaos {replay}")


def _append(file: Path, verdict: Verdict) -> None:
    told = {
        "seed": verdict.seed,
        "holds": verdict.holds,
        "jobs": verdict.jobs,
        "executions": verdict.executions,
        "seconds": round(verdict.seconds, 1),
        "offences": {what: len(rows) for what, rows in verdict.offences.items()},
        "happened": verdict.happened,
    }
    with file.open("a") as out:
        out.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
