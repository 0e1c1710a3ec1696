"""The dashboard has no option and no unit that Grafana does not know, by Grafana's own types for dashboards."""

from __future__ import annotations

import inspect
import json
import warnings
from typing import Any

import pytest

from tests.deploy import dashboard

sdk = pytest.importorskip("grafana_foundation_sdk", reason="Grafana's types for dashboards need Python 3.11")


def as_grafana_reads(model: Any) -> Any:
    """Read by Grafana's own types for dashboards, which drop what they don't know, and written again."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other schema is for Grafana 13 and later only
        from grafana_foundation_sdk.models.dashboard import Dashboard
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(model)))


def left_out(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where `theirs` has not what `ours` has."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [lost for key, value in ours.items() for lost in left_out(value, theirs.get(key), f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            lost
            for at, (mine, other) in enumerate(zip(ours, theirs, strict=True))
            for lost in left_out(mine, other, f"{path}[{at}]")
        ]
    return [] if ours == theirs else [f"{path}: {ours!r} is read as {theirs!r}"]


def test_grafana_knows_every_option_that_is_set() -> None:
    assert left_out(dashboard.load(), as_grafana_reads(dashboard.load())) == []


def test_an_option_that_grafana_does_not_know_would_be_found() -> None:
    wrong = dashboard.load()
    dashboard.panels(wrong)[0]["options"]["colourMode"] = "value"
    assert [lost.partition(":")[0] for lost in left_out(wrong, as_grafana_reads(wrong))] == [
        ".panels[1].options.colourMode"
    ]


def test_every_unit_is_one_of_grafanas() -> None:
    from grafana_foundation_sdk.models import units

    known = {value for name, value in inspect.getmembers(units) if not name.startswith("_")}
    used = set()
    for panel in dashboard.panels(dashboard.load()):
        options = [one for override in panel["fieldConfig"]["overrides"] for one in override["properties"]]
        used |= {panel["fieldConfig"]["defaults"]["unit"], *(one["value"] for one in options if one["id"] == "unit")}
    assert used <= known
