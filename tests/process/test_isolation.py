"""What keeps workers apart and fresh: recycling, CPUs, niceness, limits of memory, and an app imported once for all."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process import jobs, test_pool
from tests.process.pool import Pool, eventually, launched, start
from tests.process.test_pool import Scene, StartPool, kill

scene = test_pool.scene
start_pool = test_pool.start_pool

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


# -- recycling


def test_workers_that_have_run_their_jobs_are_replaced_one_at_a_time_and_charge_nobody(
    scene: Scene, start_pool: StartPool
) -> None:
    workers, limit = 3, 20
    pool = start_pool(workers=workers, max_jobs=limit)
    eventually(lambda: len(pool.workers) == workers, "every worker")
    names = [f"job{number}" for number in range(300)]
    ran = scene.enqueue_together(*(jobs.quick.job(str(scene.directory), name, 0.005) for name in names))
    seen: set[int] = set()
    fewest = workers

    def all_ran() -> bool:
        nonlocal fewest
        living = set(pool.workers)
        fewest = min(fewest, len(living))
        seen.update(living)
        return len(scene.noted("start", *names)) == len(names)

    eventually(all_ran, "every job")
    scene.wait_for_status("succeeded", *ran)
    by_worker = Counter(line.pid for line in scene.noted("start", *names))
    assert len(by_worker) > workers
    assert fewest >= workers - 1
    assert [scene.outcomes(job)[-1][1:] for job in ran] == [("succeeded", 0)] * len(ran)
    assert set(Counter(line.name for line in scene.ledger()).values()) == {1}
    pool.wait_for_log("worker [012]  to be replaced, it has run its --max-jobs: [0-9]+ jobs")
    pool.wait_for_log(r"worker [012] \(pid \d+\) ended, as asked: it has run its --max-jobs; a new one starts at once")
    assert not re.search("WARN|ERROR", pool.log())
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
    assert not scene.leases()


def test_a_worker_is_replaced_for_its_memory_when_its_job_is_done(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1, max_memory="100M")
    (first,) = pool.workers
    job = scene.enqueue(jobs.hoard, "hoard", 120)
    scene.wait_for_status("succeeded", job)
    pool.wait_for_log("to be replaced, it uses its --max-memory: 1 jobs in [0-9]+ s, 1[0-9]{2} MiB of its own")
    eventually(lambda: pool.workers not in ([], [first]), "another worker")
    pool.wait_for_log(r"ended, as asked: it uses its --max-memory; a new one starts at once")


def test_a_worker_is_replaced_for_its_age_though_it_has_run_nothing(start_pool: StartPool) -> None:
    pool = start_pool(workers=1, max_age=1)
    first = pool.workers
    pool.wait_for_log(r"ended, as asked: it has reached its --max-age; a new one starts at once")
    eventually(lambda: pool.workers not in ([], first), "another worker")


def test_a_long_job_is_not_ended_by_the_age_of_its_worker(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1, max_age=1)
    job = scene.enqueue(jobs.hold, "long")
    pid = scene.wait_for("start", "long").pid
    pool.wait_for_log("to be replaced, it has reached its --max-age")
    assert pool.workers == [pid]
    scene.open_gate("long")
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "succeeded", 0)]


# -- CPUs, niceness


def affinities(pool: Pool, workers: int) -> list[set[int]]:
    """Of so many workers, once each has been given its CPUs."""
    eventually(lambda: pool.log().count("event=worker_started") >= workers, "that each is about to claim")
    pids = eventually(lambda: pool.workers if len(pool.workers) == workers else None, "every worker")
    assert pids is not None
    return [os.sched_getaffinity(pid) for pid in pids]


def test_every_worker_has_cpus_of_its_own_where_there_are_enough(start_pool: StartPool) -> None:
    usable = os.sched_getaffinity(0)
    workers = len(usable)
    found = affinities(start_pool(workers=workers), workers)
    assert sorted(cpu for cpus in found for cpu in cpus) == sorted(usable), "each CPU is somebody's"
    assert affinities(start_pool(workers=workers + 1), workers + 1) == [usable] * (workers + 1), "not enough"
    assert affinities(start_pool(workers=workers, cpus="none"), workers) == [usable] * workers


def test_the_cpus_of_a_list_are_given_out_in_turn_and_stay_with_the_place(start_pool: StartPool) -> None:
    usable = sorted(os.sched_getaffinity(0))
    pool = start_pool(workers=3, cpus=",".join(map(str, reversed(usable))))
    wanted = [[{cpu} for cpu in reversed(usable)][number % len(usable)] for number in range(3)]
    found = affinities(pool, 3)
    assert sorted(map(sorted, found)) == sorted(map(sorted, wanted))
    kill(pool.workers[0])
    pool.wait_for_log("a new one starts")
    eventually(lambda: sorted(map(sorted, affinities(pool, 3))) == sorted(map(sorted, wanted)), "the same again")


def test_workers_are_nice_and_master_and_monitor_are_not(start_pool: StartPool) -> None:
    pool = start_pool(workers=1, nice=7)
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    priorities = [os.getpriority(os.PRIO_PROCESS, pid) for pid in (pool.master, pool.monitor, *pool.workers)]
    assert priorities == [mine, mine, min(19, mine + 7)]


# -- memory


@pytest.mark.parametrize("piece", [1 << 24, 1 << 12], ids=["in large pieces", "in small pieces"])
def test_a_hog_gets_a_memory_error_and_the_pool_works_on(piece: int, scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1, memory_limit="400M")
    hog = scene.enqueue(jobs.hog.options(max_attempts=2), "hog", piece)
    scene.wait_for_status("dead_letter", hog)
    assert scene.outcomes(hog) == [(1, "failed", 1), (2, "failed", 2)]
    other = scene.enqueue(jobs.quick, "other")
    scene.wait_for_status("succeeded", other)
    assert len({line.pid for line in scene.ledger()}) == 1, "it was no crash"
    (kind,) = {
        row[0]
        for row in scene.connection.execute(
            "select error->>'type' from pgworker.job_executions where job_id = %s", [hog]
        )
    }
    assert kind == "MemoryError"
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup that may use one GiB."""
    hierarchy, limit = (V1, "memory.limit_in_bytes") if V1.is_dir() else (V2, "memory.max")
    group = hierarchy / f"pgworker-isolation-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(1 << 30))
    except OSError:
        pytest.skip("no cgroup with a limit of memory can be made here")
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text(), "nobody left in the cgroup")
    group.rmdir()


