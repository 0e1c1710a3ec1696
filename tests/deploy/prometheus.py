"""A real Prometheus on a free port, with the configuration of deploy/prometheus, but a scrape each second."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from tests.process.pool import eventually, free_port

PROMETHEUS_FILES = Path(__file__).parents[2] / "deploy/prometheus"


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an answer, at the time of the question."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The HTTP API of a server that runs."""

    address: str

    def query(self, expression: str) -> list[Sample]:
        answer = self._ask("query", query=expression)
        assert answer["resultType"] == "vector", expression
        return [Sample(one["metric"], float(one["value"][1])) for one in answer["result"]]

    def label_values(self, label: str, selector: str) -> list[str]:
        """What Grafana asks for a variable."""
        found: list[str] = self._ask(f"label/{label}/values", **{"match[]": selector})
        return found

    def rules(self) -> list[Any]:
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def is_ready(self) -> bool:
        try:
            with urlopen(f"http://{self.address}/-/ready", timeout=5) as page:
                return bool(page.status == 200)
        except (URLError, ConnectionError):
            return False

    def _ask(self, what: str, **parameters: str) -> Any:
        with urlopen(f"http://{self.address}/api/v1/{what}?{urlencode(parameters)}", timeout=30) as page:
            answer = json.load(page)
        assert answer["status"] == "success", answer
        return answer["data"]


def tool(name: str) -> str:
    """The path of one of Prometheus' programs; skips the test if it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine: apt-get install prometheus")
    return found


@contextmanager
def start(directory: Path, targets: Sequence[str], token: Path | None = None) -> Iterator[Prometheus]:
    """Prometheus scraping `targets` as the job `pgworker` of the example; its data and log are in `directory`.

    With the token of a file, sent as the comment of the example says.
    """
    program = tool("prometheus")
    address = f"127.0.0.1:{free_port()}"
    configuration = directory / "prometheus.yml"
    configuration.write_text(yaml.safe_dump(_configuration(targets, token)))
    options = [f"--config.file={configuration}", f"--storage.tsdb.path={directory}/data", "--log.level=warn"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([program, *options, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        server = Prometheus(address)
        eventually(server.is_ready, lambda: (directory / "prometheus.log").read_text())
        yield server
    finally:
        process.kill()
        process.wait()


def _configuration(targets: Sequence[str], token: Path | None) -> Any:
    example = yaml.safe_load((PROMETHEUS_FILES / "prometheus.yml").read_text("utf-8"))
    example["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    example["rule_files"] = [str(PROMETHEUS_FILES / name) for name in example["rule_files"]]
    (job,) = (job for job in example["scrape_configs"] if job["job_name"] == "pgworker")
    job["static_configs"] = [{"targets": list(targets)}]
    if token is not None:
        job["authorization"] = {"credentials_file": str(token)}
    return {**example, "scrape_configs": [job]}
