"""What an expression of PromQL may use: the metrics that pools serve, with their labels."""

from __future__ import annotations

from pgworker.observe.catalogue import CATALOGUE, Scope
from tests.deploy.promql import added_up, parse

_OF_THE_TARGET = {"job", "instance"}
"""Labels that each sample has, from its target."""

_OF_PROMETHEUS = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"}}
"""What Prometheus adds of its own."""

_SERVED = {
    series: {*spec.labels, *(["le"] if series.endswith("_bucket") else [])}
    for spec in CATALOGUE
    for series in spec.series
}
_OF_THE_DATABASE = {spec.name for spec in CATALOGUE if spec.scope is Scope.DATABASE}


def check(expression: str) -> None:
    """Every metric is one that pools serve, with the labels that are asked of it; and what is counted in the database,
    so that it is the same from every pool, is not added up: between it and any sum stands a max."""
    for metric, labels in parse(expression).labels.items():
        served = {**_SERVED, **_OF_PROMETHEUS}.get(metric)
        assert served is not None, f"no pool serves {metric}: {expression}"
        missing = labels - served - _OF_THE_TARGET
        assert not missing, f"{metric} has no {', '.join(sorted(missing))}: {expression}"
    added = added_up(expression) & _OF_THE_DATABASE
    assert not added, f"{', '.join(sorted(added))} would be counted once per pool: {expression}"


def unused(expressions: list[str]) -> list[str]:
    """The metrics that none of these expressions asks for."""
    used = {metric for expression in expressions for metric in parse(expression).labels}
    return [spec.name for spec in CATALOGUE if not used & set(spec.series)]
