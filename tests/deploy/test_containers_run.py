"""The image of deploy/Dockerfile, built by its own steps and run as PID 1, with a read-only root and without any right.

What stands in for Docker is in engine.py, with what it lacks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker import App
from pgworker.db import embedded
from pgworker.db.migrate import migrate
from tests.deploy import engine
from tests.deploy.dockerfile_steps import DEPLOY, health_command
from tests.deploy.engine import Container, Image
from tests.process.pool import DEADLINE, eventually

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(obstacle := engine.obstacle()), reason=f"a container is needed: {obstacle}"),
]

OURS = Path(__file__).parent / "container_app"
SECRET = "/run/secrets/dsn"
TOKEN_FILE = "/run/secrets/metrics_token"
TOKEN = "canary-of-the-metrics"
READY = "the pool is ready"

Start = Callable[..., Container]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the steps of the Dockerfile make of this repository; built by one of the processes that run these tests."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with (shared / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return engine.built(shared / "image") or engine.build(shared / "image")


@pytest.fixture
def containers(image: Image, tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """Starts containers for a DSN, which is a secret in a file; with the tests' app, unless another one is named."""
    with ExitStack() as running:

        def start(
            dsn: str, *command: str, app: Path | None = OURS, has_tmp: bool = False, **variables: str
        ) -> Container:
            socket = Path(str(conninfo_to_dict(dsn)["host"])) / f".s.PGSQL.{conninfo_to_dict(dsn).get('port', 5432)}"
            inside = "/run/postgresql/.s.PGSQL.5432"
            secret = tmp_path / "dsn"
            secret.write_text(make_conninfo(dsn, host="/run/postgresql", port=5432, password="canary") + "\n")
            binds = {socket: inside, secret: SECRET}
            if app is not None:
                copied = shutil.copytree(app, tmp_path / "app", dirs_exist_ok=True)
                for path in [copied, *copied.iterdir()]:
                    path.chmod(0o755)
                binds[copied] = "/app"
            token = tmp_path / "token"
            token.write_text(TOKEN)
            binds[token] = TOKEN_FILE
            given = {"PGWORKER_DSN_FILE": SECRET, "PGWORKER_METRICS_TOKEN_FILE": TOKEN_FILE, **variables}
            return running.enter_context(
                engine.run(image, tmp_path, *command, variables=given, binds=binds, has_tmp=has_tmp)
            )

        yield start


@pytest.fixture
def pool(login: Callable[..., str], containers: Callable[..., Container]) -> Start:
    """Starts a pool in a container, as a login that may only run pools, and returns when it is ready."""
    dsn = login("pgworker_worker")

    def start(**options: Any) -> Container:
        started = containers(dsn, **options)
        started.wait_for_log(READY)
        return started

    return start


@pytest.fixture
def result(dsn: str) -> Iterator[Callable[..., Any]]:
    """Enqueues a task by name, and returns what its job has returned."""
    with closing(App(dsn)) as app, psycopg.connect(dsn, autocommit=True) as connection:

        def wait(task: str, payload: str = "{}") -> Any:
            (job,) = connection.execute("select pgworker.enqueue(%s, %s::jsonb)", [task, payload]).fetchone() or ("",)
            return app.job(str(job)).wait(timeout=DEADLINE)

        yield wait


def health(container: Container) -> int:
    return container.execute(health_command()).returncode


