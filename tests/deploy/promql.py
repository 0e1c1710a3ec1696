"""Which metrics and labels an expression of PromQL uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import promql_parser
from promql_parser import AggModifierType, AggregateExpr, Expr, VectorSelector


@dataclass(slots=True)
class Used:
    """The labels that an expression asks of each metric, in its matchers and in `by (…)` around it."""

    labels: dict[str, set[str]] = field(default_factory=dict)


def parse(expression: str) -> Used:
    """ValueError for what is no PromQL."""
    used = Used()
    _visit(promql_parser.parse(expression), used)
    return used


def _visit(expression: Expr, used: Used) -> None:
    for selector in _selectors(expression):
        labels = used.labels.setdefault(selector.name or "", set())
        labels.update(matcher.name for matcher in selector.matchers.matchers)
    for aggregate in _aggregates(expression):
        modifier = aggregate.modifier
        assert modifier is None or modifier.type == AggModifierType.By, "`without` says nothing of what is left"
        for selector in _selectors(aggregate.expr):
            used.labels[selector.name or ""].update(modifier.labels if modifier else ())


def added_up(expression: str) -> set[str]:
    """The metrics that are summed or counted before a `max` or `min` has made one of what several pools say."""
    added: set[str] = set()
    for aggregate in _aggregates(promql_parser.parse(expression)):
        if str(aggregate.op) in ("sum", "count", "avg"):
            added |= _without_extremes(aggregate.expr)
    return added


def _without_extremes(expression: Expr) -> set[str]:
    covered = {
        str(selector)
        for aggregate in _aggregates(expression)
        if str(aggregate.op) in ("max", "min")
        for selector in _selectors(aggregate.expr)
    }
    return {selector.name or "" for selector in _selectors(expression) if str(selector) not in covered}


def _selectors(expression: Expr) -> Iterator[VectorSelector]:
    return (found for found in _nodes(expression) if isinstance(found, VectorSelector))


def _aggregates(expression: Expr) -> Iterator[AggregateExpr]:
    return (found for found in _nodes(expression) if isinstance(found, AggregateExpr))


def _nodes(expression: Expr) -> list[Expr]:
    nodes: list[Expr] = []
    promql_parser.walk(expression, lambda node: nodes.append(node))
    return nodes
