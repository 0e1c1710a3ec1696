"""The password of a login is nowhere that others can read: a canary, and a look at everything that a pool shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker import App
from pgworker.db import embedded
from pgworker.db.migrate import migrate
from pgworker.db.roles import make_roles
from pgworker.db.scratch import scratch_directory
from pgworker.errors import ConfigurationError, DatabaseUnavailable
from tests.process import jobs, pool
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

    def conninfo(self, **more: str) -> str:
        return make_conninfo("", user="canary_pool", host=self.host, dbname="pgworker", **more)

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


@pytest.fixture(scope="module")
def canary_server(binaries: Path | None) -> Iterator[embedded.Server]:
    """A server of these tests alone, that trusts nobody who says he is `canary_pool`."""
    with (
        scratch_directory() as directory,
        embedded.start(directory, options={"fsync": "off"}, binaries=binaries) as server,
    ):
        migrate(server.dsn)
        make_roles(server.dsn)
        rules = directory / "data" / "pg_hba.conf"
        rules.write_text(f"local all canary_pool scram-sha-256\n{rules.read_text()}")
        with psycopg.connect(server.dsn, autocommit=True) as owner:
            owner.execute("select pg_reload_conf()")
            owner.execute("create role canary_pool login in role pgworker_worker, pgworker_admin")
        yield server


@pytest.fixture
def scene(canary_server: embedded.Server) -> Iterator[Scene]:
    with psycopg.connect(canary_server.dsn, autocommit=True) as owner:
        set_password(owner, CANARY)
        yield Scene(owner, str(conninfo_to_dict(canary_server.dsn)["host"]), f"127.0.0.1:{free_port()}")
        owner.execute("delete from pgworker.job_queue; delete from pgworker.job_leases")  # what would run in the next


def set_password(owner: Connection[Any], password: str) -> None:
    owner.execute(psycopg.sql.SQL("alter role canary_pool password {}").format(psycopg.sql.Literal(password)))


def environment(**variables: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT), **variables}


def launched(scene: Scene, log: Path, *options: str, **variables: str) -> AbstractContextManager[Pool]:
    command = [sys.executable, "-m", "pgworker", "start", "--app", APP, "-w", "2", "--metrics-listen", scene.metrics]
    return pool.launched([*command, *options], log, environment(**variables))


def titles(pool: Pool) -> str:
    return "\n".join(pool.processes().values())


def told_to_children(pool: Pool) -> str:
    """Command lines and environments of all but the master, as the kernel has them."""
    texts = []
    for pid in pool.processes().keys() - {pool.master}:
        for name in ("cmdline", "environ"):
            with suppress(OSError):
                texts.append(Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace"))
    return "\n".join(texts)


def leaks(*texts: str) -> list[str]:
    return [word for word in SHOWS if any(word in text for text in texts)]


def test_the_password_shows_nowhere_whatever_goes_wrong(scene: Scene, tmp_path: Path) -> None:
    graces = ("--cancel-grace", "0.2s", "--term-grace", "0.2s")
    with launched(scene, tmp_path / "pool.log", *graces, PGWORKER_DSN=scene.dsn()) as pool:
        pool.wait_for_log("the pool is ready")
        seen = [titles(pool)]
        scene.owner.execute(
            "create table if not exists effect (job_id uuid)"
        )  # a column too few, and nobody's to write to
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


def test_a_server_that_is_down_and_one_that_is_elsewhere_are_told_without_it(scene: Scene, tmp_path: Path) -> None:
    for number, dsn in enumerate(
        (
            scene.dsn().replace(quote(scene.host, safe=""), quote(str(tmp_path), safe="")),
            f"postgresql://canary_pool:{quote(CANARY, safe='')}@127.0.0.1:1/pgworker",
            f"postgresql://canary_pool:{quote(CANARY, safe='')}@nowhere.invalid/pgworker",
            f"host=127.0.0.1 port=1 user=canary_pool password='{CANARY}'",
        )
    ):
        with launched(scene, tmp_path / f"pool{number}.log", "--metrics-listen", "off", PGWORKER_DSN=dsn) as pool:
            assert pool.wait() == 69
            assert "canary_pool@" in pool.log()
            assert leaks(pool.log()) == []


MANGLED = (
    "postgresql://canary_pool:{0}@[/pgworker",
    "postgresql://canary_pool:{0}@host:port/pgworker",
    "postgresql://canary_pool:{0}/pgworker",
    "postgresq://canary_pool:{0}@host/pgworker",
    "postgresql://canary_pool:{0}@host/pgworker?no_such_option=1",
    "postgresql://canary_pool:%zz{0}@host/pgworker",
    "host=h user=canary_pool password={0} dbname",
    "host=h user=canary_pool password='{0}",
    "host=h user=canary_pool pasword={0}",
    "{0}",
)
"""What a hurried hand makes of a DSN."""


@pytest.mark.parametrize("mangled", MANGLED)
def test_a_dsn_that_can_not_be_read_is_refused_without_a_word_of_it(mangled: str, tmp_path: Path) -> None:
    """Of each way in: option, variable, file; and of `App(dsn)`, whose error a handler's traceback would have."""
    dsn = mangled.format(CANARY)
    app = App(dsn)
    with pytest.raises((ConfigurationError, DatabaseUnavailable)) as caught:
        app.enqueue_many([jobs.quick.job(str(tmp_path), "x")])
    told = "".join(traceback.format_exception(caught.value))
    assert leaks(told) == []
    app.close()


