"""python -m tests.chaos.model [--full] [--defect NAME] [--list]"""

from __future__ import annotations

import resource
import sys
import time

import click

from tests.chaos.model.defects import DEFECTS, FULL, SMALL
from tests.chaos.model.explore import Exploration, Explored
from tests.chaos.model.protocol import Protocol


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--full", is_flag=True, help="The large worlds: millions of states, minutes, some GB.")
@click.option("--defect", "name", help="Plant this one, and show the shortest way to what it breaks.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=3_000_000, show_default=True, help="States of one world at most."
)
@click.option("--list", "lists", is_flag=True, help="Only say which defects there are.")
def main(full: bool, name: str | None, limit: int, lists: bool) -> None:
    """Search every state of the lease protocol; exit code 1: something is broken, as it must be with --defect."""
    if lists:
        for defect in DEFECTS:
            click.echo(f"{defect.name:<26} {defect.what}")
        return
    if name is not None:
        planted = {defect.name: defect for defect in DEFECTS}.get(name)
        if planted is None:
            raise click.UsageError(f"no defect is called {name!r}; see --list")
        found = Exploration(Protocol(planted.world, frozenset((name,)))).run(checks_ends=True)
        click.echo(f"{name}: {planted.what}\n{report(found)}")
        sys.exit(bool(found.offence))
    is_sound = True
    total = 0
    for title, world in (FULL if full else SMALL).items():
        began = time.monotonic()
        found = Exploration(Protocol(world)).run(limit=limit, checks_ends=True)
        click.echo(f"{title}: {report(found)}, in {time.monotonic() - began:.1f} s")
        is_sound &= not found.offence
        total += found.states
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    click.echo(f"{total:,} states in all, {megabytes:,} MB at most")
    sys.exit(0 if is_sound else 1)


def report(found: Explored) -> str:
    """What was searched, and what was found with the way there."""
    if not found.offence:
        part = "all of them sound" if found.is_whole else "sound, but not all that there are"
        return f"{found.states:,} states, {found.steps:,} steps, {found.depth} deep: {part}"
    way = "\n".join(f"  {number:>3}. {label}" for number, label in enumerate(found.trace, 1))
    return f"{found.states:,} states; broken after {len(found.trace)} steps:\n{way}\n  ==>  {found.offence}"


if __name__ == "__main__":
    main()
