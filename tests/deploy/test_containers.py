"""The files for containers, read by the tools that will read them, and held against each other and the package."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgworker.config.kinds import parse_size, parse_time
from pgworker.config.options import OPTIONS
from pgworker.config.settings import PoolSettings, parse_listen
from pgworker.errors import ConfigurationError
from pgworker.master import main as master
from pgworker.master.drain import LAST_CALL
from pgworker.monitor import vitals
from tests.deploy.dockerfile_steps import (
    DEPLOY,
    DOCKERFILE,
    ROOT,
    context_files,
    health_command,
    is_in_context,
    stages,
)

TOOLS = Path(sys.executable).parent
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("base", "migrate", "example", "example/migrate")
CUSTOM = ("ScaledObject", "PodMonitor")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
RUNTIME = stages()[-1]
UID = RUNTIME.last("USER").words[0]
PORT = parse_listen(next(step for step in RUNTIME.steps if step.name == "ENV").pairs["PGWORKER_METRICS_LISTEN"])[1]
MONITORS_END = 4.0
"""Seconds that the master gives it, with the kill after them."""
MARGIN = 5.0
"""Seconds that a node may take between TERM and what a process makes of it."""


def run(*command: str, stdin: str = "", cwd: Path = ROOT) -> str:
    """What a tool prints; the test fails when it is not content."""
    ended = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, f"{shlex.join(command)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="session")
def kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("no kubectl on this host: `kubectl kustomize` builds the manifests")
    return found


@pytest.fixture(scope="session")
def manifests(kubectl: str) -> dict[str, list[dict[str, Any]]]:
    """What each kustomization builds."""
    return {name: list(yaml.safe_load_all(run(kubectl, "kustomize", str(KUBERNETES / name)))) for name in OVERLAYS}


@pytest.fixture(scope="session")
def deployment(manifests: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return kind(manifests["base"], "Deployment")


def kind(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = (one for one in objects if one["kind"] == name)
    return found


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = workload["spec"]["template"]["spec"]
    return found


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod(workload)["containers"]
    return dict(found)


def pool_settings() -> dict[str, str]:
    lines = (KUBERNETES / "base/pgworker.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def longest_end(drain_timeout: str) -> float:
    """Seconds from TERM to the exit of a pool at worst: the drain, the kill, its records, the end of the monitor."""
    return parse_time(drain_timeout) + LAST_CALL + master._RECORDING + MONITORS_END


# The tools


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    assert run(str(TOOLS / "hadolint"), str(DOCKERFILE)) == ""


def test_compose_takes_the_compose_file() -> None:
    run(str(TOOLS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml"))


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_recent_kubernetes_takes_every_manifest(
    manifests: dict[str, list[dict[str, Any]]], name: str, tmp_path: Path
) -> None:
    objects = [one for one in manifests[name] if one["kind"] not in CUSTOM]
    assert objects
    file = tmp_path / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    run(str(TOOLS / "kubernetes-validate"), "--strict", str(file))


@pytest.fixture(scope="session")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that holds custom resources against the schemas of those who have made them, from npm."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no npm and node on this host: the schemas of KEDA and the Prometheus operator come with them")
    directory = tmp_path_factory.mktemp("schemas")
    wanted = ["@kubernetes-models/keda@2.0.0", "@kubernetes-models/prometheus-operator@6.0.0"]
    fetched = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(directory), *wanted],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"npm can't fetch {' and '.join(wanted)}: {fetched.stderr.strip()[-200:]}")
    return Path(shutil.copy(Path(__file__).with_name("schemas.mjs"), directory))


@pytest.mark.timeout(400)
def test_keda_and_the_prometheus_operator_take_their_resources(
    manifests: dict[str, list[dict[str, Any]]], schemas: Path
) -> None:
    good = [kind(manifests["example"], name) for name in CUSTOM]
    bad = deepcopy(good)
    bad[0]["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["policies"][0]["value"] = "one"
    bad[1]["spec"]["podMetricsEndpoints"][0]["interval"] = "often"
    said = run("node", str(schemas), stdin=json.dumps(good + bad), cwd=schemas.parent).splitlines()
    assert said[:2] == ["ok", "ok"]
    assert "must be integer" in said[2]
    assert "must match pattern" in said[3]


@pytest.mark.parametrize("component", ["keda", "podmonitor", "networkpolicy"])
def test_each_component_builds_without_the_others(kubectl: str, component: str) -> None:
    """Beside the example, which names all three."""
    directory = KUBERNETES / "example" / f"only-{component}"
    try:
        directory.mkdir()
        only = {"resources": ["../../base"], "components": [f"../../components/{component}"]}
        (directory / "kustomization.yaml").write_text(yaml.safe_dump(only))
        built = list(yaml.safe_load_all(run(kubectl, "kustomize", str(directory))))
    finally:
        shutil.rmtree(directory)
    base = {"ServiceAccount", "ConfigMap", "Deployment", "PodDisruptionBudget"}
    assert len({one["kind"] for one in built} - base) == 1


def test_promtool_takes_the_configuration_of_prometheus() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this host")
    run(promtool, "check", "config", "--syntax-only", str(DEPLOY / "compose/prometheus.yml"))


# The image


def test_whatever_the_image_copies_is_in_the_build_context_and_nothing_secret_is() -> None:
    files = {path.as_posix() for path in context_files()}
    assert {"setup.cfg", "pgworker/sql/schema.sql", "pgworker/py.typed", "deploy/example/shop.py"} <= files
    for stage in stages():
        for step in stage.steps:
            if step.name == "COPY" and "from" not in step.flags:
                for word in step.words[:-1]:
                    assert any(f"{file}/".startswith(f"{word.strip('/')}/") for file in files), word
    for path in (".git/config", ".env", "deploy/secrets/dsn", ".venv/bin/python", "pgworker/__pycache__/x.pyc"):
        assert not is_in_context(path), path


def test_the_image_runs_as_a_number_starts_without_a_shell_and_stops_by_term() -> None:
    assert re.fullmatch(r"[1-9][0-9]+:[1-9][0-9]+", UID)
    assert RUNTIME.last("ENTRYPOINT").words == ("pgworker",)
    assert RUNTIME.last("CMD").words == ("start",)
    assert RUNTIME.last("STOPSIGNAL").words == ("SIGTERM",)
    assert [step.name for step in RUNTIME.steps].count("RUN") == 0
    ast.parse(health_command()[-1])


def test_no_check_gives_up_before_the_master_has_replaced_a_monitor_that_is_stuck(deployment: dict[str, Any]) -> None:
    flags = RUNTIME.last("HEALTHCHECK").flags
    probe = container(deployment)["livenessProbe"]
    patience = {
        "HEALTHCHECK": parse_time(flags["interval"]) * (int(flags["retries"]) - 1),
        "livenessProbe": probe["periodSeconds"] * (probe["failureThreshold"] - 1),
    }
    unhealthy_for = master._MONITOR_STUCK - vitals.STUCK
    assert all(waits >= unhealthy_for + MARGIN for waits in patience.values()), patience


# What they say of each other, and of the package


def test_every_variable_is_a_setting_that_pgworker_knows_and_its_value_one_that_it_takes() -> None:
    known = {option.variable: option for option in OPTIONS}
    given = next(step for step in RUNTIME.steps if step.name == "ENV").pairs
    said = [given, pool_settings(), *(service.get("environment", {}) for service in SERVICES.values())]
    values = {}
    for variables in said:
        for name, value in variables.items():
            if name.startswith("PGWORKER_"):
                assert name in known, name
                values[known[name].key] = known[name].kind.parse(str(value))
    assert {"workers", "dsn_file", "memory_limit", "drain_timeout", "metrics_listen", "cpus"} <= values.keys()
    PoolSettings(**{"workers": 1, **{key: value for key, value in values.items() if key != "dsn_file"}})


def test_every_command_is_one_of_pgworkers(manifests: dict[str, list[dict[str, Any]]]) -> None:
    said = [list(RUNTIME.last("CMD").words)]
    said += [service["command"] for service in SERVICES.values() if is_ours(service) and "entrypoint" not in service]
    said += [
        container(one)["args"] for objects in manifests.values() for one in objects if "template" in one.get("spec", {})
    ]
    assert len(said) >= 6
    for words in {tuple(words) for words in said}:
        assert "Usage: pgworker" in run(sys.executable, "-m", "pgworker", *words, "--help")


def is_ours(service: dict[str, Any]) -> bool:
    return bool(service["image"] == SERVICES["pool"]["image"])


def test_whoever_kills_a_pool_waits_for_longer_than_it_may_take_to_end(deployment: dict[str, Any]) -> None:
    compose = SERVICES["pool"]
    waits = {
        "Compose": (parse_time(compose["stop_grace_period"]), compose["environment"]["PGWORKER_DRAIN_TIMEOUT"]),
        "Kubernetes": (pod(deployment)["terminationGracePeriodSeconds"], pool_settings()["PGWORKER_DRAIN_TIMEOUT"]),
    }
    for where, (grace, drain_timeout) in waits.items():
        assert grace >= longest_end(drain_timeout) + MARGIN, where


def test_the_workers_limits_are_below_that_of_their_container(deployment: dict[str, Any]) -> None:
    limits = container(deployment)["resources"]["limits"]
    settings = pool_settings()
    of_workers = int(settings["PGWORKER_WORKERS"]) * parse_size(settings["PGWORKER_MEMORY_LIMIT"])
    assert of_workers + (256 << 20) <= parse_size(limits["memory"].removesuffix("i"))
    pool = SERVICES["pool"]
    of_the_container = pool["deploy"]["resources"]["limits"]
    of_workers = int(of_the_container["cpus"]) * parse_size(pool["environment"]["PGWORKER_MEMORY_LIMIT"])
    assert of_workers + (256 << 20) <= parse_size(of_the_container["memory"])


def test_ports_probes_and_users_are_those_of_the_image(manifests: dict[str, list[dict[str, Any]]]) -> None:
    deployment = kind(manifests["base"], "Deployment")
    runs = container(deployment)
    assert RUNTIME.last("EXPOSE").words == (str(PORT),)
    assert runs["ports"] == [{"name": "metrics", "containerPort": PORT}]
    asked = {name: runs[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/healthz", "port": "metrics"},
        "liveness": {"path": "/healthz", "port": "metrics"},
        "readiness": {"path": "/readyz", "port": "metrics"},
    }
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORT)
    for workload in (deployment, kind(manifests["migrate"], "Job")):
        security = pod(workload)["securityContext"]
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == UID
    (scraped,) = yaml.safe_load((DEPLOY / "compose/prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scraped["dns_sd_configs"][0]["port"] == PORT
    assert scraped["dns_sd_configs"][0]["names"] == ["pool"]


def test_every_pod_is_as_restricted_as_kubernetes_can_make_it(manifests: dict[str, list[dict[str, Any]]]) -> None:
    for workload in (kind(manifests["example"], "Deployment"), kind(manifests["example/migrate"], "Job")):
        spec = pod(workload)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        runs = container(workload)
        assert runs["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert runs["image"] == "registry.example/shop:1"
        mounts = {mount["name"]: mount for mount in runs["volumeMounts"]}
        secrets = [volume for volume in spec["volumes"] if "secret" in volume]
        assert {volume["secret"]["defaultMode"] for volume in secrets} == {0o440}
        assert all(mounts[volume["name"]]["readOnly"] for volume in secrets)
        files = {"dsn": ("PGWORKER_DSN_FILE", "dsn"), "metrics-token": ("PGWORKER_METRICS_TOKEN_FILE", "token")}
        asked = [(*files[volume["name"]], mounts[volume["name"]]["mountPath"]) for volume in secrets]
        assert runs["env"] == [{"name": name, "value": f"{path}/{key}"} for name, key, path in asked]


def test_the_prometheus_operator_sends_the_token_that_the_pods_ask_for(
    manifests: dict[str, list[dict[str, Any]]],
) -> None:
    volumes = pod(kind(manifests["example"], "Deployment"))["volumes"]
    (mounted,) = (one["secret"]["secretName"] for one in volumes if one["name"] == "metrics-token")
    (endpoint,) = kind(manifests["example"], "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": mounted, "key": "token"}}


def test_an_image_that_other_hosts_may_reach_has_not_said_that_no_token_is_needed() -> None:
    """Compose has: its pools are in a network of their own, on which nothing is published."""
    given = next(step for step in RUNTIME.steps if step.name == "ENV").pairs
    assert "PGWORKER_METRICS_TOKEN_FILE" not in given
    with pytest.raises(ConfigurationError, match="needs --metrics-token-file FILE"):
        PoolSettings(workers=1, metrics_listen=given["PGWORKER_METRICS_LISTEN"])
    assert SERVICES["pool"]["environment"]["PGWORKER_METRICS_TOKEN_FILE"] == "off"
    assert "ports" not in SERVICES["pool"]
    assert {name for name, one in SERVICES.items() if "monitoring" in one["networks"]} == {
        "pool",
        "prometheus",
        "grafana",
    }


def test_selectors_find_the_pods_and_names_are_those_of_what_is_there(
    manifests: dict[str, list[dict[str, Any]]],
) -> None:
    objects = manifests["example"]
    deployment = kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    spread = [one["labelSelector"]["matchLabels"] for one in pod(deployment)["topologySpreadConstraints"]]
    chosen = [deployment["spec"]["selector"]["matchLabels"], *spread]
    chosen += [kind(objects, name)["spec"]["selector"]["matchLabels"] for name in ("PodDisruptionBudget", "PodMonitor")]
    chosen += [kind(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    assert all(found and found.items() <= labels.items() for found in chosen)
    assert kind(objects, "ScaledObject")["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "KEDA's"
    assert kind(objects, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"
    assert "annotations" not in deployment["spec"]["template"]["metadata"], "else scraped twice"
    assert pod(deployment)["serviceAccountName"] == kind(objects, "ServiceAccount")["metadata"]["name"]
    config = container(deployment)["envFrom"][0]["configMapRef"]["name"]
    assert config == kind(objects, "ConfigMap")["metadata"]["name"]


def test_every_file_of_the_manifests_belongs_to_a_kustomization() -> None:
    named = set()
    for file in KUBERNETES.rglob("kustomization.yaml"):
        read = yaml.safe_load(file.read_text("utf-8"))
        listed = read.get("resources", []) + [
            env for made in read.get("configMapGenerator", []) for env in made["envs"]
        ]
        named |= {(file.parent / name).resolve() for name in listed} | {file}
    assert {file for file in KUBERNETES.rglob("*") if file.is_file()} <= named


def test_keda_counts_by_a_metric_that_pools_have(manifests: dict[str, list[dict[str, Any]]]) -> None:
    (trigger,) = kind(manifests["example"], "ScaledObject")["spec"]["triggers"]
    assert re.findall(r"pgworker_\w+", trigger["metadata"]["query"]) == ["pgworker_queue_jobs"]
    assert "max by (queue, state)" in trigger["metadata"]["query"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert any('"pgworker_queue_jobs"' in file.read_text("utf-8") for file in (ROOT / "pgworker/observe").glob("*.py"))


# Compose


def test_every_file_that_compose_mounts_is_there_or_is_a_secret_that_git_ignores() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
        assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
        assert set(service["networks"]) <= COMPOSE["networks"].keys()
        build = service.get("build")
        assert build is None or (DEPLOY / build["context"] / build["dockerfile"]) == DEPLOY / ".." / "deploy/Dockerfile"
    for secret in COMPOSE["secrets"].values():
        assert Path(secret["file"]).parent == Path("secrets")
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def test_compose_publishes_nothing_but_to_this_host_and_holds_no_secret() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            assert "PASSWORD" not in name or name.endswith("_FILE"), name


def test_every_service_of_compose_has_limits_and_ours_no_rights() -> None:
    for name, service in SERVICES.items():
        if name != "migrate":  # runs for a moment
            assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}, name
        if is_ours(service):
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