def test_limits_that_the_cgroup_does_not_hold_are_told_at_the_start(
    small_cgroup: Path, dsn: str, tmp_path: Path
) -> None:
    words = ["--app", "tests.process.jobs:app", "--dsn", dsn, "--metrics-listen", "off", "-w", "2"]
    join = f'echo $$ > {small_cgroup}/cgroup.procs && exec "$@"'
    command = ["sh", "-c", join, "sh", sys.executable, "-m", "pgworker", "start", *words, "--memory-limit", "600M"]
    with launched(command, tmp_path / "pool.log", os.environ) as pool:
        pool.wait_for_log("2 workers of --memory-limit 600M are more than the 1024M of this cgroup")
        pool.wait_for_log("the pool is ready")
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0


# -- preload


def write_app(directory: Path, *lines: str) -> str:
    app = "import os, pathlib\nfrom tests.process.jobs import app, note\nfrom pgworker import Context\n"
    (directory / "fat.py").write_text(app + "\n".join(lines) + "\n")
    return "fat:app"


def test_a_preloaded_app_is_imported_once_and_what_it_has_opened_is_open_in_the_workers(
    scene: Scene, dsn: str, tmp_path: Path
) -> None:
    app = write_app(
        tmp_path,
        "pathlib.Path('imported').open('a').write(f'{os.getpid()}\\n')",
        "kept = open('kept', 'a')",
        "@app.task(name='write_to_it')",
        "def write_to_it() -> None: kept.write(f'{os.getpid()}\\n'); kept.flush()",
    )
    with start(dsn, tmp_path / "pool.log", app=app, cwd=tmp_path, preload=True) as pool:
        pool.wait_for_log("the pool is ready")
        job = scene.scalar("select pgworker.enqueue('write_to_it')")
        scene.wait_for_status("succeeded", job)
        (writer,) = (tmp_path / "kept").read_text().split()
        assert int(writer) in pool.workers
        tried, preloaded = (tmp_path / "imported").read_text().split()
        assert int(preloaded) == pool.master
        assert int(tried) != pool.master
        before = pool.workers
        pool.send(signal.SIGHUP)
        pool.wait_for_log("HUP refused: with --preload the app lives in the master")
        kill(before[0])
        eventually(lambda: len(set(pool.workers) - {before[0]}) == 2, "another worker, of the same app")
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
    assert len((tmp_path / "imported").read_text().split()) == 2


@pytest.mark.parametrize(
    ("line", "obstacle"),
    [
        ("import threading; threading.Thread(target=threading.Event().wait, name='poller', daemon=True).start()",
         r"a thread \(poller\)"),
        ("import socket; ends = socket.socketpair()", r"a connection to its own other end \(descriptor \d+\), a conn"),
        ("import psycopg; connection = psycopg.connect({dsn!r})", r"a connection to /\S*/\.s\.PGSQL\.5432 \(descr"),
    ],
    ids=["thread", "sockets", "libpq"],
)  # fmt: skip
def test_a_preloaded_app_that_no_fork_leaves_intact_is_refused_in_one_sentence(
    line: str, obstacle: str, dsn: str, tmp_path: Path
) -> None:
    app = write_app(tmp_path, line.format(dsn=dsn))
    with start(dsn, tmp_path / "pool.log", app=app, cwd=tmp_path, preload=True) as pool:
        assert pool.wait() == 78
        (told,) = pool.log().splitlines()
    assert re.search(rf"^pgworker: --preload can't be used: importing fat leaves {obstacle}", told)
    assert told.endswith("open it when it is first used, or leave --preload out")
