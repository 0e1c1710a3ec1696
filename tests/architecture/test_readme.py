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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import UUID

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker import errors
from pgworker.config.settings import PoolSettings
from pgworker.master.main import ENDS, OBEYED_LATER
from pgworker.model.graces import Graces
from pgworker.model.payload import MAX_PAYLOAD_BYTES, MAX_RESULT_BYTES
from pgworker.model.state import CancelReason
from tests.deploy.test_alerts import anchors
from tests.process.pool import Pool, eventually, free_port
from tests.sql.actors import statuses
from tests.sql.history import enqueue_ago, finish_ago, partitions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
THEIR_DSN = "postgresql://app@db.example/app"
THEIR_PORT = "127.0.0.1:9464"


SECTIONS = {title: text for title, _, text in (part.partition("\n") for part in re.split(r"\n###? ", README)[1:])}


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)


def commands(section: str) -> list[list[str]]:
    return [[line.removeprefix("$ ") for line in block.splitlines()] for block in blocks(section, "console")]


# Unpacked, so that one block more or fewer is an error of this module.
(APP,) = blocks("The smallest app", "python")
EMBEDDED, LOOK, OWN = commands("The smallest app")
(ENQUEUE,) = blocks("Enqueue", "python")
(SQL,) = blocks("Enqueue", "sql")
((MAKE_ROLES,),) = commands("Tenants and roles")
(COUNT_ORDERS,) = blocks("Tenants and roles", "python")
LOGINS, ORDERS, IN_AN_ORG = blocks("Tenants and roles", "sql")
TASKS = [
    block
    for section in ("Tasks", "Progress and checkpoints", "Worker hooks and middleware", "Dead-letter hooks", "Orgs")
    for block in blocks(section, "python")
]
(REFUND,) = blocks("Slots", "python")
((WITH_SLOTS,),) = commands("Slots")
(QUEUES,) = commands("Queues")
(CANCEL,) = commands("Cancel")
(FROM_PYTHON,) = blocks("Cancel", "python")
LOOK_AT_ONE, DECIDE, (RUN_ONE,) = commands("Why isn't my job running?")
(SETTINGS,) = blocks("Configuration", "toml")
(SHOW_SETTINGS, RELOADING), (COMPLETION,) = commands("Configuration")
(SEE,) = commands("See what it does")
((LOGGED, FOLLOW),) = commands("Logs")
(LIMITED,) = commands("Isolation and limits")
(POOLED,) = commands("Between pgworker and PostgreSQL")
(PRUNE,) = commands("Retention")
(MEASURE,) = commands("Measure it")
(HANDLES,) = blocks("Handles and results", "python")
(QUEUE,) = blocks("The queue itself", "python")
SQLALCHEMY, DJANGO = blocks("SQLAlchemy and Django", "python")
CONFTEST, TESTS = blocks("Test your app", "python")
TRIED = (
    *(APP, *EMBEDDED, *LOOK, *OWN, ENQUEUE, SQL),
    *(MAKE_ROLES, COUNT_ORDERS, LOGINS, ORDERS, IN_AN_ORG),
    *(*TASKS, REFUND, WITH_SLOTS, *QUEUES, *CANCEL, FROM_PYTHON),
    *(*LOOK_AT_ONE, *DECIDE, RUN_ONE, SETTINGS, SHOW_SETTINGS, RELOADING, COMPLETION, *SEE, LOGGED, FOLLOW),
    *(*LIMITED, *POOLED, *PRUNE, *MEASURE, HANDLES, QUEUE, SQLALCHEMY, DJANGO, CONFTEST, TESTS),
)


