"""python -m tests.chaos.defects [NAME…]: is every planted defect found?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tests.chaos.defects.catalogue import all_defects
from tests.chaos.defects.scenario import Found, try_defect


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option("--seed", type=int, default=1, show_default=True, help="The first of up to three for each.")
@click.option("--binaries", type=click.Path(path_type=Path, exists=True), help="The directory of another `postgres`.")
@click.option("--list", "lists", is_flag=True, help="Only say which defects there are.")
def main(names: tuple[str, ...], seed: int, binaries: Path | None, lists: bool) -> None:
    """Plant each defect in a small world and see it found; exit code 1: one was not, or what is none was."""
    known = all_defects()
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"there is no {', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = [known[name] for name in names or known]
    if lists:
        for defect in chosen:
            click.echo(f"{defect.name:<36} {defect.breaks}")
        return
    found = []
    for defect in chosen:
        found.append(try_defect(defect, binaries=binaries, seed=seed))
        _tell(found[-1])
    planted = [one for one in found if not one.defect.is_harmless]
    controls = [one for one in found if one.defect.is_harmless]
    click.echo(f"{sum(one.is_as_expected for one in planted)} of {len(planted)} caught", nl=not controls)
    if controls:
        click.echo(f"; {sum(one.is_as_expected for one in controls)} of {len(controls)} controls hold")
    sys.exit(0 if all(one.is_as_expected for one in found) else 1)


def _tell(found: Found) -> None:
    wanted = "holds" if found.defect.is_harmless else "caught"
    state = wanted if found.is_as_expected else ("BROKEN" if found.defect.is_harmless else "MISSED")
    click.echo(f"{found.defect.name:<36} {state:<7} {found.seconds:5.1f} s, {found.seeds} seeds")
    for what, rows in found.offences.items():
        click.echo(f"    {'*' if what in found.by else ' '} {what}: {rows}")


if __name__ == "__main__":
    main()
