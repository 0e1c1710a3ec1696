"""The signals of an operator, to whole pools: reload, resize, pause, look inside, stop at once."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from tests.process import jobs, test_pool
from tests.process.pool import Pool, eventually, start
from tests.process.test_pool import Scene, StartPool, kill

scene = test_pool.scene
start_pool = test_pool.start_pool

APP = """
import os, setproctitle, time
from pgworker import Context
from tests.process.jobs import app, note

VERSION = {version!r}

@app.task(name="say_version")
def say_version(ctx: Context, directory: str, name: str) -> None:
    note(ctx, directory, VERSION, name)

{more}
"""
IN_A_WORKER = "if 'pgworker: worker' in setproctitle.getproctitle(): "


class Fresh:
    """A pool whose app is a file of the test's, to be rewritten under it."""

    def __init__(self, scene: Scene, dsn: str, directory: Path, **settings: object) -> None:
        self.scene = scene
        self.file = directory / "fresh.py"
        self.rewrite("version 1")
        self._started = start(dsn, directory / "pool.log", app="fresh:app", cwd=directory, **settings)
        self._numbers = iter(range(1000))

    def __enter__(self) -> Fresh:
        self.pool: Pool = self._started.__enter__()
        self.pool.wait_for_log("the pool is ready")
        workers = int(self.pool.wait_for_log("the pool is ready").rpartition(": ")[2].split()[0])
        self.wait_for_lines("event=worker_started", workers)  # HUP replaces at once who is not ready yet
        return self

    def __exit__(self, *raised: Any) -> None:
        self._started.__exit__(*raised)

    def rewrite(self, version: str, more: str = "") -> None:
        self.file.write_text(APP.format(version=version.replace(" ", "-"), more=more))

    def say_version(self) -> tuple[str, UUID]:
        """Enqueue a job that writes the version of the app that runs it to the ledger."""
        name = f"version-{next(self._numbers)}"
        payload = Jsonb({"directory": str(self.scene.directory), "name": name})
        return name, self.scene.scalar("select pgworker.enqueue('say_version', %s)", payload)

    def version(self) -> str:
        """The version of the app in whichever worker runs a job now."""
        name, job = self.say_version()
        self.scene.wait_for_status("succeeded", job)
        (line,) = [line for line in self.scene.ledger() if line.name == name]
        return line.event

    def reload(self) -> None:
        self.pool.send(signal.SIGHUP)

    def wait_for_lines(self, pattern: str, times: int) -> None:
        eventually(
            lambda: len(re.findall(pattern, self.pool.log())) >= times, lambda: f"{times} of {pattern}", within=60
        )


@pytest.fixture
def fresh(scene: Scene, dsn: str, tmp_path: Path) -> Iterator[Callable[..., Fresh]]:
    opened: list[Fresh] = []

    def open_one(**settings: object) -> Fresh:
        opened.append(Fresh(scene, dsn, tmp_path, **settings).__enter__())
        return opened[-1]

    yield open_one
    for one in opened:
        one.__exit__(None, None, None)


ROLLED = "workers run the app as it is now"


# -- HUP


def test_hup_gives_every_worker_the_new_app_one_at_a_time_and_a_long_job_delays_only_its_own(
    scene: Scene, fresh: Callable[..., Fresh]
) -> None:
    rolled = fresh(workers=3)
    pool, before = rolled.pool, rolled.pool.workers
    assert rolled.version() == "version-1"
    long = scene.enqueue(jobs.hold, "long")
    busy = scene.wait_for("start", "long").pid
    rolled.rewrite("version 22")
    rolled.reload()
    pool.wait_for_log("the app can be imported")

    def the_idle_ones_are_new() -> bool:
        assert rolled.version() in ("version-1", "version-22")  # the others work on, whichever comes first
        return pool.log().count("event=worker_started") == 3 + 2

    eventually(the_idle_ones_are_new, "two new workers beside the long job")
    assert {rolled.version() for _ in range(10)} == {"version-22"}
    assert set(pool.workers) & set(before) == {busy}
    assert scene.status(long) == "running"
    scene.open_gate("long")
    scene.wait_for_status("succeeded", long)
    pool.wait_for_log(f"3 {ROLLED}")
    assert not set(pool.workers) & set(before)
    turns = re.findall("event=(worker_ended|worker_started)", pool.log())[3:]
    assert turns == ["worker_ended", "worker_started"] * 3, "nobody goes before the one before it was replaced"
    assert {rolled.version() for _ in range(10)} == {"version-22"}
    assert scene.outcomes(long) == [(1, "succeeded", 0)]
    assert not re.search("WARN|ERROR", pool.log())