class Shell:
    """A terminal of the reader's: his directory, with shop.py, and what he has exported there."""

    def __init__(self, directory: Path, pools: ExitStack) -> None:
        self.directory = directory
        self._pools = pools
        self._exports: list[str] = []
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "MYPYPATH": str(ROOT),  # mypy can't follow an editable install of setuptools
            "PGWORKER_PG_BINDIR": os.environ.get("PGWORKER_TEST_PG_BINDIR", ""),
        }

    def run(self, line: str, *, says: str = "") -> str:
        """What a command prints; an export is remembered for the following ones. `says`: what of it is for people."""
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
        assert ran.returncode == 0, f"{line}\n{ran.stderr}"
        assert says in ran.stderr if says else ran.stderr == "", line
        return ran.stdout

    def start(self, line: str, log_name: str = "terminal.log") -> Pool:
        """Start a pool in the foreground of a terminal of its own, and return when it is ready.

        `log_name`: the file that the line itself sends its log to.
        """
        log_file = self.directory / log_name
        with (self.directory / "terminal.log").open("wb") as log:
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
        eventually(log_file.exists, f"{log_name} by {line}")
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

        eventually(lambda: ask("select count(*) from payments") == [(1004,)], "every payment")
        eventually(lambda: ask("select pgworker.job_status(%s)", greeted) == [("succeeded",)], "the greeting")
        assert ask("select result from pgworker.job_executions where job_id = %s", greeted) == [("hello Ada",)]
        paid = Counter(order for (order,) in ask("select order_id from payments"))
        assert paid == Counter(range(1002)) + Counter({42: 2}), "each of them exactly once"
        waits = "select priority, extract(epoch from run_at - now())::float8 from pgworker.job_queue order by priority"
        (delayed, hour), (scheduled, day) = ask(waits)
        assert (delayed, scheduled) == (5, 9)
        assert 1800 < hour <= 3600
        assert day > 23 * 3600
        finished = 'pgworker_jobs_finished_total{outcome="succeeded",queue="default",task="shop.charge"}'
        eventually(lambda: scraped(address, finished) == 1004, "the scrape says so too")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


def test_the_page_says_how_large_arguments_results_and_checkpoints_may_be() -> None:
    assert f"arguments of a job are at most {MAX_PAYLOAD_BYTES >> 20} MiB of JSON" in SECTIONS["Tasks"]
    assert f"its result {MAX_RESULT_BYTES >> 10} KiB" in SECTIONS["Tasks"]
    assert f"what the handler returned, up to {MAX_RESULT_BYTES >> 10} KiB" in SECTIONS["Handles and results"]
    assert f"A checkpoint is at most {MAX_RESULT_BYTES >> 10} KiB" in SECTIONS["Progress and checkpoints"]


def test_the_page_says_how_long_after_its_deadline_a_handler_is_killed() -> None:
    settings = PoolSettings(workers=1)
    graces, reason = Graces(settings.cancel_grace, settings.term_grace, settings.lease_ttl), CancelReason.DEADLINE
    cancelled = graces.before_cancel_ns(reason) // 10**9
    killed, killed_on_loop = (
        (graces.before_term_ns(reason, is_async=is_async) + graces.before_kill_ns(reason)) // 10**9
        for is_async in (False, True)
    )
    assert f"is killed, with its worker, {killed} s later" in SECTIONS["Tasks"]
    assert f"has its task cancelled after those {cancelled} s" in SECTIONS["Tasks"]
    assert f"it is killed {killed_on_loop} s after its deadline" in SECTIONS["Tasks"]


def test_pools_with_limits_and_a_preloaded_app_run_jobs(shell: Shell, dsn: str) -> None:
    shell.run(f"export PGWORKER_DSN={shlex.quote(dsn)}")
    for line in (*LIMITED, *POOLED):
        pool = shell.start(f"{line} --metrics-listen off")
        job_id = shell.run("""pgworker enqueue shop.greet '{"name": "Ada"}'""").strip()
        eventually(lambda job_id=job_id: "hello Ada" in shell.run(f"pgworker jobs show {job_id}"), "the greeting")  # type: ignore[misc]
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0


