"""The dashboard is one that Grafana takes, and says nothing of metrics that no pool serves."""

from __future__ import annotations

from itertools import combinations
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


def test_panels_are_within_the_columns_and_never_on_top_of_each_other() -> None:
    cells = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= COLUMNS, panel["title"]
        cells[panel["id"]] = {
            (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        }
    assert [(one, other) for one, other in combinations(cells, 2) if cells[one] & cells[other]] == []


def test_no_line_of_the_page_is_left_empty() -> None:
    covered: set[int] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        covered.update(range(at["y"], at["y"] + at["h"]))
    assert covered == set(range(max(covered) + 1))


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


def test_variables_and_annotations_ask_for_what_pools_serve() -> None:
    for label, selector in dashboard.variables(DASHBOARD).items():
        catalogue.check(f"count by ({label}) ({dashboard.filled(selector)})")
    for expression in dashboard.marks(DASHBOARD):
        catalogue.check(dashboard.filled(expression))


@pytest.mark.parametrize("query", QUERIES, ids=named)
def test_what_every_pool_says_of_the_same_database_is_never_added_up(query: Query) -> None:
    catalogue.check_no_sum_over_pools(query.asked)


def test_the_provisioning_brings_this_dashboard_and_a_data_source() -> None:
    provisioning = ROOT / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/pgworker.yml").read_text())["providers"]
    assert source["type"] == "prometheus"
    assert provider["type"] == "file"
    assert provider["options"]["path"].endswith(FILE.parent.name)