def test_workers_that_run_nothing_have_the_new_app_before_a_long_job_ends(
    scene: Scene, fresh: Callable[..., Fresh]
) -> None:
    rolled = fresh(workers=2)
    held = {name: scene.enqueue(jobs.hold, name) for name in ("a", "b")}
    pids = {scene.wait_for("start", name).pid: name for name in held}
    of_place_0 = next(pid for pid in pids if b"worker 0" in Path(f"/proc/{pid}/cmdline").read_bytes())
    idle = next(name for pid, name in pids.items() if pid != of_place_0)
    scene.open_gate(idle)
    scene.wait_for_status("succeeded", held[idle])
    before = set(rolled.pool.workers)
    rolled.rewrite("version 22")
    rolled.reload()
    eventually(lambda: not set(rolled.pool.workers) >= before, "the end of the one that runs nothing")
    assert rolled.version() == "version-22", "beside the long job there is only its successor"
    assert of_place_0 in rolled.pool.workers
    scene.open_gate(pids[of_place_0])
    rolled.pool.wait_for_log(f"2 {ROLLED}")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("1 / 0", "can't import fresh: ZeroDivisionError: division by zero"),
        ("os._exit(3)", r"ended with it \(exit code 3\)"),
        ("os._exit(0)", r"ended with it \(exit code 0\)"),
        ("time.sleep(600)", "was not imported within 5 s"),
    ],
    ids=["raises", "exits", "exits with 0", "hangs"],
)
def test_hup_with_a_broken_app_keeps_the_old_workers_and_says_so_in_one_line(
    broken: str, said: str, fresh: Callable[..., Fresh]
) -> None:
    rolled = fresh(workers=2, boot_timeout=5)
    before = rolled.pool.workers
    rolled.rewrite("broken", broken)
    rolled.reload()
    line = rolled.pool.wait_for_log(said)
    assert "the old workers go on" in line
    assert rolled.version() == "version-1"
    assert rolled.pool.workers == before
    assert len(re.findall("ERROR|WARN", rolled.pool.log())) == 1
    rolled.rewrite("version 333")
    rolled.reload()
    rolled.pool.wait_for_log(f"2 {ROLLED}")
    assert rolled.version() == "version-333"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("os._exit(3)", r"worker 0 ended before it was ready \(exit code 3\)"),
        ("os._exit(0)", r"worker 0 ended before it was ready \(exit code 0\)"),
        ("time.sleep(600)", "was not ready"),
    ],
    ids=["exits", "exits with 0", "hangs"],
)
def test_a_new_worker_that_does_not_get_ready_stops_the_roll_and_the_others_go_on(
    fault: str, said: str, fresh: Callable[..., Fresh]
) -> None:
    rolled = fresh(workers=3, boot_timeout=3)
    before = rolled.pool.workers
    rolled.rewrite("broken in workers only", IN_A_WORKER + fault)
    rolled.reload()
    assert "2 workers go on with the old app" in rolled.pool.wait_for_log(said)
    assert len(set(rolled.pool.workers) & set(before)) == 2
    assert rolled.version() == "version-1"
    assert rolled.pool.log().count("the rolling restart stops here") == 1
    rolled.rewrite("mended")
    rolled.reload()
    rolled.pool.wait_for_log(f"3 {ROLLED}")
    assert rolled.version() == "mended"


def test_a_worker_that_hangs_before_it_is_ready_is_replaced_without_a_roll_too(fresh: Callable[..., Fresh]) -> None:
    works = fresh(workers=2, boot_timeout=3)
    assert works.version() == "version-1"
    works.rewrite("hangs", IN_A_WORKER + "time.sleep(600)")
    os.kill(works.pool.workers[0], signal.SIGKILL)
    works.pool.wait_for_log(r"was killed: it was not ready within 3 s \(an import or a start hook that waits\?")
    assert works.version() == "version-1"
    works.rewrite("mended")
    eventually(lambda: works.version() == "mended", "a worker that runs it", within=60)


