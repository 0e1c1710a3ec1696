"""The dashboard is one that Grafana takes, and says nothing of metrics that no pool serves."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.deploy import catalogue, dashboard
from tests.deploy.dashboard import FILE, ROOT, Query

DASHBOARD = dashboard.load()
PANELS = dashboard.panels(DASHBOARD)
QUERIES = list(dashboard.queries(DASHBOARD))
COLUMNS = 24


def named(query: Query) -> str:
    return query.panel


def test_every_panel_has_an_id_of_its_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_fill_the_columns_without_holes_and_never_lie_on_top_of_each_other() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    covered = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    height = max(at["y"] + at["h"] for at in places)
    assert sorted(covered) == [(x, y) for x in range(COLUMNS) for y in range(height)]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: Any) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_query_asks_the_data_source_that_was_chosen() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [*PANELS, *(target for panel in PANELS for target in panel["targets"])]
    asking += [one for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    asking += DASHBOARD["annotations"]["list"]
    assert all(one["datasource"] == chosen for one in asking)


@pytest.mark.parametrize("query", QUERIES, ids=named)
def test_a_panel_asks_for_what_pools_serve(query: Query) -> None:
    catalogue.check(query.asked)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("rate(pgworker_jobs_done_total[5m])", "no pool serves pgworker_jobs_done_total"),
        ("pgworker_job_wait_seconds", "no pool serves pgworker_job_wait_seconds"),
        ("sum by (queue) (pgworker_slots)", "pgworker_slots has no queue"),
        ('pgworker_queue_jobs{status="pending"}', "pgworker_queue_jobs has no status"),
        ("sum(pgworker_dead_letters)", "pgworker_dead_letters would be counted once per pool"),
    ],
)
def test_a_query_that_would_show_nothing_or_too_much_would_be_found(expression: str, told: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(told)):
        catalogue.check(expression)


def test_variables_and_annotations_ask_for_what_pools_serve() -> None:
    for label, selector in dashboard.variables(DASHBOARD).items():
        catalogue.check(f"group by ({label}) ({dashboard.filled(selector)})")
    for expression in dashboard.marks(DASHBOARD):
        catalogue.check(dashboard.filled(expression))


def test_there_is_no_metric_that_the_page_does_not_show() -> None:
    assert catalogue.unused([query.asked for query in QUERIES]) == []


def test_the_provisioning_brings_this_dashboard_and_a_data_source() -> None:
    provisioning = ROOT / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/pgworker.yml").read_text())["providers"]
    assert source["type"] == "prometheus"
    assert provider["type"] == "file"
    assert provider["options"]["path"].endswith(FILE.parent.name)
