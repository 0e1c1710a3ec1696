"""`python -m tests.bench.compare` as people run it, with sizes that say nothing of speed.

Peers are not installed here. In place of their environments stands a program that speaks their contract, or does not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgworker.db.scratch import name_of
from tests.acceptance.test_cli import ROOT, Finished, environment
from tests.bench.bare_loop import BATCH, run_bare_loop
from tests.bench.outside import as_uri

PEERS = ROOT / "tests/bench/peers"

SPEAKS = """
import json, os, psycopg, sys
script, jobs, workers = sys.argv[1], *map(int, sys.argv[2:])
[seen] = psycopg.connect(os.environ["BENCH_DSN"]).execute(
    "select current_database(), (select count(*)::integer from pg_class where oid >= 16384)").fetchall()
settings = json.dumps([script, sorted(name for name in os.environ if name.startswith("PG")), *seen])
told = {"peer": "procrastinate", "version": "9", "runtime": "its own", "jobs": jobs, "workers": workers}
print(json.dumps(told | {"settings": settings, "enqueue_seconds": 2.0, "seconds": 4.0}))
"""

TINY = """
import os, time, psycopg
from contract import Peer, measure

def install(dsn):
    with psycopg.connect(dsn) as connection:
        connection.execute("create table todo (id integer)")
        connection.execute("create table done (id integer)")

def enqueue(dsn, payloads):
    with psycopg.connect(dsn) as connection:
        connection.cursor().executemany("insert into todo values (%s)", [[told["user_id"]] for told in payloads])
    return 0.5

def work(dsn, ready):
    with psycopg.connect(dsn, autocommit=True) as connection:
        {work}
        time.sleep(60)

if __name__ == "__main__":
    measure(Peer("psycopg", "tiny", install, enqueue, work,
                 "select count(*) = 0 from todo", "select count(*) from done"))
