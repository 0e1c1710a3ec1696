"""python -m tests.bench.plot compared.json drain.svg: what `tests.bench.compare --json` has written, as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import msgspec
import pygal
from pygal.style import CleanStyle

_WIDTH, _HEIGHT = 800, 320
_STEP = 25_000  # jobs a second between two lines
_COLORS = ("#9aa5b1", "#336791")  # of others, and of pgworker


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("compared", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("picture", type=click.Path(path_type=Path, dir_okay=False))
def main(compared: Path, picture: Path) -> None:
    """Draw the median drain of each, the fastest on top."""
    picture.write_bytes(draw(msgspec.json.decode(compared.read_bytes())))


def draw(compared: dict[str, Any]) -> bytes:
    """As SVG, without what it would do in a browser."""
    cases = sorted(compared["cases"], key=lambda case: float(case["jobs_per_second"]))
    chart = pygal.HorizontalBar(
        title=f"No-op jobs drained per second, {cases[0]['workers']} worker processes",
        style=CleanStyle,
        width=_WIDTH,
        height=_HEIGHT,
        show_legend=False,
        value_formatter="{:,.0f}".format,
        y_labels=range(0, round(max(case["jobs_per_second"] for case in cases)) + 1, _STEP),
        truncate_label=-1,
        margin=20,
        no_prefix=True,  # the same figures, the same picture
        explicit_size=True,
    )
    chart.x_labels = [f"{case['who']} {case['version']}: {case['jobs_per_second']:,.0f}" for case in cases]
    bars = [{"value": case["jobs_per_second"], "color": _COLORS[case["who"] == "pgworker"]} for case in cases]
    chart.add("jobs/s", bars)
    root = chart.render_tree()
    for group in root.iter():
        for part in [part for part in group if part.tag in ("script", ElementTree.Comment)]:  # these have today's date
            group.remove(part)
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


if __name__ == "__main__":
    main()
