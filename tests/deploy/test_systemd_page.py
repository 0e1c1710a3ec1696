"""The sections "systemd" and "Logs" of deploy/README.md, tried out: every command is run on a private systemd.

Three things differ from what stands there. A wheel of this checkout is $WHEEL, and what it depends on comes from this
environment instead of a package index. `shop.py` is one that tells what the test wants to know. And nobody listens on
ports that other pools of this machine may have.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from pgworker import App
from tests.deploy.machine import Machine
from tests.process.pool import ROOT, eventually

PAGE = (ROOT / "deploy/README.md").read_text("utf-8")
SECTION, LOGS = (PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0] for title in ("systemd", "Logs"))
HERE = "/srv/checkout"

SHOP = """\
import sys
from pgworker import App
app = App()
@app.task
def greet(name: str) -> str:
    return f"{GREETING} {name}, from {sys.prefix}"
"""


def commands(block: str) -> list[str]:
    """Each begins with the prompt of root; lines without one belong to the command above."""
    return [text.rstrip("\n") for text in re.split(r"^# ", block, flags=re.MULTILINE)[1:]]


def blocks(section: str) -> list[list[str]]:
    return [commands(block) for block in re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)]


# Unpacked, so that one block more or fewer is an error of this module.
INSTALL, DATABASE, RUN, RELOAD, EDIT, TEMPLATE, UPGRADE, ROLLBACK = blocks(SECTION)
((FOLLOW, WARNINGS),) = blocks(LOGS)
TRIED = (
    *(*INSTALL, *DATABASE, *RUN, *RELOAD, *EDIT, *TEMPLATE, *UPGRADE, *ROLLBACK),
    *(FOLLOW, WARNINGS),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as a build leaves things behind."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "pgworker", source / "pgworker", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(made), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("no package index is at hand that has setuptools, to build a wheel")
    assert built.returncode == 0, built.stderr
    (found,) = made.glob("*.whl")
    return found


@pytest.mark.timeout(400)  # two virtual environments with pip, and what they install
def test_every_command_of_the_page_does_what_it_says(bare_machine: Machine, wheel: Path) -> None:
    systemd = bare_machine.systemd
    systemd.path("/srv").joinpath(wheel.name).write_bytes(wheel.read_bytes())
    systemd.path(HERE).mkdir()
    systemd.path(f"{HERE}/deploy").symlink_to(Path("/opt/test/0/deploy"))

    def run(block: list[str]) -> str:
        return "".join(run_one(command) for command in block)

    def run_one(command: str, **variables: str) -> str:
        environ = {"WHEEL": f"/srv/{wheel.name}", "PGHOST": "/run/postgresql", "PIP_NO_INDEX": "1", **variables}
        said = systemd.run("bash", "-euc", f"cd {HERE}\n{command}", environ=environ).stdout
        if (environment := re.fullmatch(r"python3 -m venv (\S+)", command)) is not None:
            bare_machine.let_import_dependencies(environment[1])
        return said

    def write_shop(greeting: str) -> None:
        systemd.write(f"{HERE}/shop.py", SHOP.replace("{GREETING}", greeting))

    for unit in ("pgworker", "pgworker@"):
        no_port = "[Service]\nEnvironment=PGWORKER_METRICS_LISTEN=off\n"
        systemd.write(f"/etc/systemd/system/{unit}.service.d/test.conf", no_port)
    write_shop("hello")
    run(INSTALL)
    run(DATABASE)
    status = run(RUN)
    assert 'Status: "' in status
    assert "of 2 workers ready, 0 jobs running" in status
    assert "the pool is ready" in status, "the journal"
    app = App(f"{bare_machine.server} dbname=app")
    greet = greeter(app)
    assert greet("default") == "hello Ada, from /opt/pgworker/0.1.0"
    write_shop("good evening")
    run(RELOAD)
    eventually(lambda: greet("default").startswith("good evening"), "the new app")
    run(EDIT)
    assert systemd.show("pgworker", "MemoryMax") == str(2 << 30)
    assert greet("default").startswith("good evening")
    job_id = enqueue(app, "default", "nom")
    eventually(lambda: job_id in systemd.journal("pgworker"), "its failure")
    assert "event=job_failed" in run_one(FOLLOW, JOB_ID=job_id)
    warnings = run_one(WARNINGS)
    assert job_id in warnings
    assert "the pool is ready" not in warnings
    both = run(TEMPLATE)
    assert "pgworker@mail.service" in both
    systemd.systemctl("stop", "pgworker")
    assert greet("mail").endswith("/0.1.0")
    systemd.systemctl("start", "pgworker")
    run(UPGRADE)
    assert greet("default").endswith("/0.2.0")
    run(ROLLBACK)
    assert greet("default").endswith("/0.1.0")
    assert systemd.systemctl("is-active", "pgworker", "pgworker@mail").split() == ["active", "active"]
    assert systemd.systemctl("is-enabled", "pgworker", "pgworker@mail").split() == ["enabled", "enabled"]
    app.close()


def greeter(app: App) -> Callable[[str], str]:
    """Enqueues a job on a queue and waits for its result."""

    def greet(queue: str) -> str:
        return str(app.job(UUID(enqueue(app, queue, "name"))).wait(timeout=30))

    return greet


def enqueue(app: App, queue: str, argument: str) -> str:
    """A greeting; its id. The task knows no other argument than `name`."""
    with psycopg.connect(app.dsn) as connection:
        statement = "select pgworker.enqueue('shop.greet', jsonb_build_object(%s::text, 'Ada'), queue => %s)"
        row = connection.execute(statement, [argument, queue]).fetchone()
    assert row is not None
    return str(row[0])
