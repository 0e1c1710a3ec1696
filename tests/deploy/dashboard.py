"""The dashboard of grafana/, read as a program reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILE = ROOT / "grafana/dashboards/pgworker.json"

_RATE_INTERVAL = "10s"
"""Of Grafana, at a scrape each second: at least four scrapes."""


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel. `asked` is what Prometheus gets of it, with "All" chosen for every variable."""

    panel: str
    expression: str
    legend: str

    @property
    def asked(self) -> str:
        return filled(self.expression)

    @property
    def legend_labels(self) -> set[str]:
        return set(re.findall(r"{{\s*(\w+)\s*}}", self.legend))


def load() -> Any:
    return json.loads(FILE.read_text("utf-8"))


def panels(dashboard: Any) -> list[Any]:
    """All that show something: rows are headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard: Any) -> Iterator[Query]:
    """The expressions of all panels."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield Query(panel["title"], target["expr"], target.get("legendFormat", ""))


def variables(dashboard: Any) -> dict[str, str]:
    """The selector behind each variable that Prometheus is asked for."""
    found = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            matched = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert matched is not None, variable
            found[matched[2]] = matched[1]
    return found


def marks(dashboard: Any) -> list[str]:
    """The expressions of what is marked in every graph."""
    return [annotation["expr"] for annotation in dashboard["annotations"]["list"]]


def filled(expression: str) -> str:
    """With all variables put in, as Grafana does it."""
    with_rates = expression.replace("$__rate_interval", _RATE_INTERVAL)
    return re.sub(r'"\$(job|queue|instance|task)"', '".*"', with_rates)