def page(container: Container, path: str, token: str = "") -> int:
    """The status of a page of the pool's, asked for inside."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    ask = (
        "import http.client as h; c = h.HTTPConnection('127.0.0.1', 9464, timeout=10);"
        f" c.request('GET', '{path}', headers={headers}); print(c.getresponse().status)"
    )
    answer = container.execute(["python", "-c", ask])
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout)


# What the steps make


def test_the_image_has_pgworker_and_no_compiler_of_its_own(image: Image, tmp_path: Path) -> None:
    with engine.run(image, tmp_path, "--version") as container:
        assert container.wait() == 0
        assert container.log().startswith("pgworker ")
    programs = {path.name for path in (image.files / "opt/venv/bin").iterdir()}
    assert "pgworker" in programs
    assert not programs & {"pip", "gcc", "cc", "pytest"}
    assert {path.name for path in image.files.iterdir()} == {"app", "opt"}


def test_everybody_may_read_the_image_and_nobody_but_root_may_write_to_it(image: Image) -> None:
    for path in image.files.rglob("*"):
        mode = path.lstat().st_mode
        assert path.is_symlink() or mode & 0o004, path
        assert path.is_symlink() or not mode & 0o022, path


def test_the_example_app_works_off_what_its_load_enqueues_with_the_settings_of_kubernetes(
    containers: Callable[..., Container], roles_dsn: str, image: Image
) -> None:
    lines = (DEPLOY / "kubernetes/base/pgworker.env").read_text("utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    pool = containers(roles_dsn, app=None, **settings)
    pool.wait_for_log(READY)
    assert "orders, default" in pool.log()
    environment = image.environment | {"PGWORKER_DSN_FILE": SECRET}
    with (
        subprocess.Popen(pool.enter(["python", "load.py"]), env=environment) as load,
        psycopg.connect(roles_dsn, autocommit=True) as connection,
    ):
        counted = "select count(*) from pgworker.job_executions where outcome = 'succeeded'"
        eventually(lambda: (connection.execute(counted).fetchone() or (0,))[0] >= 8, "orders that are packed")
        (customers,) = (found.outside for found in pool.processes().values() if found.title == "python load.py")
        os.kill(customers, signal.SIGTERM)
        assert load.wait(DEADLINE) == 0
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


def test_migrate_in_the_image_makes_the_schema(containers: Callable[..., Container], blank_dsn: str) -> None:
    container = containers(blank_dsn, "migrate")
    assert container.wait() == 0
    assert "applied " in container.log()
    with psycopg.connect(blank_dsn) as connection:
        assert connection.execute("select pgworker.schema_version()").fetchone() != (0,)


# As PID 1


def test_a_pool_runs_as_pid_1_without_root_and_without_a_place_to_write(
    pool: Start, result: Callable[..., Any]
) -> None:
    container = pool()
    assert result("errands.who") == [65532, 65532, 1]
    assert container.processes()[1].title == "pgworker: master"
    assert result("errands.write_somewhere") == []
    assert health(container) == 0
    assert page(container, "/readyz") == 200
    assert [page(container, "/metrics", token) for token in (TOKEN, "", f"{TOKEN}0")] == [200, 401, 401]


def test_a_pool_of_whose_page_nobody_has_said_who_may_see_it_does_not_start(
    containers: Callable[..., Container], roles_dsn: str
) -> None:
    container = containers(roles_dsn, PGWORKER_METRICS_TOKEN_FILE="")
    assert container.wait() == 78
    assert "PGWORKER_METRICS_TOKEN_FILE), or off if your network" in container.log()


def test_handlers_write_to_tmp_if_there_is_one_and_nowhere_else(pool: Start, result: Callable[..., Any]) -> None:
    pool(has_tmp=True)
    assert result("errands.write_somewhere") == ["/tmp"]


def test_the_dsn_is_in_its_file_and_in_no_environment_title_or_log(pool: Start) -> None:
    container = pool()
    seen = container.execute(["sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ"])
    assert "pgworker: monitor" in seen.stdout
    assert "canary" not in seen.stdout + container.log()


def test_orphans_of_handlers_become_children_of_pid_1_and_leave_no_zombie(
    pool: Start, result: Callable[..., Any]
) -> None:
    container = pool()
    orphan = result("errands.leave_an_orphan")
    found = container.processes()[orphan]
    assert (found.parent, found.state) == (1, "S")
    os.kill(found.outside, signal.SIGKILL)
    eventually(lambda: orphan not in container.processes(), "an orphan that is reaped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_pid_1(pool: Start, number: int, dsn: str) -> None:
    container = pool()
    with closing(App(dsn)) as app, psycopg.connect(dsn, autocommit=True) as connection:
        enqueue = "select pgworker.enqueue('errands.finish_after_a_while', '{}')"
        (job,) = connection.execute(enqueue).fetchone() or ("",)
        running = "select count(*) from pgworker.job_progress"
        eventually(lambda: connection.execute(running).fetchone() == (1,), "a job that runs")
        container.send(number)
        assert container.wait() == 0
        assert app.job(str(job)).wait(timeout=5) == "finished"
    assert "drained" in container.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_pool_is_ready_ends_it_at_once_though_pid_1_has_no_default_for_it(
    containers: Callable[..., Container], roles_dsn: str, number: int
) -> None:
    container = containers(roles_dsn, PGWORKER_APP="slow:app")
    container.wait_for_log("importing")
    container.send(number)
    assert container.wait() in (0, 130)
    assert READY not in container.log()


def test_kill_9_of_pid_1_ends_everything_and_another_pool_does_what_it_ran(pool: Start, dsn: str) -> None:
    container = pool(PGWORKER_LEASE_TTL="2s")
    with closing(App(dsn)) as app, psycopg.connect(dsn, autocommit=True) as connection:
        (job,) = connection.execute(
            "select pgworker.enqueue('errands.last', '{\"until_killed\": true}')"
        ).fetchone() or ("",)
        running = "select count(*) from pgworker.job_leases"
        eventually(lambda: connection.execute(running).fetchone() == (1,), "a claim")
        container.send(signal.SIGKILL)
        assert container.wait() != 0
        eventually(lambda: not container.processes(), "nothing left")
        pool(PGWORKER_LEASE_TTL="2s")
        assert app.job(str(job)).wait(timeout=DEADLINE) == "at last"


# Health


def test_the_health_check_fails_when_the_monitor_is_stuck(pool: Start) -> None:
    container = pool()
    assert health(container) == 0
    (monitor,) = (found.outside for found in container.processes().values() if found.title == "pgworker: monitor")
    os.kill(monitor, signal.SIGSTOP)
    assert health(container) != 0


def test_without_its_database_a_pool_is_alive_and_not_ready(
    containers: Callable[..., Container], directory: Path, binaries: Path | None
) -> None:
    with embedded.start(directory, options={"fsync": "off"}, binaries=binaries) as server:
        migrate(server.dsn)
        container = containers(server.dsn)
        container.wait_for_log(READY)
        assert (page(container, "/readyz"), page(container, "/healthz")) == (200, 200)
    eventually(lambda: page(container, "/readyz") == 503, "a pool that is not ready")
    assert health(container) == 0