def test_a_stop_hook_that_hangs_does_not_hold_up_a_roll_for_ever(fresh: Callable[..., Fresh]) -> None:
    rolled = fresh(workers=2, boot_timeout=5)
    hangs = "@app.on_worker_stop\ndef hang(state): time.sleep(600)"
    rolled.rewrite("hangs", hangs)
    rolled.reload()
    rolled.pool.wait_for_log(f"2 {ROLLED}")
    rolled.rewrite("mended")
    rolled.reload()
    rolled.pool.wait_for_log(r"was killed: it had drained and did not end within 5 s \(a stop hook that hangs\?\)")
    rolled.wait_for_lines(ROLLED, 2)
    assert rolled.version() == "mended"


def test_hup_during_a_roll_means_once_more_after_it(scene: Scene, fresh: Callable[..., Fresh]) -> None:
    rolled = fresh(workers=2)
    held = [scene.enqueue(jobs.hold, name) for name in ("a", "b")]  # so that the roll can't end
    for name in ("a", "b"):
        scene.wait_for("start", name)
    rolled.rewrite("version 22")
    rolled.reload()
    rolled.pool.wait_for_log("the app can be imported")
    rolled.rewrite("version 333")
    rolled.reload()
    rolled.pool.wait_for_log("once more, when")
    rolled.reload()
    for name in ("a", "b"):
        scene.open_gate(name)
    scene.wait_for_status("succeeded", *held)
    rolled.wait_for_lines(ROLLED, 2)
    assert {rolled.version() for _ in range(5)} == {"version-333"}
    rolled.pool.send(signal.SIGTERM)
    assert rolled.pool.wait() == 0
    assert rolled.pool.log().count(ROLLED) == 2


def test_term_during_a_roll_drains(scene: Scene, fresh: Callable[..., Fresh]) -> None:
    rolled = fresh(workers=2)
    held = [scene.enqueue(jobs.hold, name) for name in ("a", "b")]
    for name in ("a", "b"):
        scene.wait_for("start", name)
    rolled.reload()
    rolled.pool.wait_for_log("the app can be imported")
    rolled.pool.send(signal.SIGTERM)
    rolled.pool.wait_for_log("TERM: draining")
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
        rolled.pool.send(number)
        rolled.pool.wait_for_log(f"{number.name.removeprefix('SIG')} is ignored: the pool drains")
    for name in ("a", "b"):
        scene.open_gate(name)
    assert rolled.pool.wait() == 0
    assert [scene.outcomes(job) for job in held] == [[(1, "succeeded", 0)]] * 2
    assert not scene.leases()


def test_a_worker_that_is_killed_during_a_roll_changes_nothing_for_the_others(
    scene: Scene, fresh: Callable[..., Fresh]
) -> None:
    rolled = fresh(workers=3)
    before = rolled.pool.workers
    held = scene.enqueue(jobs.hold, "held")
    busy = scene.wait_for("start", "held").pid
    rolled.rewrite("version 22")
    rolled.reload()
    rolled.pool.wait_for_log("the app can be imported")
    kill(busy)
    scene.wait_for("start", "held", execution=2)
    scene.open_gate("held")
    rolled.pool.wait_for_log(f"3 {ROLLED}")
    scene.wait_for_status("succeeded", held)
    assert scene.outcomes(held) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert not set(rolled.pool.workers) & set(before)
    assert rolled.version() == "version-22"


# -- TTIN, TTOU


