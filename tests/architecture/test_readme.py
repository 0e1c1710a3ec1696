"""README.md, tried out: every command and every block of code of it is run as its reader would, and does what it says.

Three things differ from what stands there. Commands run in a temporary directory, with this environment's `pgworker` on
the PATH. The pools get a metrics port of their own, as somebody's pool may have the usual one. And the DSN of "a
PostgreSQL of your own" is replaced by that of the tests' server.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgworker import errors
from tests.process.pool import Pool, eventually
from tests.sql.actors import statuses
from tests.sql.history import enqueue_ago, finish_ago, partitions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
THEIR_DSN = "postgresql://app@db.example/app"
THEIR_PORT = "127.0.0.1:9464"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


# Unpacked, so that one block more or fewer is an error of this module.
APP, ENQUEUE = blocks("python")
EMBEDDED, LOOK, OWN, PRUNE = ([line.removeprefix("$ ") for line in block.splitlines()] for block in blocks("console"))
(SQL,) = blocks("sql")


class Shell:
    """A terminal of the reader's: his directory, with shop.py, and what he has exported there."""

    def __init__(self, directory: Path, pools: ExitStack) -> None:
        self.directory = directory
        self._pools = pools
        self._exports: list[str] = []
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "PGWORKER_PG_BINDIR": os.environ.get("PGWORKER_TEST_PG_BINDIR", ""),
        }

    def run(self, line: str) -> str:
        """What a command prints; an export is remembered for the following ones."""
        if line.startswith("export "):
            self._exports.append(line)
        ran = subprocess.run(
            ["bash", "-c", self._script(line)],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, ""), line
        return ran.stdout

    def start(self, line: str) -> Pool:
        """Start a pool in the foreground of a terminal of its own, and return when it is ready."""
        log_file = self.directory / "terminal.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", self._script(f"exec {line}")],
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        pool = Pool(process, log_file)
        self._pools.callback(lambda: print(pool.log()))  # noqa: T201  pytest shows it when the test fails
        self._pools.callback(pool.kill)
        pool.wait_for_log("the pool is ready")
        return pool

    def _script(self, line: str) -> str:
        return "\n".join([*self._exports, line])


@pytest.fixture
def shell(directory: Path) -> Iterator[Shell]:
    (directory / "shop.py").write_text(APP)
    with ExitStack() as pools:
        yield Shell(directory, pools)


def press_ctrl_c(pool: Pool) -> int:
    """As a terminal does: SIGINT to everything in the foreground. Returns the exit code."""
    os.killpg(pool.master, signal.SIGINT)
    return pool.wait()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


def test_the_smallest_app_runs_a_job_on_a_private_postgresql_and_ctrl_c_drains_it(shell: Shell) -> None:
    (start,) = EMBEDDED
    assert "--metrics-listen" not in start
    pool = shell.start(f"{start} --metrics-listen off")
    export, enqueue, jobs_list, status = LOOK
    shell.run(export)
    job_id = shell.run(enqueue).strip()
    eventually(lambda: re.search(rf"^{job_id} +succeeded .*shop\.greet", shell.run(jobs_list), re.MULTILINE), "the job")
    host = re.escape(socket.gethostname())
    eventually(lambda: re.search(rf"^{host} +2 ", shell.run(status), re.MULTILINE), "a host with two workers")
    assert "hello Ada" in shell.run(f"pgworker jobs show {job_id}")
    assert press_ctrl_c(pool) == 0
    assert "drained" in pool.log()
    assert (shell.directory / ".pgworker" / "data").is_dir()
    assert not (shell.directory / ".pgworker" / "data" / "postmaster.pid").exists(), "its server has ended with it"