def test_a_worker_with_slots_runs_handlers_of_both_kinds(shell: Shell, dsn: str) -> None:
    shell.run(f"export PGWORKER_DSN={shlex.quote(dsn)}")
    (shell.directory / "shop.py").write_text(f"{APP}\n\n{REFUND}")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table payments (order_id integer not null, key uuid not null unique)")
        pool = shell.start(f"{WITH_SLOTS} --metrics-listen off")
        paid = "select order_id from payments"
        shell.run("""pgworker enqueue shop.charge '{"order_id": 42}'""")
        eventually(lambda: connection.execute(paid).fetchall() == [(42,)], "the payment")
        shell.run("""pgworker enqueue shop.refund '{"order_id": 42}'""")
        eventually(lambda: connection.execute(paid).fetchall() == [], "the refund")
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0


def test_the_signals_are_all_that_a_master_obeys() -> None:
    table = README.partition("| signal to the master |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| ([A-Z].*?) \|", table, re.MULTILINE)
    named = {f"SIG{name}" for cell in cells for name in cell.removesuffix(" (Ctrl-C)").split(", ")}
    assert named == {number.name for number in (*ENDS, *OBEYED_LATER)}


ENQUEUE_PROGRAM = f"""
import os
from datetime import datetime, timedelta, timezone
import psycopg
from shop import app, charge, greet

tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
conn = psycopg.connect(os.environ["PGWORKER_DSN"])

{ENQUEUE}

def enqueued():
    query = "select count(*) from pgworker.jobs where payload->>'order_id' = '42'"
    with psycopg.connect(os.environ["PGWORKER_DSN"]) as elsewhere:
        return elsewhere.execute(query).fetchone()[0]

assert enqueued() == 4, "the one in our transaction is not there yet"
conn.commit()
assert enqueued() == 5
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


def test_logins_have_the_rights_of_their_roles_and_a_job_counts_the_orders_of_its_org(
    shell: Shell, blank_dsn: str
) -> None:
    (shell.directory / "shop.py").write_text(APP + COUNT_ORDERS)
    shell.run(f"export PGWORKER_DSN={shlex.quote(blank_dsn)}")
    assert "grant pgworker_worker to" in shell.run(MAKE_ROLES)
    with psycopg.connect(blank_dsn, autocommit=True) as connection:
        for block in (LOGINS, ORDERS):
            connection.execute(block.encode())
        try:
            shell.run(f"export PGWORKER_DSN={shlex.quote(make_conninfo(blank_dsn, user='pool'))}")
            pool = shell.start("pgworker start --app shop:app -w 2 --metrics-listen off")
            for org, other in (("acme", "bolt"), ("bolt", "acme"), ("bolt", "acme")):
                with psycopg.connect(make_conninfo(blank_dsn, user="web"), autocommit=True) as web:
                    number = len(orders(connection, org)) + 1
                    block = IN_AN_ORG.replace("'acme'", f"'{org}'").replace("(1)", f"({number})")
                    web.execute(block.encode())
                    assert web.execute("select from orders").fetchall() == []
                others = orders(connection, other)
                eventually(partial(has_orders, connection, org, number + 1), "the order that the job has written")
                assert orders(connection, org) == [*range(1, number + 2)]
                assert orders(connection, other) == others
            pool.send(signal.SIGTERM)
            assert pool.wait() == 0
        finally:
            for role in ("web", "pool"):
                connection.execute(f"drop owned by {role}".encode())
                connection.execute(f"drop role {role}".encode())


def orders(connection: psycopg.Connection[Any], org: str) -> list[int]:
    """As a superuser sees them: of any org."""
    found = connection.execute("select number from orders where org_id = %s order by number", [org])
    return [number for (number,) in found]


def has_orders(connection: psycopg.Connection[Any], org: str, count: int) -> bool:
    return len(orders(connection, org)) == count


def test_every_block_is_tried() -> None:
    found = re.findall(r"^```\w+\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    tried = "".join(TRIED).replace("\n", "")
    assert [block for block in found if block.replace("$ ", "").replace("\n", "") not in tried] == []


def scraped(address: str, sample: str) -> float:
    """The value of one sample, written as on the page."""
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    for one in (one for family in families for one in family.samples):
        labels = ",".join(f'{name}="{value}"' for name, value in sorted(one.labels.items()))
        if f"{one.name}{{{labels}}}" == sample:
            return one.value
    return 0.0


def test_queues_are_listed_paused_resumed_and_purged(shell: Shell, dsn: str) -> None:
    shell.run(f"export PGWORKER_DSN={shlex.quote(dsn)}")
    for priority in ("1", "9"):
        shell.run(f"pgworker enqueue shop.greet -q mail --priority {priority}")
    printed = [shell.run(line) for line in QUEUES]
    assert re.search(r"^mail +2 +0 +0 +0 +\S+ +2$", printed[0], re.MULTILINE)
    assert "no worker is alive: `pgworker start` runs some" in printed[0]
    assert printed[1:] == ["paused mail\n", "resumed mail\n", "would purge 2\n", "purged 2\n"]


def test_jobs_are_cancelled_by_id_and_by_what_they_have_in_common(shell: Shell, dsn: str) -> None:
    shell.run(f"export PGWORKER_DSN={shlex.quote(dsn)}")
    shell.run(f"export JOB_ID={shell.run('pgworker enqueue shop.greet').strip()}")
    shell.run("pgworker enqueue shop.greet --org acme")
    shell.run("pgworker enqueue shop.greet -q mail")
    by_id, by_org, by_age = (shell.run(line) for line in CANCEL)
    assert by_id == "cancelled: it waited, and will never run\n"
    assert (by_org, by_age) == ("cancelled 1, asked to stop 0\n", "cancelled 0, asked to stop 0\n")


def test_queues_and_jobs_are_ruled_from_python_too(shell: Shell, dsn: str) -> None:
    shell.run(f"export PGWORKER_DSN={shlex.quote(dsn)}")
    for options in ("-q mail", "-q mail", "--org acme"):
        shell.run(f"pgworker enqueue shop.greet {options}")
    program = f"from shop import app\n\n{FROM_PYTHON}"
    assert shell.run(f"python -c {shlex.quote(program)}") == "2\n1\n"


def test_handles_and_both_recipes_do_what_they_say(shell: Shell, blank_dsn: str) -> None:
    shell.run(f"export PGWORKER_DSN={shlex.quote(blank_dsn)}")
    shell.run("pgworker migrate")
    pool = shell.start("pgworker start --app shop:app -w 2 --metrics-listen off")
    with psycopg.connect(blank_dsn, autocommit=True) as connection:
        connection.execute("create table payments (order_id integer not null, key uuid not null unique)")
        connection.execute("create table orders (id integer primary key)")
        said = shell.run(f"python -c {shlex.quote(HANDLES_PROGRAM)}").splitlines()
        assert re.fullmatch(r"[0-9a-f-]{36} (pending|running|succeeded)", said[0])
        assert said[1:] == ["hello Ada", "cancelled"]
        shell.run(f"python -c {shlex.quote(sqlalchemy_program(blank_dsn))}")
        shell.run(f"python -c {shlex.quote(django_program(blank_dsn))}")
        assert connection.execute("select id from orders order by id").fetchall() == [(42,), (43,), (44,)]
        paid = "select order_id from payments order by order_id"
        eventually(lambda: connection.execute(paid).fetchall() == [(42,), (43,), (44,)], "every payment")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


def test_a_job_is_explained_retried_requeued_and_run_in_the_terminal_with_the_rights_that_are_named(
    shell: Shell, roles_dsn: str, login: Callable[..., str]
) -> None:
    admin, worker = (
        f"export PGWORKER_DSN={shlex.quote(login(role))}" for role in ("pgworker_admin", "pgworker_worker")
    )

    def enqueue(options: str) -> str:
        job_id = shell.run(f"pgworker enqueue shop.greet {options}").strip()
        shell.run(f"export JOB_ID={job_id}")
        return job_id

    def give_up() -> None:
        """Whatever is due, by a worker; `nom` is no argument of it."""
        program = "from pgworker.testing import drain; from shop import app; drain(app)"
        shell.run(f"PGWORKER_DSN={shlex.quote(roles_dsn)} python -c {shlex.quote(program)} 2> drained.log")

    shell.run(admin)
    job_id = enqueue("--in 3600")
    explained, shown = (shell.run(line) for line in LOOK_AT_ONE[:2])
    assert "due in" in explained
    assert "Try: " in explained
    assert job_id in shown
    assert shell.run(LOOK_AT_ONE[2], says="no worker is alive") == ""
    retry, retry_all, dead, dead_one, requeue, discard = DECIDE
    assert shell.run(retry).startswith("due now: ")
    assert shell.run(retry_all) == "due now 0, requeued 0\n"
    shell.run(f"pgworker jobs cancel {job_id}")
    job_id = enqueue("""'{"nom": "Ada"}' --max-attempts 1""")
    give_up()
    assert job_id in shell.run(dead)
    assert "nom" in shell.run(dead_one)
    assert shell.run(requeue) == "requeued 1\n"
    give_up()
    assert shell.run(discard) == "discarded 1\n"
    enqueue("""'{"name": "Ada"}' --in 3600""")
    shell.run(worker)
    assert "hello Ada" in shell.run(RUN_ONE, says="running shop.greet")


def test_a_configuration_file_says_all_and_an_edit_is_seen(shell: Shell) -> None:
    (shell.directory / "pgworker.toml").write_text(SETTINGS)
    shown = shell.run(SHOW_SETTINGS)
    for key, value in (("app", "shop:app"), ("queues", "mail, default"), ("drain_timeout", "60s")):
        assert re.search(rf"^{key} +{value} +pgworker\.toml: {key}$", shown, re.MULTILINE), shown
    assert re.search(r"^lease_ttl .* default$", shown, re.MULTILINE)
    mailed = shell.run("PGWORKER_QUEUES=mail,default pgworker config show --origin")
    assert re.search(r"^queues +mail, default +PGWORKER_QUEUES$", mailed, re.MULTILINE)
    pool = shell.start(f"{RELOADING} --metrics-listen off")
    pool.wait_for_log("are watched")

    def greeting() -> str:
        job_id = shell.run("""pgworker enqueue shop.greet '{"name": "Ada"}'""").strip()
        eventually(lambda: "succeeded" in shell.run(f"pgworker jobs explain {job_id}"), "the greeting")
        return shell.run(f"pgworker jobs show {job_id}")

    assert "hello Ada" in greeting()
    (shell.directory / "shop.py").write_text(APP.replace("hello", "good evening"))
    pool.wait_for_log("workers run the app as it is now")
    assert "good evening Ada" in greeting()
    assert press_ctrl_c(pool) == 0


def test_bash_completes_commands_by_what_is_evaluated(shell: Shell) -> None:
    assert re.search(r"complete .* pgworker$", shell.run(f"{COMPLETION}; complete -p pgworker"))


def test_all_that_lives_and_waits_is_seen_and_a_job_is_followed_in_the_log(shell: Shell, dsn: str) -> None:
    shell.run(f"export PGWORKER_DSN={shlex.quote(dsn)}")
    pool = shell.start(f"{LOGGED} --metrics-listen off", "pool.log")
    job_id = shell.run("""pgworker enqueue shop.greet '{"name": "Ada"}'""").strip()
    pool.wait_for_log(f"event=job_succeeded.* job={job_id}")
    shell.run(f"export JOB_ID={job_id}")
    followed = re.findall(r" event=(\w+) ", shell.run(FOLLOW))
    assert followed == ["job_claimed", "job_started", "job_succeeded"]
    shell.run("pgworker enqueue shop.greet -q mail")
    host = re.escape(socket.gethostname())
    for line in SEE:
        assert re.search(rf"^(mail|{host}) ", shell.run(line), re.MULTILINE), line
        assert shell.run(f"{line} --json").startswith("{")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


def test_the_queue_gives_a_program_its_jobs(shell: Shell, dsn: str) -> None:
    shell.run(f"export PGWORKER_DSN={shlex.quote(dsn)}")
    ids = [shell.run(f'pgworker enqueue shop.greet \'{{"name": "{name}"}}\'').strip() for name in ("Ada", "Bob")]
    said = shell.run(f"python -c {shlex.quote('from shop import app' + chr(10) + QUEUE)}").splitlines()
    assert said == ["shop.greet {'name': 'Ada'}", "shop.greet {'name': 'Bob'}"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert statuses(connection, [UUID(job_id) for job_id in ids]) == ["succeeded"] * 2


HANDLES_PROGRAM = f"""
from datetime import datetime, timedelta, timezone
from shop import app, greet