def test_ttin_adds_a_worker_and_ttou_drains_the_highest_one_uncharged(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1)
    (first,) = pool.workers
    held = scene.enqueue(jobs.hold, "held")
    scene.wait_for("start", "held")
    pool.send(signal.SIGTTIN)
    other = scene.enqueue(jobs.hold, "other")  # while the first one is busy
    second = scene.wait_for("start", "other").pid
    assert second != first
    pool.send(signal.SIGTTOU)
    pool.wait_for_log("TTOU: one worker fewer, 1 from now on")
    assert second in pool.workers
    scene.open_gate("other")
    scene.wait_for_status("succeeded", other)
    eventually(lambda: pool.workers == [first], "one worker")
    pool.wait_for_log("ended, as asked: TTOU")
    pool.send(signal.SIGTTOU)
    pool.wait_for_log("TTOU refused: the last worker stays")
    scene.open_gate("held")
    scene.wait_for_status("succeeded", held)
    assert [scene.outcomes(job) for job in (held, other)] == [[(1, "succeeded", 0)]] * 2
    assert pool.workers == [first]


def test_ttin_stops_at_the_places_that_there_are_and_says_how_many(start_pool: StartPool) -> None:
    pool = start_pool(workers=1)
    for number in range(2, 10):
        pool.send(signal.SIGTTIN)
        pool.wait_for_log(f"TTIN: one worker more, {number} from now on")
    pool.send(signal.SIGTTIN)
    pool.wait_for_log("TTIN refused: this pool has room for 9 workers")
    eventually(lambda: len(pool.workers) == 9, "nine workers")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


def test_a_worker_that_dies_after_ttou_is_not_replaced(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=2)
    held = [scene.enqueue(jobs.hold, name) for name in ("a", "b")]
    busy = {scene.wait_for("start", name).pid for name in ("a", "b")}
    pool.send(signal.SIGTTOU)
    pool.wait_for_log("TTOU: one worker fewer")
    for pid in busy:
        kill(pid)
    for name in ("a", "b"):
        scene.open_gate(name)
    scene.wait_for_status("succeeded", *held)
    assert len(pool.workers) == 1
    assert [scene.outcomes(job) for job in held] == [[(1, "crashed", 1), (2, "succeeded", 1)]] * 2


# -- USR1


def test_usr1_puts_the_stacks_of_every_process_into_the_log_and_a_held_gil_holds_up_nobody(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=2)
    held = scene.enqueue(jobs.hold, "held")
    scene.enqueue(jobs.lock_up_the_gil, "gil")
    in_python, in_c = (scene.wait_for("start", name).pid for name in ("held", "gil"))
    pool.send(signal.SIGUSR1)
    pool.wait_for_log(rf"worker \d \(pid {in_python}\) \| .*in wait_for_gate")
    pool.wait_for_log(rf"master \(pid {pool.master}\) \| .*in run")
    pool.wait_for_log(rf"monitor \(pid {pool.monitor}\) \| .*in run_monitor")
    pool.wait_for_log(rf"worker \d \(pid {in_c}\) has not answered: it is in C")
    kill(in_python)
    scene.wait_for("start", "held", execution=2)
    scene.open_gate("held")
    scene.wait_for_status("succeeded", held)
    assert scene.executions(held)[0].stack == "", "what was dumped for people is no evidence of a death"


def test_usr1_to_one_worker_puts_its_stacks_into_the_log(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=2)
    scene.enqueue(jobs.hold, "held")
    pid = scene.wait_for("start", "held").pid
    os.kill(pid, signal.SIGUSR1)
    pool.wait_for_log(rf"worker \d \(pid {pid}\) \| .*in wait_for_gate")
    assert not re.search(r"(master|monitor) \(pid \d+\) \|", pool.log())


# -- USR2


