"""The pages of deploy/ and grafana/: their links lead somewhere, and their commands do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pgworker.observe.vocabulary import EVENTS
from tests.deploy.prometheus import tool
from tests.deploy.test_alerts import anchors

ROOT = Path(__file__).parents[2]
DEPLOY, GRAFANA = ROOT / "deploy/README.md", ROOT / "grafana/README.md"


def section(page: Path, title: str) -> str:
    return page.read_text("utf-8").split(f"\n## {title}\n")[1].partition("\n## ")[0]


def commands(text: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def run(command: str, **variables: str) -> str:
    ran = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("page", [DEPLOY, GRAFANA], ids=["deploy", "grafana"])
def test_a_link_leads_to_what_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def test_every_event_that_the_runbook_names_is_one_of_the_log() -> None:
    runbook = section(DEPLOY, "Runbook: from alert to action")
    named = {
        name
        for names in re.findall(r"\bevents? ((?:`\w+`(?:,\s| and\s)?)+)", runbook)
        for name in names.split("`")[1::2]
    }
    assert named
    assert named <= EVENTS.keys()


def test_every_command_of_the_runbook_is_one_that_pgworker_has() -> None:
    asked = set(re.findall(r"`pgworker ([a-z][a-z-]*(?: [a-z][a-z-]*)?)(?=[ `\n])", DEPLOY.read_text("utf-8")))
    for words in sorted(asked):
        assert "Usage: pgworker" in run(f"{sys.executable} -m pgworker {words} --help"), words


def test_promtool_is_run_as_the_page_says() -> None:
    tool("promtool")
    asked = commands(section(DEPLOY, "Monitoring"))
    assert [command.split()[0] for command in asked] == ["promtool", "promtool"]
    for command in asked:
        assert "SUCCESS" in run(command)


def test_grafana_finds_the_dashboard_where_its_page_puts_it(tmp_path: Path) -> None:
    for command in commands(section(GRAFANA, "Provision")):
        run(command, GRAFANA=str(tmp_path))
    (provided,) = (tmp_path / "etc/grafana/provisioning/dashboards").iterdir()
    (provider,) = yaml.safe_load(provided.read_text("utf-8"))["providers"]
    looked_at = tmp_path / provider["options"]["path"].lstrip("/")
    assert [found.name for found in looked_at.iterdir()] == ["pgworker.json"]
    (source,) = (tmp_path / "etc/grafana/provisioning/datasources").iterdir()
    assert [one["url"] for one in yaml.safe_load(source.read_text("utf-8"))["datasources"]] == ["${PROMETHEUS_URL}"]
