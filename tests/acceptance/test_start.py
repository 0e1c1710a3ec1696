"""`pgworker start` as people run it: refused in a sentence, scraped, stopped, and without its database for a while."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psycopg
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from psycopg.conninfo import make_conninfo

from pgworker.db import embedded
from pgworker.db.migrate import migrate
from tests.acceptance import tasks
from tests.process.pool import Pool, eventually, free_port, launched

Connect = Callable[[], psycopg.Connection[Any]]
Query = Callable[..., list[tuple[Any, ...]]]

ROOT = Path(__file__).parents[2]
APP = "tests.acceptance.tasks:app"
SECRET = "canary-geheim"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pgworker", "start", *words]


def environment(**variables: str) -> dict[str, str]:
    """Nothing of ours but where programs and modules are."""
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT), **variables}


def refusal(code: int, *words: str, app: str = APP, cwd: Path = ROOT, **variables: str) -> str:
    """The one sentence with which a start ends at once, with `code` and no traceback."""
    ended = subprocess.run(
        command("--app", app, "--metrics-listen", "off", "-w", "1", *words),
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("pgworker: ")
    assert SECRET not in line
    return line


def fetch(port: int, path: str, accept: str = "") -> tuple[int, str]:
    """Status and text of a page of the pool's."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def start_pool(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """Starts pools as a shell would, each in a session of its own, and kills what is left of them."""
    with ExitStack() as pools:

        def start_one(*words: str, cwd: Path = ROOT) -> Pool:
            log_file = tmp_path / f"pool{len(list(tmp_path.glob('pool*.log')))}.log"
            pools.callback(lambda: print(log_file.read_text()))  # noqa: T201  pytest shows it when the test fails
            binaries = environment(PGWORKER_PG_BINDIR=os.environ.get("PGWORKER_TEST_PG_BINDIR", ""))
            return pools.enter_context(launched(command("--app", APP, *words), log_file, binaries, cwd))

        yield start_one


def asks(connection: psycopg.Connection[Any]) -> Query:
    return lambda statement, *parameters: connection.execute(statement, parameters).fetchall()


# Refused before anything runs


def test_without_a_database_the_ways_to_one_are_named() -> None:
    told = refusal(78)
    assert "no database is named" in told
    assert "PGWORKER_DSN" in told
    assert "`pgworker start --embedded`" in told
    assert "`pgworker demo`" in told