def test_usr2_pauses_claiming_until_the_next_one(
    scene: Scene, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(str(told))
        systemd.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(told))

        def wait_for_status(status: str) -> None:
            eventually(lambda: systemd.recv(4096).decode() == f"STATUS={status}", status)

        with start(dsn, tmp_path / "pool.log", workers=1, poll_interval=0.05, heartbeat_interval=0.5) as pool:
            wait_for_status("1 of 1 worker ready, 0 jobs running")
            scene.warm_up()
            running, *behind = scene.enqueue_together(
                jobs.hold.job(str(scene.directory), "running"), *scene.quick("b", "c")
            )
            scene.wait_for("start", "running")
            pool.send(signal.SIGUSR2)
            wait_for_status("1 of 1 worker ready, 1 job running, claiming is paused")
            eventually(lambda: scene.scalar("select count(*) from pgworker.job_queue") == 2, "what waited is back")
            scene.open_gate("running")
            scene.wait_for_status("succeeded", running)
            late = scene.enqueue(jobs.quick, "late")
            kill(pool.workers[0])  # the next one is paused too
            pool.wait_for_log("a new one starts at once")
            (worker,) = eventually(lambda: pool.workers, "a worker")
            now = scene.scalar("select clock_timestamp()")
            beaten = "select count(*) from pgworker.worker_heartbeats where pid = %s and beat_at > %s + interval '1 s'"
            eventually(lambda: scene.scalar(beaten, worker, now), "a beat after many a poll")
            assert [scene.status(job) for job in (*behind, late)] == ["pending"] * 3
            pool.send(signal.SIGUSR2)
            wait_for_status("1 of 1 worker ready, 0 jobs running")
            scene.wait_for_status("succeeded", *behind, late)
            assert pool.workers == [worker]
            assert [scene.outcomes(job)[-1][1:] for job in (*behind, late)] == [("succeeded", 0)] * 3
            pool.send(signal.SIGUSR2)
            wait_for_status("1 of 1 worker ready, 0 jobs running, claiming is paused")
            pool.send(signal.SIGTERM)
            assert pool.wait() == 0
    assert not scene.leases()


# -- QUIT


def test_quit_stops_at_once_and_everything_goes_back_uncharged(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=3, drain_timeout=600)
    deaf, kind = scene.enqueue(jobs.hold, "deaf"), scene.enqueue(jobs.cooperate, "kind")
    stuck = scene.enqueue(jobs.lock_up_the_gil, "stuck")
    for name in ("deaf", "kind", "stuck"):
        scene.wait_for("start", name)
    pool.send(signal.SIGQUIT)
    assert pool.wait() == 75
    assert scene.noted("stop", "kind")
    assert [scene.outcomes(job) for job in (deaf, kind, stuck)] == [[(1, "released", 0)]] * 3
    assert [scene.status(job) for job in (deaf, kind, stuck)] == ["pending"] * 3
    assert not scene.leases()


def test_quit_of_a_pool_that_runs_nothing_ends_with_0(start_pool: StartPool) -> None:
    pool = start_pool(workers=2)
    pool.send(signal.SIGQUIT)
    assert pool.wait() == 0


def test_quit_hurries_a_drain(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(drain_timeout=600)
    job = scene.enqueue(jobs.hold, "deaf")
    scene.wait_for("start", "deaf")
    pool.send(signal.SIGTERM)
    pool.wait_for_log("TERM: draining")
    pool.send(signal.SIGQUIT)
    assert pool.wait() == 75
    assert scene.outcomes(job) == [(1, "released", 0)]


# -- before the pool is there


def slow_to_start(directory: Path, gate: Path) -> str:
    """An app whose import, and so the start of its pool, takes until the gate is there."""
    (directory / "slow.py").write_text(
        "import pathlib, time\nfrom tests.process.jobs import app\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
    )
    return "slow:app"


def wait_for_boot(pool: Pool) -> None:
    eventually(lambda: "pgworker: check" in pool.processes().values(), "the child that tries the app")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_pool_that_is_stopped_while_it_starts_leaves_nothing(
    number: signal.Signals, dsn: str, tmp_path: Path
) -> None:
    app = slow_to_start(tmp_path, tmp_path / "gate")
    with start(dsn, tmp_path / "pool.log", app=app, cwd=tmp_path) as pool:
        wait_for_boot(pool)
        pool.send(number)
        assert pool.wait() == 0
        assert pool.log() == ""


def test_what_is_asked_while_a_pool_starts_is_done_when_it_is_there(dsn: str, tmp_path: Path) -> None:
    app = slow_to_start(tmp_path, tmp_path / "gate")
    with start(dsn, tmp_path / "pool.log", app=app, cwd=tmp_path, workers=1) as pool:
        wait_for_boot(pool)
        for number in (signal.SIGTTIN, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            pool.send(number)
        (tmp_path / "gate").touch()
        pool.wait_for_log("TTIN: one worker more, 2 from now on")
        pool.wait_for_log("USR2: claiming is paused")
        pool.wait_for_log(f"2 {ROLLED}")
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
