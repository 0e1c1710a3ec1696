"""The pages of deploy/, grafana/ and tests/: their links lead somewhere, and their commands do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pgworker.observe.catalogue import CATALOGUE, Scope, Spec
from pgworker.observe.vocabulary import EVENTS
from tests.acceptance.test_cli import run as run_pgworker
from tests.architecture import test_readme
from tests.deploy import test_containers_page, test_systemd_page
from tests.deploy.prometheus import tool
from tests.deploy.test_alerts import anchors

ROOT = Path(__file__).parents[2]
DEPLOY, LOGS, GRAFANA, TESTS = (
    ROOT / name for name in ("deploy/README.md", "deploy/logs.md", "grafana/README.md", "tests/README.md")
)
MACHINE = ".venv/bin/python -m tests.chaos"
COMPARE = ".venv/bin/python -m tests.bench.compare"
PLOT = ".venv/bin/python -m tests.bench.plot"
PEERS = (f"{COMPARE} --dsn", "python3.13 -m venv /opt/peers/", "/opt/peers/", "npm install --prefix /opt/peers/")
"""What needs other job runners, which no test installs."""
ALL = [DEPLOY, LOGS, GRAFANA, TESTS]
IDS = [str(page.relative_to(ROOT)) for page in ALL]
NEED_WHAT_NO_TEST_HAS = {
    **dict.fromkeys(test_containers_page.NEEDS_DOCKER, "Docker, and images that are pulled"),
    **dict.fromkeys(test_containers_page.NEEDS_A_CLUSTER, "a cluster"),
}
"""What commands begin with that are not run, and why not: files, services and names in them are looked up instead."""


def section(page: Path, title: str) -> str:
    return page.read_text("utf-8").split(f"\n## {title}\n")[1].partition("\n## ")[0]


def commands(text: str) -> list[str]:
    """Each begins with the prompt of a user or of root; lines without one belong to the command above."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [one.rstrip("\n") for block in blocks for one in re.split(r"^[$#] ", block, flags=re.MULTILINE)[1:]]


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


@pytest.mark.parametrize("page", ALL, ids=IDS)
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


def test_what_the_page_of_the_tests_runs_selects_tests() -> None:
    """They are collected, not run: they are running."""
    setup, *others = commands(TESTS.read_text("utf-8"))
    assert setup in re.findall(r"^    (\S.*)$", test_readme.README, re.MULTILINE), "as the README says"
    for selection in [one for one in others if not one.startswith((MACHINE, COMPARE, PLOT, *PEERS))]:
        command = selection.replace(".venv/bin/pytest", f"{sys.executable} -m pytest --collect-only")
        assert re.search(r"[1-9]\d* tests collected|[1-9]\d*/\d+ tests collected", run(command)), selection


def test_the_machine_takes_the_commands_of_the_page_of_the_tests() -> None:
    """What takes a night there is asked only for what it would do; short slices of it are tests of their own."""
    for command in [one for one in commands(TESTS.read_text("utf-8")) if one.startswith(MACHINE)]:
        asks = "--plan" if command.startswith(f"{MACHINE} ") else "--list"
        asked = command if command.endswith("--list") else f"{command} {asks}"
        assert run(asked.replace(".venv/bin/python", sys.executable)).strip(), command


def test_the_comparison_takes_the_command_of_the_page_of_the_tests(tmp_path: Path) -> None:
    """With fewer jobs, and once."""
    (command,) = [one for one in commands(TESTS.read_text("utf-8")) if one.startswith(f"{COMPARE} --embedded")]
    for slow, quick in (("--jobs 50000", "--jobs 200"), ("--runs 5", "--runs 1"), ("compare.json", f"{tmp_path}/all")):
        assert slow in command
        command = command.replace(slow, quick)
    assert "bare loop" in run(command.replace(".venv/bin/python", sys.executable))
    assert (tmp_path / "all").stat().st_size


def test_the_picture_of_the_readme_is_drawn_by_the_command_of_the_page_of_the_tests(tmp_path: Path) -> None:
    picture = ROOT / "tests/bench/drain.svg"
    (command,) = [one for one in commands(TESTS.read_text("utf-8")) if one.startswith(PLOT)]
    run(command.replace(".venv/bin/python", sys.executable).replace("tests/bench/drain.svg", f"{tmp_path}/drawn"))
    assert (tmp_path / "drawn").read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("page", ALL, ids=IDS)
def test_no_command_of_a_page_is_left_out(page: Path) -> None:
    tried = {
        *(*test_systemd_page.TRIED, *test_containers_page.TRIED),
        *commands(section(DEPLOY, "Monitoring")),
        *commands(section(GRAFANA, "Provision")),
        *commands(TESTS.read_text("utf-8")),
    }
    left_out = [one for one in commands(page.read_text("utf-8")) if one not in tried]
    assert [one for one in left_out if not one.startswith((*NEED_WHAT_NO_TEST_HAS,))] == []
    assert "```\n" not in re.sub(r"^```(console|toml)\n.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)


def test_what_needs_docker_or_a_cluster_is_still_there_and_the_page_says_that_it_is_not_run() -> None:
    text = DEPLOY.read_text("utf-8")
    for start in NEED_WHAT_NO_TEST_HAS:
        assert any(one.startswith(start) for one in commands(text)), start
    assert "No test here pulls an image, runs Docker or Compose, or applies anything to a cluster." in text


def test_every_command_that_the_runbook_names_is_taken(dsn: str) -> None:
    """With a job, a task and a queue in the places of ID, TASK and QUEUE. A job that waits is no dead letter."""
    job_id = run_pgworker("enqueue", "shop.greet", "-q", "mail", "--dsn", dsn).stdout.strip()
    words = {"ID": job_id, "TASK": "shop.greet", "QUEUE": "mail"}
    runbook = " ".join(section(DEPLOY, "Runbook: from alert to action").split())
    named = dict.fromkeys(re.findall(r"`(pgworker [^`]+)`", runbook))
    assert len(named) > 10
    for command in named:
        asked = [words.get(word, word) for word in command.split()[1:]]
        answered = run_pgworker(*asked, "--dsn", dsn)
        asks = "give --yes" in answered.stderr
        assert answered.returncode == 0 or asks or "not among the dead letters" in answered.stderr, answered.stderr


def metrics_tables() -> str:
    """As the page has them."""
    heads = {Scope.POOL: "of one pool", Scope.DATABASE: "of the database, the same from every pool"}
    return "\n".join(
        f"| {head} | kind | |\n|---|---|---|\n"
        + "".join(f"| `{spec.name}` | {kind(spec)} | {spec.help} |\n" for spec in CATALOGUE if spec.scope is scope)
        for scope, head in heads.items()
    )


def kind(spec: Spec) -> str:
    return f"{spec.kind.value} by {', '.join(spec.labels)}" if spec.labels else spec.kind.value


def test_the_page_has_every_metric_with_its_kind_its_labels_and_its_meaning() -> None:
    text = DEPLOY.read_text("utf-8")
    head, start, rest = text.partition("| of one pool |")
    _, end, tail = rest.partition("\n## Logs\n")
    if os.environ.get("PGWORKER_WRITE_METRICS"):
        DEPLOY.write_text(f"{head}{metrics_tables()}{end}{tail}")
        pytest.skip("written")
    assert f"{start}{rest}".startswith(metrics_tables()), "write it with PGWORKER_WRITE_METRICS=1"
