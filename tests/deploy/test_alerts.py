"""The alerts: their expressions, what they say, and `promtool`'s opinion of both."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import catalogue
from tests.deploy.prometheus import PROMETHEUS_FILES, tool

ROOT = Path(__file__).parents[2]
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS_FILES / "pgworker.rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
TESTS = yaml.safe_load((PROMETHEUS_FILES / "pgworker.rules.test.yml").read_text("utf-8"))["tests"]


def alert(rule: Any) -> str:
    return f"{rule['alert']}-{rule['labels']['severity']}"


def anchors(page: Path) -> set[str]:
    """What may stand behind the # of a link to this page: its headings, as hosts of git repositories spell them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def promtool(*words: str) -> str:
    ran = subprocess.run([tool("promtool"), *words], cwd=PROMETHEUS_FILES, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def firing(rule: Any) -> list[bool]:
    """For each test that asks whether this alert fires: whether it expects that it does."""
    asked = re.compile(rf'alertname=~?"(?:\w+\|)*{rule["alert"]}(?:\|\w+)*"')
    return [
        any(alert_is(rule, sample["labels"]) for sample in one.get("exp_samples", []))
        for test in TESTS
        for one in test["promql_expr_test"]
        if asked.search(one["expr"])
    ]


def alert_is(rule: Any, labels: str) -> bool:
    return f'alertname="{rule["alert"]}"' in labels and f'severity="{rule["labels"]["severity"]}"' in labels


@pytest.mark.parametrize("rule", RULES, ids=alert)
def test_an_alert_asks_for_what_pools_serve(rule: Any) -> None:
    catalogue.check(rule["expr"])


@pytest.mark.parametrize("rule", RULES, ids=alert)
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: Any) -> None:
    assert rule["alert"].startswith("Pgworker")
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["description"].endswith(".")


@pytest.mark.parametrize("rule", RULES, ids=alert)
def test_the_runbook_has_a_section_for_an_alert(rule: Any) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(ROOT / page)


def test_the_runbook_has_no_section_for_an_alert_that_is_gone() -> None:
    runbook = (ROOT / "deploy/README.md").read_text("utf-8")
    sections = re.findall(r"^### (Pgworker\w+)$", runbook, re.MULTILINE)
    assert sections == list(dict.fromkeys(rule["alert"] for rule in RULES))


@pytest.mark.parametrize("rule", RULES, ids=alert)
def test_an_alert_is_tested_to_fire_and_not_to_fire(rule: Any) -> None:
    expected = firing(rule)
    assert True in expected
    assert False in expected


def test_prometheus_takes_the_example_and_the_rules_beside_it() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should_and_not_when_they_should_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", "pgworker.rules.test.yml")