def ways(scene: Scene, directory: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Options and variables with which the password comes in, each way with the same login."""
    plain = scene.conninfo()
    secret = make_conninfo("", password=CANARY).removeprefix("password=").strip("'")
    directory.joinpath("dsn").write_text(f"{scene.dsn()}\n")
    directory.joinpath("pgworker.toml").write_text(f"dsn = {json.dumps(scene.dsn())}\n")
    directory.joinpath("pgpass").write_text(f"*:*:*:canary_pool:{CANARY.replace(':', chr(92) + ':')}\n")
    directory.joinpath("pgpass").chmod(0o600)
    service = f"[canary]\nhost={scene.host}\nuser=canary_pool\ndbname=pgworker\npassword={CANARY}\n"
    directory.joinpath("services").write_text(service)
    assert secret == CANARY
    return {
        "an option": (["--dsn", scene.dsn()], {}),
        "an option with words": (["--dsn", scene.conninfo(password=CANARY)], {}),
        "a variable": ([], {"PGWORKER_DSN": scene.dsn()}),
        "the variable of others": ([], {"DATABASE_URL": scene.dsn().replace("postgresql:", "postgres:")}),
        "a file": (["--dsn-file", str(directory / "dsn")], {}),
        "a file of settings": (["--config", str(directory / "pgworker.toml")], {}),
        "libpq's variable": (["--dsn", plain], {"PGPASSWORD": CANARY}),
        "libpq's file": (["--dsn", plain], {"PGPASSFILE": str(directory / "pgpass")}),
        "a service": (["--dsn", "service=canary"], {"PGSERVICEFILE": str(directory / "services")}),
    }


def test_however_the_password_comes_in_it_shows_nowhere(scene: Scene, tmp_path: Path) -> None:
    """Not in logs with everything in them, titles, stacks, pages or rows; nor has a child an environment with it that
    its pool was not given."""
    seen: list[str] = []
    pools: dict[str, Pool] = {}
    talkative = ("-w", "1", "--log-level", "debug", "--log-format", "json")
    with ExitStack() as opened:
        for name, (options, variables) in ways(scene, tmp_path).items():
            listen = () if name == "a file" else ("--metrics-listen", "off")
            log = tmp_path / f"{name}.log"
            pools[name] = opened.enter_context(launched(scene, log, *talkative, *listen, *options, **variables))
        for pool in pools.values():
            pool.wait_for_log("the pool is ready")
        made = jobs.app.enqueue_many(
            [jobs.effect.job(str(tmp_path), f"refused {number}") for number in range(40)]
            + [jobs.quick.job(str(tmp_path), f"quick {number}") for number in range(100)],
            scene.owner,
        )
        eventually(lambda: all(ended(scene.owner, job.id) for job in made), "an execution of each")
        for name, pool in pools.items():
            pool.send(signal.SIGUSR1)
            pool.wait_for_log('"event": "stack"')
            if not ways(scene, tmp_path)[name][1]:
                seen.append(told_to_children(pool))
        seen += [titles(pool) for pool in pools.values()]
        seen += [scene.pages(), scene.rows()]
        for pool in pools.values():
            pool.send(signal.SIGTERM)
        seen += [pool.log() for pool in pools.values() if pool.wait() == 0]
    assert len([text for text in seen if '"event": "drained"' in text]) == len(pools)
    assert leaks(*seen) == []


def test_a_password_that_is_changed_under_a_pool_shows_in_no_error_of_a_job(scene: Scene, tmp_path: Path) -> None:
    """`ctx.transaction()` connects when it is first used: what it says then is stored and logged."""
    with launched(scene, tmp_path / "pool.log", PGWORKER_DSN=scene.dsn()) as pool:
        pool.wait_for_log("the pool is ready")
        set_password(scene.owner, "another one")
        job = jobs.effect.using(scene.owner).enqueue(str(tmp_path), "late").id
        eventually(lambda: ended(scene.owner, job), "an execution")
        pool.wait_for_log("job_failed")
        told = ask(scene.owner, "select error::text from pgworker.job_executions where job_id = %s", job)
        assert "password authentication failed" in told[0]
        assert leaks(scene.rows(), pool.log()) == []
        set_password(scene.owner, CANARY)


COMMANDS = ("config show --origin", "status --json", "workers", "jobs list", "migrate", "top --once", "enqueue nothing")


def test_no_command_prints_it_whether_it_works_or_not(scene: Scene) -> None:
    asked = [(words, scene.dsn()) for words in COMMANDS]
    asked += [(words, scene.dsn(f"wrong{CANARY}")) for words in ("status", "migrate")]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "pgworker", *words.split()],
            env=environment(PGWORKER_DSN=dsn),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words, dsn in asked
    ]
    shown = [command.communicate(timeout=60)[0] for command in running]
    assert [command.returncode for command in running] == [0] * len(COMMANDS) + [78, 78], shown
    assert "canary_pool@" in shown[0]
    assert leaks(*shown) == []


def test_no_unit_of_systemd_leaves_a_core_with_it() -> None:
    for unit in ("pgworker.service", "pgworker@.service"):
        assert "\nLimitCORE=0\n" in (ROOT / "deploy" / unit).read_text()


def test_the_look_at_the_rows_would_find_it(scene: Scene) -> None:
    with scene.owner.transaction(force_rollback=True):
        scene.owner.execute("select pgworker.enqueue('t', jsonb_build_object('dsn', %s::text))", [scene.dsn()])
        assert leaks(scene.rows()) == list(SHOWS)