def test_without_an_app_the_ways_to_name_one_are_told() -> None:
    ended = subprocess.run(command(), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 78
    (line,) = ended.stderr.splitlines()
    assert all(way in line for way in ("--app MODULE:APP", "PGWORKER_APP", 'app = "shop.jobs:app"', "pgworker.toml"))


def test_a_file_may_say_all_that_a_pool_needs_and_a_secret_its_dsn(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(dsn)
    (tmp_path / "pgworker.toml").write_text(
        f'app = "{APP}"\nworkers = 1\nqueues = ["filed"]\nmetrics_listen = "off"\ndsn_file = "secret"\n'
        'log_level = "debug"\n'
    )
    with launched(command(), tmp_path / "pool.log", environment(), tmp_path) as pool:
        assert "1 workers on filed" in pool.wait_for_log("the pool is ready")
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
    refused = refusal(78, "--config", "absent.toml", cwd=tmp_path)
    assert refused == "pgworker: there is no file absent.toml: correct --config or PGWORKER_CONFIG"


@pytest.mark.parametrize(
    ("code", "dsn", "sentence"),
    [
        (69, f"host=127.0.0.1 port=1 password={SECRET}", "Start PostgreSQL, or correct host and port in the DSN."),
        (78, f"mysql://app:{SECRET}@db/app", "PGWORKER_DSN is not a PostgreSQL DSN; use postgresql://"),
    ],
)
def test_a_wrong_dsn_is_told_without_its_password(code: int, dsn: str, sentence: str) -> None:
    assert sentence in refusal(code, PGWORKER_DSN=dsn)


def test_a_database_that_is_missing_unmigrated_or_newer_is_told_with_what_to_do(
    server: embedded.Server, blank_dsn: str
) -> None:
    assert "`createdb`" in refusal(78, PGWORKER_DSN=make_conninfo(server.dsn, dbname="nowhere"))
    assert "Run `pgworker migrate`." in refusal(78, PGWORKER_DSN=blank_dsn)
    migrate(blank_dsn)
    with psycopg.connect(blank_dsn, autocommit=True) as connection:
        connection.execute("insert into pgworker.schema_migrations values (999, '0999_to_come', 'checksum')")
    assert "Upgrade pgworker on this host." in refusal(78, PGWORKER_DSN=blank_dsn)


@pytest.mark.parametrize(
    ("app", "source", "sentence"),
    [
        ("nowhere:app", "", "there is no module nowhere here (in "),
        ("shop:app", "1 / 0", "can't import shop: ZeroDivisionError: division by zero ("),
        ("shop:application", "", "module shop has no application; did you mean shop:app?"),
        ("shop:number", "number = 1", "shop:number is an int, not an App; did you mean shop:app?"),
        ("shop:app", "app.task(name='a')(lambda: 1); app.task(name='a')(lambda: 1)", "a task named a is registered"),
        ("shop:app", "import os; os._exit(3)", "ended with it (exit code 3): an app must not exit or crash"),
        ("shop:app", "import os; os.kill(os.getpid(), 11)", "ended with it (killed by SIGSEGV"),
    ],
)
def test_an_app_that_can_not_be_used_is_told_before_a_worker_starts(
    app: str, source: str, sentence: str, dsn: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(f"from pgworker import App\napp = App()\n{source}\n")
    told = refusal(78, app=app, cwd=tmp_path, PGWORKER_DSN=dsn)
    assert sentence in told
    assert ("Error" in told) == ("shop.py:3" in told), "an error of the app's own comes with its line"


def test_a_port_in_use_is_told_with_the_option_to_change(dsn: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = refusal(78, "--metrics-listen", address, PGWORKER_DSN=dsn)
    assert f"can't listen on {address} for /metrics: Address already in use" in told
    assert "Give this one another --metrics-listen HOST:PORT, or off" in told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--retention", "15d"],
            "retention must be from 1 to 14 days, not 15: each day kept slows",
        ),
        (["--retention", "12h"], "retention must be from 1 to 14 days, not 0.5"),
        (["-w", "0"], "workers must be a whole number from 1 to 1024"),
        (["--max-batch", "0"], "max_batch must be a whole number from 1 to 10000"),
        (["--poll-interval", "0"], "poll_interval must be at least 0.01 s, not 0"),
        (["--lease-ttl", "500000d"], "lease_ttl must be between 0 seconds and 100 years"),
        (["--max-memory", "1M"], "max_memory must be a whole number of bytes, at least 16M"),
        (["--max-memory", "2G", "--memory-limit", "1G"], "max_memory must be less than memory_limit"),
        (["--max-jobs", "0"], "max_jobs must be a whole number from 1"),
        (["--nice", "20"], "nice must be a whole number from 0 to 19"),
        (["--cpus", "some"], "cpus must be auto, none or a list of CPUs like 0-3,6, not 'some'"),
        (["--cpus", "65000"], "cpus names 65000, which we may not use here; choose from 0"),
        (["-q", "default", "-q", "my queue"], "'my queue' can't name a queue: use 1 to 128 ASCII letters, digits and"),
    ],
)
def test_an_option_that_can_not_work_is_told_before_the_database_is_asked(words: list[str], sentence: str) -> None:
    assert sentence in refusal(78, *words, PGWORKER_DSN="host=127.0.0.1 port=1")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--drain-timeout", "soon"], "'soon' is no time: give seconds, or a number with s, m, h or d, such as 30s"),
        (["--cancel-grace", "-1"], "'-1' is no time"),
        (["--term-grace", "1w"], "'1w' is no time"),
        (["--max-age", ""], "'' is no time"),
        (["--max-memory", "much"], "'much' is no size: give a number with K, M, G or T, such as 512M or 2G"),
        (["--memory-limit", "1P"], "'1P' is no size"),
        (["--boot-timeout", "nan"], "'nan' is no time"),
    ],
)
def test_a_time_or_a_size_that_is_none_is_a_mistake_in_the_command(words: list[str], sentence: str) -> None:
    ended = subprocess.run(
        command("--app", APP, *words), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 64
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_memory_limit_below_what_the_app_needs_is_told_before_a_worker_starts(dsn: str) -> None:
    told = refusal(78, "--memory-limit", "16M", PGWORKER_DSN=dsn)
    assert re.search(r"memory_limit must be at least [0-9]+M with this app: a worker has [0-9]+M of data", told)


# What ran, and how it stops

Counts = dict[tuple[str, str, str], float]


def counts(families: dict[str, Metric], family: str, sample: str) -> Counts:
    """The values of `sample` by queue, task and outcome, but for zeros."""
    found = [one for one in families[family].samples if one.name == sample and one.value]
    return {(one.labels["queue"], one.labels["task"], one.labels.get("outcome", "")): one.value for one in found}


def value(families: dict[str, Metric], name: str) -> float:
    (only,) = families[name].samples
    return only.value


def scrape(port: int) -> dict[str, Metric]:
    status, text = fetch(port, "/metrics")
    assert status == 200
    return {family.name: family for family in parse_text(text)}


def test_a_scrape_agrees_with_what_ran_by_queue_task_and_outcome(
    dsn: str, connect: Connect, start_pool: Callable[..., Pool]
) -> None:
    query, port = asks(connect()), free_port()
    queues = ["-q", "default", "-q", "mail"]
    pool = start_pool("--dsn", dsn, "-w", "2", *queues, "--metrics-listen", f"127.0.0.1:{port}")
    with psycopg.connect(dsn) as connection:
        requests = [
            *(tasks.add.job(number, 1) for number in range(5)),
            *(tasks.add.options(queue="mail").job(number, 1) for number in range(3)),
            tasks.fail.job("no such colour: grue"),
            tasks.give_up.job(),
            tasks.come_back.job(),
        ]
        tasks.app.enqueue_many(requests, connection)
    ran = {
        ("default", "add", "succeeded"): 5,
        ("mail", "add", "succeeded"): 3,
        ("default", "fail", "failed"): 2,
        ("default", "give_up", "failed"): 1,
        ("default", "come_back", "snoozed"): 1,
        ("default", "come_back", "succeeded"): 1,
    }
    pool.wait_for_log("the pool is ready")
    eventually(lambda: counts(scrape(port), "pgworker_jobs_finished", "pgworker_jobs_finished_total") == ran, "all ran")
    recorded = query(
        """select job.queue, job.task, ended.outcome::text, count(*)
           from pgworker.job_executions as ended join pgworker.jobs as job on job.id = ended.job_id group by 1, 2, 3"""
    )
    assert {(queue, task, outcome): number for queue, task, outcome, number in recorded} == ran
    eventually(lambda: value(scrape(port), "pgworker_workers") == 2, "two workers")
    families = scrape(port)
    for histogram in ("pgworker_job_duration_seconds", "pgworker_job_wait_seconds"):
        by_task = {(queue, task, ""): 0.0 for queue, task, _ in ran}
        for (queue, task, _), number in ran.items():
            by_task[queue, task, ""] += number
        assert counts(families, histogram, f"{histogram}_count") == by_task
    assert value(families, "pgworker_events_dropped") == 0
    assert value(families, "pgworker_leases_lost") == 0
    assert [family.name for family in families.values() if family.type == "unknown" or not family.documentation] == []
    openmetrics = fetch(port, "/metrics", "application/openmetrics-text")[1]
    assert {family.name for family in parse_openmetrics(openmetrics)} == set(families)  # type: ignore[no-untyped-call]


def test_term_lets_the_running_job_end_and_leaves_nothing_leased(
    dsn: str, connect: Connect, start_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    query, port, gate = asks(connect()), free_port(), tmp_path / "gate"
    pool = start_pool("--dsn", dsn, "-w", "2", "--metrics-listen", f"127.0.0.1:{port}")
    with psycopg.connect(dsn) as connection:
        running = tasks.wait.using(connection).enqueue(str(gate)).id
    pool.wait_for_log("the pool is ready")
    eventually(lambda: value(scrape(port), "pgworker_jobs_running") == 1, "the job runs")
    eventually(lambda: fetch(port, "/readyz")[0] == 200, "a pool that is ready")
    assert [fetch(port, page)[0] for page in ("/healthz", "/nothing")] == [200, 404]

    pool.send(signal.SIGTERM)
    eventually(lambda: fetch(port, "/readyz")[0] == 503, "a pool that wants no more work")
    assert query("select pgworker.job_status(%s)", running) == [("running",)]
    gate.touch()
    assert pool.wait() == 0
    assert query("select pgworker.job_status(%s)", running) == [("succeeded",)]
    assert query("select count(*) from pgworker.job_leases") == [(0,)]
    assert query("select count(*) from pgworker.worker_heartbeats where ended_at is null") == [(0,)]


def test_results_and_errors_that_can_not_be_stored_cost_a_job_nothing_else(
    dsn: str, connect: Connect, start_pool: Callable[..., Pool]
) -> None:
    query = asks(connect())
    pool = start_pool("--dsn", dsn, "-w", "1", "--metrics-listen", "off")
    with psycopg.connect(dsn) as connection:
        answers = [tasks.answer.job(kind) for kind in tasks.UNSTORABLE]
        failing = [tasks.fail_silently.job(), tasks.fail.options(max_attempts=1).job("half \\ud800, \\0")]
        tasks.app.enqueue_many([*answers, *failing], connection)
    ended = "select count(*) from pgworker.job_executions"
    eventually(lambda: query(ended) == [(len(answers) + len(failing),)], "all ran")
    unstored = "task = 'answer' and outcome = 'succeeded' and result is null and error is null"
    rows = f"select count(*) from pgworker.job_executions as ended join pgworker.jobs on id = job_id where {unstored}"
    assert query(rows) == [(len(answers),)]
    assert query("select task, error->>'type', error->>'message' from pgworker.dead_letter_jobs order by task") == [
        ("fail", "ValueError", "half \\ud800, \\0"),
        ("fail_silently", "tests.acceptance.tasks.Unspeakable", "(no message: its __str__ raised RuntimeError)"),
    ]
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
    assert len(re.findall(r"WARNING .* the result of type \w+ was not stored: .* task=answer", pool.log())) == len(
        answers
    )
    assert "Traceback" not in pool.log()


# PostgreSQL goes away


def test_readyz_follows_the_database_and_the_log_gets_a_line_a_second_while_it_is_away(
    directory: Path, binaries: Path | None, start_pool: Callable[..., Pool]
) -> None:
    server, port = embedded.start(directory, options={"fsync": "off"}, binaries=binaries), free_port()
    try:
        migrate(server.dsn)
        pool = start_pool("--dsn", server.dsn, "-w", "3", "--metrics-listen", f"127.0.0.1:{port}")
        pool.wait_for_log("the pool is ready")
        eventually(lambda: fetch(port, "/readyz")[0] == 200, "a pool that is ready")
        with psycopg.connect(server.dsn) as connection:
            soon = tasks.add.options(run_at=datetime.now().astimezone() + timedelta(seconds=1)).using(connection)
            due_meanwhile = soon.enqueue(1, 1).id
        assert value(scrape(port), "pgworker_database_up") == 1
        server.stop()
        eventually(lambda: fetch(port, "/readyz")[0] == 503, "a pool that is not ready")
        assert value(scrape(port), "pgworker_database_up") == 0
        eventually(lambda: len(complaints(pool)) >= 5, "complaints")
        assert fetch(port, "/healthz")[0] == 200, "nothing is wrong with the pool"
        server = embedded.start(directory, options={"fsync": "off"}, binaries=binaries)
        eventually(lambda: fetch(port, "/readyz")[0] == 200, "a pool that is ready again")
        assert value(scrape(port), "pgworker_database_up") == 1
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            enqueued_after = tasks.add.using(connection).enqueue(2, 2).id
            query = asks(connection)
            for job in (due_meanwhile, enqueued_after):
                eventually(lambda job=job: query("select pgworker.job_status(%s)", job) == [("succeeded",)], "both ran")  # type: ignore[misc]
            assert query("select count(*), max(failures) from pgworker.job_executions") == [(2, 0)]
            pool.send(signal.SIGTERM)
            assert pool.wait() == 0
    finally:
        server.stop()
    told = complaints(pool)
    assert len(told) <= 1.5 * (told[-1] - told[0]) + 3, "one process speaks for all"
    assert pool.log().count("Not listening for new jobs") <= 1


def complaints(pool: Pool) -> list[float]:
    """When a process warned that the database is away, in seconds."""
    lines = [line for line in pool.log().splitlines() if "Not listening for new jobs" not in line]
    found = re.findall(r"^(\S+)Z (?:WARNING|ERROR) +(?:master|monitor|worker \d+) ", "\n".join(lines), re.MULTILINE)
    return [datetime.fromisoformat(f"{moment}+00:00").timestamp() for moment in found]


def test_a_private_postgresql_that_is_killed_starts_again_and_ends_with_its_pool(
    directory: Path, start_pool: Callable[..., Pool]
) -> None:
    private = ["--embedded", "--metrics-listen", "off", "-w", "1"]
    pool = start_pool(*private, cwd=directory)
    pool.wait_for_log("the pool is ready")
    postgres = serving(directory / ".pgworker")
    dsn = embedded.dsn(directory / ".pgworker")
    with psycopg.connect(dsn) as connection:
        soon = tasks.add.options(run_at=datetime.now().astimezone() + timedelta(seconds=1))
        job = soon.using(connection).enqueue(1, 1).id
    second = start_pool(*private, cwd=directory)
    assert second.wait() == 78
    assert f"a server is already running in {directory / '.pgworker'}" in second.log()

    os.kill(postgres, signal.SIGKILL)
    pool.wait_for_log(rf"the private PostgreSQL \(pid {postgres}\): killed by SIGKILL; it is started again")
    eventually(lambda: serving(directory / ".pgworker") not in (0, postgres), "another server")
    with psycopg.connect(dsn, autocommit=True) as connection:
        query = asks(connection)
        eventually(lambda: query("select pgworker.job_status(%s)", job) == [("succeeded",)], "the job ran")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
    assert not serving(directory / ".pgworker")


def test_of_a_private_postgresql_that_does_not_start_again_the_log_says_why(
    directory: Path, start_pool: Callable[..., Pool]
) -> None:
    pool = start_pool("--embedded", "--metrics-listen", "off", "-w", "1", cwd=directory)
    pool.wait_for_log("the pool is ready")
    private = directory / ".pgworker"
    (private / "data" / "global").rename(private / "away")
    os.kill(serving(private), signal.SIGKILL)
    pool.wait_for_log("the private PostgreSQL does not start: .*data/global/pg_control")


IMPORTED_BESIDE_A_STATEMENT = """
from pathlib import Path
import psycopg
from pgworker import App
from pgworker.db.embedded import dsn

app = App()
with psycopg.connect(dsn(Path(".pgworker").resolve())) as connection:
    Path("importing").touch()
    connection.execute("select pg_sleep(600)")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_start_that_is_stopped_while_it_checks_tells_of_no_outage_of_its_own_server(
    number: signal.Signals, code: int, directory: Path, start_pool: Callable[..., Pool]
) -> None:
    (directory / "slow.py").write_text(IMPORTED_BESIDE_A_STATEMENT)
    pool = start_pool("--embedded", "--metrics-listen", "off", "--app", "slow:app", cwd=directory)
    eventually((directory / "importing").exists, "a check that is at work on the server")
    pool.send(number)
    assert pool.wait() == code
    assert not serving(directory / ".pgworker")
    assert [line for line in pool.log().splitlines() if line and "postgres_started" not in line] == []


def serving(directory: Path) -> int:
    """The pid of the private server that accepts connections; 0 for none."""
    lock = directory / "data" / "postmaster.pid"
    lines = lock.read_text().splitlines() if lock.exists() else []
    return int(lines[0]) if len(lines) == 8 and lines[7].strip() == "ready" else 0
