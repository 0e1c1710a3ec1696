"""The report of a measurement: for people a table, for programs one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pgworker.cli.output import Column, print_json, print_table

if TYPE_CHECKING:
    from pgworker.bench.run import Report

_BAR = 40  # characters
_UNSAID = "-"


def print_report(report: Report, as_json: bool, shows: Sequence[str] = ()) -> None:
    """One case is a list of its figures. Several are rows of a table, with those columns that a person compares."""
    if as_json:
        print_json(report.as_json())
        return
    _print_conditions(report)
    if shows:
        titles = [name.replace("_per_", "/").replace("_", " ") for name in shows]
        columns = [Column(title, right=place > 0) for place, title in enumerate(titles)]
        if alike := _alike(report.cases, shows):
            _print_figures(alike)
            print()
        print_table(columns, [[_shown(case.get(name)) for name in shows] for case in report.cases])
        return
    _print_figures(report.cases[0])
    if (histogram := report.cases[0].get("histogram_ms")) is not None:
        _print_histogram(histogram)


def _alike(cases: Sequence[Mapping[str, Any]], shows: Sequence[str]) -> dict[str, Any]:
    """What all cases have in common, and no column says."""
    first, *others = cases
    return {
        name: value
        for name, value in first.items()
        if name not in shows and value is not None and all(other[name] == value for other in others)
    }


def _print_figures(figures: Mapping[str, Any]) -> None:
    for name, value in figures.items():
        if name != "histogram_ms":
            print(f"{name.replace('_', ' '):24} {_shown(value):>12}")


def _print_conditions(report: Report) -> None:
    on = report.conditions
    print(f"pgworker {on.pgworker_version}, Python {on.python_version}, {on.host_cpus} CPUs here")
    print(
        f"PostgreSQL {on.server_version}: fsync {on.fsync}, synchronous_commit {on.synchronous_commit},"
        f" full_page_writes {on.full_page_writes}, shared_buffers {on.shared_buffers}"
        f"{f', on {on.data_on}' if on.data_on else ''}{', as behind a pooler (--pooler)' if on.pooler else ''}"
    )
    print(f"medians of {report.runs} runs\n" if report.runs > 1 else "")


def _print_histogram(counts: Sequence[tuple[float | None, int]]) -> None:
    most = max(count for _, count in counts)
    print()
    for bound, count in counts:
        label = "more" if bound is None else f"≤ {bound:g} ms"
        print(f"{label:>10}  {count:7,}  {'#' * round(_BAR * count / most)}".rstrip())


def _shown(value: Any) -> str:
    if value is None:
        return _UNSAID
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