"""
MOVES = "connection.execute('with one as (delete from todo returning id) insert into done select id from one')"
LOSES = "connection.execute('delete from todo')"


def compare(*words: str, dsn: str | None = None) -> Finished:
    command = [sys.executable, "-m", "tests.bench.compare", *words, *(("--dsn", dsn) if dsn else ())]
    variables = environment(PGAPPNAME="ours")
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=100)


def program(directory: Path, text: str) -> str:
    """`--peer` for procrastinate, whose interpreter is this instead, in Python."""
    path = directory / "python"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return f"procrastinate={path}"


def tiny(directory: Path, work: str, dsn: str) -> Finished:
    """A peer of two tables, run as `compare` would."""
    script = directory / "tiny.py"
    script.write_text(TINY.replace("{work}", work))
    variables = environment(BENCH_DSN=as_uri(dsn), PYTHONPATH=str(PEERS))
    command = [sys.executable, str(script), "20", "2"]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100)


def test_the_bare_loop_records_every_job_once_and_leaves_nothing(blank_dsn: str) -> None:
    jobs = 2 * BATCH + 7
    enqueue_seconds, seconds = run_bare_loop(blank_dsn, jobs, 2)
    assert enqueue_seconds > 0
    assert seconds > 0
    with psycopg.connect(blank_dsn) as connection:
        [counts] = connection.execute("""
            select (select count(*) from bare.jobs), (select count(distinct job_id) from bare.job_executions),
                   (select count(*) from bare.job_executions where outcome = 1 and started_at <= finished_at),
                   (select count(*) from bare.job_queue), (select count(*) from bare.job_leases)
        """).fetchall()
    assert counts == (jobs, jobs, jobs, 0, 0)


def test_pgworker_and_the_bare_loop_are_measured_by_turns(dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    finished = compare("--jobs", "300", "-w", "1", "--runs", "2", "--json", str(file), dsn=dsn)
    assert finished.returncode == 0, finished.stderr
    told = json.loads(file.read_text())
    assert list(told["every_run"]) == ["pgworker", "bare loop"]
    for case in told["cases"]:
        runs = told["every_run"][case["who"]]
        assert [(run["jobs"], run["workers"]) for run in runs] == [(300, 1)] * 2
        assert case["jobs_per_second"] == pytest.approx(median(300 / run["seconds"] for run in runs))
        assert case["enqueued_per_second"] == pytest.approx(median(300 / run["enqueue_seconds"] for run in runs))
    ours, bare = told["cases"]
    assert ours["pgworker_by_it"] == 1
    assert bare["pgworker_by_it"] == pytest.approx(ours["jobs_per_second"] / bare["jobs_per_second"])
    heads = [line.split()[0] for line in finished.stdout.splitlines() if line]
    assert heads[heads.index("who") :][:3] == ["who", "pgworker", "bare"]
    assert "medians of 2 runs" in finished.stdout


def test_a_peer_has_an_empty_database_and_nothing_of_this_environment(dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    words = ("--jobs", "100", "-w", "1", "--runs", "1", "--json", str(file), "--peer", program(tmp_path, SPEAKS))
    finished = compare(*words, dsn=dsn)
    assert finished.returncode == 0, finished.stderr
    case = json.loads(file.read_text())["cases"][-1]
    assert (case["who"], case["version"], case["enqueued_per_second"], case["jobs_per_second"]) == (
        "procrastinate",
        "9",
        50,
        25,
    )
    script, ours, database, tables = json.loads(case["settings"])
    assert script == str(PEERS / "use_procrastinate.py")
    assert (ours, tables) == ([], 0)
    assert database != name_of(dsn)


@pytest.mark.parametrize(
    ("peer", "refusal"),
    [
        (
            "celery=/usr/bin/python3",
            "no peer is called 'celery'; there are: procrastinate, pgqueuer, awa, oban, graphile",
        ),
        ("pgqueuer=/nowhere/bin/python", "'/nowhere/bin/python' is no program"),
        ("pgqueuer", "'' is no program"),
        ("graphile-worker=/nowhere", "'/nowhere' to be a directory with node_modules/graphile-worker"),
    ],
)
def test_a_peer_that_is_not_there_is_refused_before_anything_runs(peer: str, refusal: str) -> None:
    finished = compare("--peer", peer, dsn="host=/nowhere")
    assert finished.returncode == 2
    assert refusal in " ".join(finished.stderr.split())


@pytest.mark.parametrize(
    ("says", "reported"),
    [
        ("print('hello')", "procrastinate was to print one line of JSON"),
        ("""print('{"peer": "procrastinate", "jobs": 10}')""", "missing required field `version`"),
        (SPEAKS.replace('"jobs": jobs', '"jobs": jobs - 1'), "was to run 10 jobs in 1 workers, and says: {"),
        ("raise SystemExit('no such module')", "procrastinate has ended with code 1; it said:\nno such module"),
    ],
)
def test_a_peer_that_comes_to_no_figure_is_reported(dsn: str, tmp_path: Path, says: str, reported: str) -> None:
    words = ("--jobs", "10", "-w", "1", "--runs", "1", "--peer", program(tmp_path, says))
    finished = compare(*words, dsn=dsn)
    assert finished.returncode == 1
    assert reported in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_scripts_of_peers_measure_until_their_tables_say_that_all_is_done(blank_dsn: str, tmp_path: Path) -> None:
    finished = tiny(tmp_path, f"ready()\n        {MOVES}", blank_dsn)
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout)
    assert (told["peer"], told["version"], told["settings"]) == ("psycopg", psycopg.__version__, "tiny")
    assert (told["jobs"], told["workers"], told["enqueue_seconds"]) == (20, 2, 0.5)
    assert told["seconds"] > 0


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (f"ready()\n        {LOSES}", "20 jobs were enqueued and 0 have succeeded"),
        ("ready()\n        os._exit(3)", "a worker process has ended, see above"),
        ("raise RuntimeError", "a worker process did not start, see above"),
    ],
)
def test_a_peer_that_loses_jobs_or_workers_has_no_figure(blank_dsn: str, tmp_path: Path, work: str, said: str) -> None:
    finished = tiny(tmp_path, work, blank_dsn)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert said in finished.stderr


@pytest.mark.parametrize(
    "dsn",
    [
        "host=/var/run/postgresql port=5433 user=me dbname=a",
        "host=db.example port=5433 user=me password='p@ss w/rd' dbname='a b' sslmode=require",
        "dbname=a",
    ],
)
def test_a_dsn_means_the_same_as_a_uri(dsn: str) -> None:
    assert as_uri(dsn).startswith("postgresql://")
    assert conninfo_to_dict(as_uri(dsn)) == conninfo_to_dict(dsn)


def test_every_peer_is_told_of_in_the_help() -> None:
    told = " ".join(compare("--help").stdout.split())
    scripts = {path.stem.removeprefix("use_") for path in PEERS.iterdir() if path.suffix in (".py", ".mjs")}
    assert {name for name in scripts if name in told} == scripts - {"contract"}


def test_the_readme_tells_the_factors_of_the_runs_that_are_kept() -> None:
    told = json.loads((ROOT / "tests/bench/drain.json").read_bytes())
    text = " ".join((ROOT / "README.md").read_text().split())
    for case in told["cases"][2:]:
        factor = case["pgworker_by_it"]
        assert f"{factor:.0f} times {case['who']}" in text or f"{factor:.1f} times {case['who']}" in text, case


def test_the_plot_shows_each_with_its_rate(tmp_path: Path) -> None:
    rates = {"bare loop": 50_000.4, "pgworker": 40_000.0, "a peer": 1234.0}
    cases = [{"who": who, "version": "1.0", "workers": 3, "jobs_per_second": rate} for who, rate in rates.items()]
    (tmp_path / "compared.json").write_text(json.dumps({"cases": cases}))
    subprocess.run(
        [sys.executable, "-m", "tests.bench.plot", str(tmp_path / "compared.json"), str(tmp_path / "drain.svg")],
        cwd=ROOT,
        check=True,
    )
    picture = (tmp_path / "drain.svg").read_text()
    places = [
        picture.index(f"{who} 1.0: {rate}")
        for who, rate in (("a peer", "1,234"), ("pgworker", "40,000"), ("bare loop", "50,000"))
    ]
    assert places == sorted(places)
    assert "3 worker processes" in picture
    assert "<script" not in picture