def test_a_pool_on_a_postgresql_of_ones_own_runs_what_python_and_sql_enqueue(shell: Shell, blank_dsn: str) -> None:
    export, migrate, start = OWN
    assert THEIR_DSN in export
    assert THEIR_PORT in start
    shell.run(export.replace(THEIR_DSN, shlex.quote(blank_dsn)))
    assert shell.run(migrate).startswith("applied 0001_")
    address = f"127.0.0.1:{free_port()}"
    pool = shell.start(start.replace(THEIR_PORT, address))
    eventually(lambda: len(pool.workers) == 8, "eight workers")
    with psycopg.connect(blank_dsn, autocommit=True) as connection:
        connection.execute("create table payments (order_id integer not null, key uuid not null unique)")
        shell.run(f"python -c {shlex.quote(ENQUEUE_PROGRAM)}")
        greeted = greet_in_sql(blank_dsn)

        def ask(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
            return connection.execute(statement, parameters).fetchall()

        eventually(lambda: ask("select count(*) from payments") == [(1002,)], "every payment")
        eventually(lambda: ask("select pgworker.job_status(%s)", greeted) == [("succeeded",)], "the greeting")
        assert ask("select result from pgworker.job_executions where job_id = %s", greeted) == [("hello Ada",)]
        paid = Counter(order for (order,) in ask("select order_id from payments"))
        assert paid == Counter(range(1000)) + Counter({42: 2}), "each of them exactly once"
        tomorrow = ask("select priority, run_at - now() > interval '23 hours' from pgworker.job_queue")
        assert tomorrow == [(9, True)]
        finished = 'pgworker_jobs_finished_total{outcome="succeeded",queue="default",task="shop.charge"}'
        eventually(lambda: scraped(address, finished) == 1002, "the scrape says so too")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


ENQUEUE_PROGRAM = f"""
import os
from datetime import datetime, timedelta, timezone
import psycopg
from shop import app, charge

tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
conn = psycopg.connect(os.environ["PGWORKER_DSN"])

{ENQUEUE}

def enqueued():
    query = "select count(*) from pgworker.jobs where payload->>'order_id' = '42'"
    with psycopg.connect(os.environ["PGWORKER_DSN"]) as elsewhere:
        return elsewhere.execute(query).fetchone()[0]

assert enqueued() == 3, "the one in our transaction is not there yet"
conn.commit()
assert enqueued() == 4
"""
"""What a reader has at hand when he writes the lines of the block: the app, a connection, and a time."""


def greet_in_sql(dsn: str) -> object:
    """Enqueue as the block says: what is rolled back was never enqueued."""
    with psycopg.connect(dsn) as connection:
        undone = connection.execute(SQL.encode()).fetchall()
        connection.rollback()
        ((job_id,),) = connection.execute(SQL.encode()).fetchall()
        connection.commit()
        found = connection.execute("select count(*) from pgworker.jobs where id = any(%s)", [[undone[0][0], job_id]])
        assert found.fetchall() == [(1,)]
    return job_id


def scraped(address: str, sample: str) -> float:
    """The value of one sample, written as on the page."""
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    for one in (one for family in families for one in family.samples):
        labels = ",".join(f'{name}="{value}"' for name, value in sorted(one.labels.items()))
        if f"{one.name}{{{labels}}}" == sample:
            return one.value
    return 0.0


def test_what_would_be_dropped_is_shown_and_then_dropped(shell: Shell, dsn: str) -> None:
    dry_run, older = PRUNE
    shell.run(f"export PGWORKER_DSN={shlex.quote(dsn)}")
    with psycopg.connect(dsn, autocommit=True) as connection:
        finish_ago(connection, enqueue_ago(connection, 9, 2), 8)
        waits = enqueue_ago(connection, 5)
        there = partitions(connection)
        assert [line.split()[-2:] for line in shell.run(dry_run).splitlines()[1:]] == [["would", "drop"]]
        assert partitions(connection) == there
        assert [line.split()[-1] for line in shell.run(older).splitlines()[1:]] == ["dropped"] * 2
        assert len(partitions(connection)) == len(there) - 1, "two days less, and what is kept of them"
        assert statuses(connection, waits) == ["pending"]


def test_ci_runs_the_two_commands_at_the_top_word_for_word() -> None:
    """Its own extraction, with the shell that runs what it finds replaced by one that says it."""
    said = [
        line.replace("bash -euo pipefail -c", "printf '%s\\n'")
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if re.match(r"(demo|test)_command=|bash -euo pipefail -c ", line)
    ]
    extracted = subprocess.run(
        ["bash", "-euc", "\n".join(said)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert extracted == re.findall(r"^    (\S.*)$", README.partition("\n## ")[0], re.MULTILINE)
    assert [line.rpartition("/")[2] for line in extracted] == ["pgworker demo", "pytest"]


def test_the_exit_codes_are_all_there_are() -> None:
    (listed,) = re.findall(r"^Exit codes: (.*?)\.\n\n", README, re.MULTILINE | re.DOTALL)
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(item.split()[0]) for item in listed.split("·")} == {0} | codes


def test_every_file_that_it_links_to_is_there() -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert linked
    assert [name for name in linked if not (ROOT / name).is_file()] == []
