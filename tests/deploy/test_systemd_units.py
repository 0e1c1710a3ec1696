"""The units as systemd's own tools see them: understood to the last line, and closed where handlers need nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pgworker.config.settings import PoolSettings
from pgworker.errors import EXIT_CONFIGURATION, EXIT_UNAVAILABLE, EXIT_USAGE
from tests.process.pool import ROOT

UNITS = [ROOT / "deploy" / name for name in ("pgworker.service", "pgworker@.service")]
PROGRAM = "/opt/pgworker/venv/bin/pgworker"
HIGHEST_EXPOSURE = 1.5

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze: apt-get install systemd"
)


def settings(unit: Path) -> list[str]:
    return [line for line in unit.read_text().splitlines() if line and not line.startswith("#")]


def values(unit: Path, name: str) -> list[str]:
    return [line.partition("=")[2] for line in settings(unit) if line.startswith(f"{name}=")]


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_every_line(unit: Path, tmp_path: Path) -> None:
    """By what it prints: its exit code is 0 for an unknown key too. Another program stands in for ours."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    ran = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_hardly_exposed(unit: Path) -> None:
    """The threshold of systemd-analyze is in tenths."""
    threshold = f"--threshold={HIGHEST_EXPOSURE * 10:.0f}"
    command = ["systemd-analyze", "security", "--offline=true", threshold, "--json=short", str(unit)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    listed = [item for item in json.loads(ran.stdout) if item["exposure"]] if ran.stdout else []
    assert ran.returncode == 0, [(item["json_field"], item["exposure"]) for item in listed]


def test_the_template_differs_in_the_name_of_the_pool_only() -> None:
    one, template = (settings(unit) for unit in UNITS)
    assert [line.replace("%i.toml", "pgworker.toml").replace(", pool %i", "") for line in template] == one


def test_systemd_waits_for_longer_than_a_pool_takes_to_drain_by_default() -> None:
    defaults = PoolSettings(workers=1)
    for unit in UNITS:
        (seconds,) = values(unit, "TimeoutStopSec")
        assert int(seconds) > defaults.drain_timeout + 20, (
            "the drain, the recording of the last ends, the monitor's end"
        )


def test_a_start_that_fails_is_repeated_for_ever() -> None:
    for unit in UNITS:
        assert (values(unit, "StartLimitIntervalSec"), values(unit, "Restart")) == (["0"], ["always"])


def test_what_a_restart_can_not_mend_is_not_restarted() -> None:
    for unit in UNITS:
        (codes,) = values(unit, "RestartPreventExitStatus")
        assert codes.split() == [str(EXIT_USAGE), str(EXIT_CONFIGURATION)]
        assert str(EXIT_UNAVAILABLE) not in codes