tomorrow = datetime.now(timezone.utc) + timedelta(days=1)

{HANDLES}
"""


def sqlalchemy_program(dsn: str) -> str:
    """The recipe on the tests' server, and its coroutine called with a session."""
    words = conninfo_to_dict(dsn)
    theirs, ours = THEIR_DSN.replace("://", "+psycopg://"), "postgresql+psycopg://{user}@/{dbname}?host={host}"
    assert theirs in SQLALCHEMY
    return f"""
import asyncio
from sqlalchemy.ext.asyncio import create_async_engine
from shop import charge

{SQLALCHEMY.replace(theirs, ours.format(**words))}

async def main():
    engine = create_async_engine({ours.format(**words)!r})
    async with AsyncSession(engine) as session:
        await order(session)
    await engine.dispose()

asyncio.run(main())
"""


def django_program(dsn: str) -> str:
    """The recipe in a project of one model."""
    words = conninfo_to_dict(dsn)
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": words["dbname"]}
    database |= {"USER": words["user"], "HOST": words["host"]}
    return f"""
import django
from django.conf import settings
from django.db import models

settings.configure(DATABASES={{"default": {database!r}}})
django.setup()

class Order(models.Model):
    id = models.IntegerField(primary_key=True)
    class Meta:
        app_label = "shop"
        db_table = "orders"

from shop import charge

{DJANGO}
"""


