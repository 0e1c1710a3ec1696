"""The password of a login is nowhere that others can read: a canary, and a look at everything that a pool shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pgworker.db import embedded
from pgworker.db.migrate import migrate
from pgworker.db.roles import make_roles
from tests.process import jobs
from tests.process.pool import APP, ROOT, Pool, eventually, free_port
from tests.sql.actors import ask, ended

CANARY = "kanari/en:vogel@%41"
"""With what a URL must write in another way, so that a half of it would show too."""

SHOWS = ("kanari", "vogel", quote(CANARY, safe=""))


@dataclass(frozen=True, slots=True)
class Scene:
    """A server that asks the login of the pool for its password, and a superuser's connection to it."""

    owner: Connection[Any]
    host: str
    metrics: str

    def dsn(self, password: str = CANARY) -> str:
        secret = quote(password, safe="")
        return f"postgresql://canary_pool:{secret}@/pgworker?host={quote(self.host, safe='')}"

    def pages(self) -> str:
        return "".join(page(f"http://{self.metrics}/{name}") for name in ("metrics", "healthz", "readyz"))

    def rows(self) -> str:
        """Every row of the schema, and what the server says of its sessions."""
        tables = ask(
            self.owner,
            """select oid::regclass::text from pg_class
               where relnamespace = 'pgworker'::regnamespace and relkind in ('r', 'p', 'v')""",
        )
        texts = [ask(self.owner, f"select seen::text from {name} as seen") for name in (*tables, "pg_stat_activity")]
        return "\n".join(row for text in texts for row in text)


def page(url: str) -> str:
    try:
        with urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except HTTPError as error:
        return error.read().decode()


@pytest.fixture
def scene(directory: Path, binaries: Path | None) -> Iterator[Scene]:
    with embedded.start(directory, options={"fsync": "off"}, binaries=binaries) as server:
        migrate(server.dsn)
        make_roles(server.dsn)
        rules = directory / "data" / "pg_hba.conf"
        rules.write_text(f"local all canary_pool scram-sha-256\n{rules.read_text()}")
        with psycopg.connect(server.dsn, autocommit=True) as owner:
            owner.execute("select pg_reload_conf()")
            owner.execute("create role canary_pool login in role pgworker_worker")
            set_password(owner, CANARY)
            yield Scene(owner, str(conninfo_to_dict(server.dsn)["host"]), f"127.0.0.1:{free_port()}")


def set_password(owner: Connection[Any], password: str) -> None:
    owner.execute(psycopg.sql.SQL("alter role canary_pool password {}").format(psycopg.sql.Literal(password)))


@contextmanager
def launched(scene: Scene, log: Path, *options: str, **variables: str) -> Iterator[Pool]:
    command = [sys.executable, "-m", "pgworker", "start", "--app", APP, "-w", "2", "--metrics-listen", scene.metrics]
    with log.open("wb") as opened:
        process = subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables},
            stdin=subprocess.DEVNULL,
            stdout=opened,
            stderr=opened,
            start_new_session=True,
        )
    pool = Pool(process, log)
    try:
        yield pool
    finally:
        pool.kill()


def titles(pool: Pool) -> str:
    return "\n".join(pool.processes().values())


def leaks(*texts: str) -> list[str]:
    return [word for word in SHOWS if any(word in text for text in texts)]


def test_the_password_shows_nowhere_whatever_goes_wrong(scene: Scene, tmp_path: Path) -> None:
    with launched(scene, tmp_path / "pool.log", PGWORKER_DSN=scene.dsn()) as pool:
        pool.wait_for_log("the pool is ready")
        seen = [titles(pool)]
        scene.owner.execute("create table effect (job_id uuid)")  # a column too few, and nobody's to write to
        handles = jobs.app.enqueue_many(
            [
                jobs.effect.job(str(tmp_path), "refused by the server"),
                jobs.fail_for_a_judge_that_fails.job(str(tmp_path), "failed"),
                jobs.die.job(str(tmp_path), "died", "segfault"),
            ],
            scene.owner,
        )
        late = jobs.hold.using(scene.owner).options(timeout=0.5).enqueue(str(tmp_path), "late").id
        eventually(lambda: all(ended(scene.owner, job.id) for job in handles), "an execution of each")
        set_password(scene.owner, "another one")
        scene.owner.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'canary_pool'")
        pool.wait_for_log("password authentication failed")
        seen += [titles(pool), scene.pages()]
        set_password(scene.owner, CANARY)
        stack = "select error->>'traceback' from pgworker.job_executions where job_id = %s and outcome = 'timed_out'"
        eventually(lambda: ask(scene.owner, stack, late), "the stack of the one that was late", within=60)
        seen += [titles(pool), scene.pages(), scene.rows(), pool.log()]
    for shown in ("pgworker: master", "pgworker_jobs_finished_total", "wait_for_gate", "SIGSEGV", "canary_pool@"):
        assert any(shown in text for text in seen), "what was looked at is what people see"
    assert leaks(*seen) == []


def test_a_password_in_an_option_is_gone_from_the_titles_once_the_pool_runs(scene: Scene, tmp_path: Path) -> None:
    with launched(scene, tmp_path / "pool.log", "--dsn", scene.dsn()) as pool:
        pool.wait_for_log("the pool is ready")
        assert "pgworker: master" in titles(pool)
        assert leaks(titles(pool), pool.log()) == []


def test_a_wrong_password_is_told_without_it(scene: Scene, tmp_path: Path) -> None:
    with launched(scene, tmp_path / "pool.log", PGWORKER_DSN=scene.dsn(f"{CANARY}2")) as pool:
        assert pool.wait() == 78
        assert "password authentication failed" in pool.log()
        assert leaks(pool.log()) == []


def test_the_look_at_the_rows_would_find_it(scene: Scene) -> None:
    scene.owner.execute("select pgworker.enqueue('t', jsonb_build_object('dsn', %s::text))", [scene.dsn()])
    assert leaks(scene.rows()) == list(SHOWS)
