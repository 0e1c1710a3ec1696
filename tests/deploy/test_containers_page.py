"""The section on containers of deploy/README.md: what of it runs without Docker and without a cluster is run."""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgworker.config.files import read_own
from pgworker.config.options import BY_KEY
from pgworker.config.sources import accept_dsn, redact
from pgworker.config.token import read_token
from tests.deploy.dockerfile_steps import DEPLOY, ROOT

PAGE = (DEPLOY / "README.md").read_text("utf-8")
SECTION = PAGE.partition("## Containers and Kubernetes\n")[2].partition("\n## ")[0]
COMMANDS = [line.removeprefix("$ ") for line in SECTION.splitlines() if line.startswith("$ ")]
NEEDS_DOCKER = ("docker build ", "docker compose ")
NEEDS_A_CLUSTER = ("kubectl delete job ", "kubectl wait ", "kubectl rollout status ")
BUILT = "kubectl apply -k "
DRY = ("kubectl create ", "openssl rand -hex 32 | tr -d '\\n' | kubectl create ")


TRIED = [command for command in COMMANDS if not command.startswith((*NEEDS_DOCKER, *NEEDS_A_CLUSTER))]
"""What the tests here run: of `kubectl create` and `kubectl apply -k` all but the last step, which needs a cluster."""


def commands(*starts: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(starts)]


def files_for_compose() -> list[str]:
    return [command for command in COMMANDS if not command.startswith((*NEEDS_DOCKER, "kubectl ", *DRY))]


@pytest.fixture(scope="module")
def kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("no kubectl on this host")
    return found


def run(command: str, cwd: Path) -> str:
    ended = subprocess.run(["bash", "-euc", command], cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, f"{command}\n{ended.stderr}"
    return ended.stdout


def test_the_commands_for_compose_make_the_files_that_it_mounts(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    for command in files_for_compose():
        assert run(command, tmp_path) == ""
    secrets = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["secrets"]
    made = tmp_path / "deploy/secrets"
    assert {path.name for path in made.iterdir()} == {Path(secret["file"]).name for secret in secrets.values()}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {0o444}
    dsn = (made / "dsn").read_text()
    assert redact(accept_dsn(dsn, "the file")) == "pgworker@postgres/pgworker"
    assert (made / "postgres_password").read_text().strip() in dsn


def test_kubectl_makes_what_the_page_has_it_make(kubectl: str, tmp_path: Path) -> None:
    secrets = tmp_path / "deploy/secrets"
    secrets.mkdir(parents=True)
    for name in ("dsn", "migrate-dsn"):
        (secrets / name).write_text("postgresql://somebody@db/shop")
    made = [yaml.safe_load(run(f"{command} --dry-run=client --output=yaml", tmp_path)) for command in commands(*DRY)]
    assert [one["kind"] for one in made] == ["Namespace", "Secret", "Secret", "Secret"]
    keys = {one["metadata"]["name"]: list(one["data"]) for one in made[1:]}
    assert keys.keys() == mounted_secrets(kubectl)
    assert keys == {"pgworker-dsn": ["dsn"], "pgworker-migrate-dsn": ["dsn"], "pgworker-metrics": ["token"]}
    assert {one["metadata"]["namespace"] for one in made[1:]} == {made[0]["metadata"]["name"]}
    token = next(base64.b64decode(one["data"]["token"]) for one in made[1:] if "token" in one["data"])
    (tmp_path / "token").write_bytes(token)
    assert read_token(tmp_path / "token") == token, "without a line end, which not everybody strips"


def mounted_secrets(kubectl: str) -> set[str]:
    objects = [one for command in commands(BUILT) for one in built(kubectl, command)]
    pods: list[dict[str, Any]] = [
        one["spec"]["template"]["spec"] for one in objects if "template" in one.get("spec", {})
    ]
    return {volume["secret"]["secretName"] for pod in pods for volume in pod["volumes"] if "secret" in volume}


def built(kubectl: str, command: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(run(shlex.join([kubectl, "kustomize", command.removeprefix(BUILT)]), ROOT)))


def test_what_the_page_applies_is_in_the_namespace_and_under_the_names_that_it_says(kubectl: str) -> None:
    assert len(commands(BUILT)) == 2
    objects = [one for command in commands(BUILT) for one in built(kubectl, command)]
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in objects}
    namespaces = {one["metadata"]["namespace"] for one in objects}
    for command in commands(*NEEDS_A_CLUSTER):
        assert {f"--namespace={found}" for found in namespaces} <= set(shlex.split(command)), command
        (named,) = re.findall(r"\b(?:job|deployment)[ /]\S+", command)
        assert named.replace(" ", "/") in names


def test_docker_is_asked_for_files_services_and_an_image_that_are_there() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    for command in commands(*NEEDS_DOCKER):
        words = shlex.split(command)
        assert (ROOT / words[words.index("-f") + 1]).is_file()
        if "-t" in words and "app=../shop" not in words:
            assert words[words.index("-t") + 1] == compose["services"]["pool"]["image"]
        if words[1] == "build":
            assert words[-1] == ".", "the context is the root of the repository"
        if "exec" in words:
            assert words[words.index("exec") + 1] in compose["services"]


def test_no_command_is_left_out_here() -> None:
    known = (*NEEDS_DOCKER, *NEEDS_A_CLUSTER, BUILT, *DRY)
    assert [one for one in COMMANDS if one.startswith(known) or one in files_for_compose()] == COMMANDS
    assert not [one for one in files_for_compose() if "secrets" not in one]


def test_the_settings_that_the_page_shows_are_settings(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    file = tmp_path / "pgworker.toml"
    for text in (shown, (DEPLOY / "example/pgworker.toml").read_text("utf-8")):
        file.write_text(text)
        said = read_own(file, must_exist=True, is_strict=True)
        assert {"app", "queues"} <= said.keys() <= BY_KEY.keys()


def test_every_link_of_the_section_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", SECTION)
    assert links
    for link in links:
        assert (DEPLOY / link).exists(), link