def test_the_tests_of_the_smallest_app_pass(shell: Shell) -> None:
    (shell.directory / "conftest.py").write_text(CONFTEST)
    (shell.directory / "test_shop.py").write_text(TESTS)
    assert "3 passed" in shell.run("python -m pytest -q -W error -p no:cacheprovider")
    assert "no issues" in shell.run("python -m mypy --strict conftest.py test_shop.py")


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


def test_a_drain_and_a_latency_are_measured(shell: Shell, dsn: str) -> None:
    shell.run(f"export PGWORKER_DSN={shlex.quote(dsn)}")
    for line, figure in zip(MEASURE, ("jobs per second", "start p99 ms"), strict=True):
        assert figure in shell.run(line)


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


def test_the_guide_lists_its_sections() -> None:
    guide = README.partition("\n## Guide\n")[2].partition("\n## ")[0]
    head, *sections = guide.split("\n### ")
    listed = re.findall(r"\[([^]]+)\]\(#([^)]+)\)", head)
    assert [title for title, _ in listed] == [section.partition("\n")[0] for section in sections]
    assert {anchor for _, anchor in listed} <= anchors(ROOT / "README.md")


def test_every_file_that_it_links_to_is_there() -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert linked
    assert [name for name in linked if not (ROOT / name).is_file()] == []
