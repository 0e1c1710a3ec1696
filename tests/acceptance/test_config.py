"""`pgworker config show`, and what other commands take from the same layers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pgworker.config.options import OPTIONS
from tests.acceptance.test_cli import SECRET, Finished, command, environment


def run(directory: Path, *words: str, **variables: str) -> Finished:
    return subprocess.run(
        command(*words),
        cwd=directory,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[tool.pgworker]\napp = "shop:app"\nworkers = 9\n')
    (tmp_path / "pgworker.toml").write_text(
        f'workers = 4\ndsn = "postgresql://me:{SECRET}@db.example/shop"\ndrain_timeout = "1m"\n'
    )
    return tmp_path


def test_every_setting_is_shown_with_its_origin_and_without_the_password(project: Path) -> None:
    shown = run(project, "config", "show", "--origin", PGWORKER_QUEUES="mail,default", PGWORKER_PRELOAD="yes")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert SECRET not in shown.stdout
    lines = shown.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    rows = {line.split()[0]: line.split(None, 1)[1] for line in lines[1:]}
    assert list(rows) == [option.key for option in OPTIONS]
    columns = {key: [cell.strip() for cell in row.split("  ") if cell.strip()] for key, row in rows.items()}
    assert columns["app"] == ["shop:app", "pyproject.toml: app"]
    assert columns["workers"] == ["4", "pgworker.toml: workers"]
    assert columns["dsn"] == ["me@db.example/shop", "pgworker.toml: dsn"]
    assert columns["queues"] == ["mail, default", "PGWORKER_QUEUES"]
    assert columns["preload"] == ["true", "PGWORKER_PRELOAD"]
    assert columns["drain_timeout"] == ["60s", "pgworker.toml: drain_timeout"]
    assert columns["lease_ttl"] == ["60s", "default"]
    assert columns["max_jobs"] == ["off", "default"]
    assert "ORIGIN" not in run(project, "config", "show").stdout


def test_as_json_each_setting_is_an_object(project: Path) -> None:
    shown = run(project, "config", "show", "--json", "--origin", PGWORKER_QUEUES="mail,default")
    assert SECRET not in shown.stdout
    found = {one.pop("setting"): one for one in map(json.loads, shown.stdout.splitlines())}
    assert found["dsn"] == {"value": "me@db.example/shop", "origin": "pgworker.toml: dsn"}
    assert found["queues"] == {"value": ["mail", "default"], "origin": "PGWORKER_QUEUES"}
    assert found["drain_timeout"] == {"value": 60.0, "origin": "pgworker.toml: drain_timeout"}


def test_a_secret_file_is_named_and_not_read(tmp_path: Path) -> None:
    files = {"PGWORKER_DSN_FILE": "/nowhere/dsn", "PGWORKER_METRICS_TOKEN_FILE": "/nowhere/token"}
    shown = run(tmp_path, "config", "show", "--origin", **files)
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["dsn_file", "/nowhere/dsn", "PGWORKER_DSN_FILE"] in rows
    assert ["metrics_token_file", "/nowhere/token", "PGWORKER_METRICS_TOKEN_FILE"] in rows


def test_a_token_that_nobody_has_spoken_of_is_shown_otherwise_than_one_that_is_off(tmp_path: Path) -> None:
    for variables, row in (
        ({}, ["metrics_token_file", "-", "default"]),
        ({"PGWORKER_METRICS_TOKEN_FILE": "off"}, ["metrics_token_file", "off", "PGWORKER_METRICS_TOKEN_FILE"]),
    ):
        shown = run(tmp_path, "config", "show", "--origin", **variables)
        assert row in [line.split() for line in shown.stdout.splitlines()]
    for variables, value in (({}, ""), ({"PGWORKER_METRICS_TOKEN_FILE": "off"}, None)):
        shown = run(tmp_path, "config", "show", "--json", **variables)
        assert {"setting": "metrics_token_file", "value": value} in map(json.loads, shown.stdout.splitlines())


def test_an_address_of_other_hosts_is_refused_there_too_unless_there_is_a_token_or_off(tmp_path: Path) -> None:
    """Whichever layers say the two."""
    (tmp_path / "pgworker.toml").write_text('metrics_listen = "0.0.0.0:9464"\n')
    refused = run(tmp_path, "config", "show")
    assert (refused.returncode, refused.stdout) == (78, "")
    assert "beyond this host, needs --metrics-token-file FILE" in refused.stderr
    for said in ("off", "/nowhere/token"):
        assert run(tmp_path, "config", "show", PGWORKER_METRICS_TOKEN_FILE=said).returncode == 0


def test_variables_that_look_like_settings_and_are_none_are_told(tmp_path: Path) -> None:
    variables = {"PGWORKER_WOKERS": "3", "PGWORKER_DSN_FIEL": "x", "PGWORKER_TEST_DSN": "x", "PGWORKER_STORM_SEED": "1"}
    shown = run(tmp_path, "config", "show", PGWORKER_CONFIG="", **variables)
    assert shown.returncode == 0
    assert shown.stderr.splitlines() == [
        "pgworker: mind that PGWORKER_WOKERS is no setting; did you mean PGWORKER_WORKERS?",
        "pgworker: mind that PGWORKER_DSN_FIEL is no setting; did you mean PGWORKER_DSN_FILE?",
    ]


def test_a_mistake_in_a_file_ends_it_with_78(tmp_path: Path) -> None:
    (tmp_path / "pgworker.toml").write_text("wokers = 4\n")
    refused = run(tmp_path, "config", "show")
    assert (refused.returncode, refused.stdout) == (78, "")
    assert refused.stderr == "pgworker: pgworker.toml: there is no setting 'wokers'; did you mean workers?\n"


def test_other_commands_find_their_database_there_too(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{dsn}\n")
    (tmp_path / "mail.toml").write_text('dsn_file = "secret"\nworkers = 2\n')
    assert "no database is named" in run(tmp_path, "status").stderr
    assert run(tmp_path, "status", PGWORKER_DNS="x").stderr.endswith("did you mean PGWORKER_DSN?\n")
    for words in ("status --config mail.toml", "--config mail.toml queues list"):
        assert run(tmp_path, *words.split()).returncode == 0
    assert run(tmp_path, "status", PGWORKER_CONFIG="mail.toml").returncode == 0
    (tmp_path / "mail.toml").rename(tmp_path / "pgworker.toml")
    assert run(tmp_path, "jobs", "list").returncode == 0
