"""`pgworker start --reload`: files of an app are edited while its pool runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.test_cli import refusal, run
from tests.acceptance.test_start import command, environment
from tests.process.pool import Pool, eventually, launched

APP = """
from pgworker import App
from rules import answer

app = App()

@app.task(name="ask")
def ask() -> int:
    return answer

@app.task(name="hold")
def hold(directory: str) -> int:
    import pathlib, time
    pathlib.Path(directory, f"held-by-{answer}").touch()
    while not pathlib.Path(directory, "gate").exists():
        time.sleep(0.01)
    return answer
"""
RELOADED = "workers run the app as it is now"
Start = Callable[..., "Project"]


class Project:
    """An app in a directory, and the pool that a developer has started there."""

    def __init__(self, pool: Pool, directory: Path, connection: psycopg.Connection[Any]) -> None:
        self.pool = pool
        self.directory = directory
        self._connection = connection

    def save(self, text: str, name: str = "rules.py") -> None:
        """As editors do: a new file takes the place of the old one."""
        new = self.directory / f".{name}.swp"
        new.write_text(text)
        new.replace(self.directory / name)

    def enqueue(self, task: str, payload: str = "{}") -> str:
        row = self._connection.execute("select pgworker.enqueue(%s, %s::jsonb)::text", [task, payload]).fetchone()
        assert row
        return str(row[0])

    def result(self, job: str) -> object:
        """What its one successful execution returned, once it has."""

        def look() -> list[tuple[Any, ...]]:
            return self._connection.execute(
                "select result from pgworker.job_executions where job_id = %s and outcome = 'succeeded'", [job]
            ).fetchall()

        ((result,),) = eventually(look, lambda: f"a result of {job}")
        return result

    def answer(self) -> object:
        return self.result(self.enqueue("ask"))

    def count(self, words: str) -> int:
        return len(re.findall(re.escape(words), self.pool.log()))

    def wait_for_reloads(self, times: int) -> None:
        eventually(lambda: self.count(RELOADED) >= times, f"{times} reloads")


@pytest.fixture
def start(dsn: str, connect: Callable[[], psycopg.Connection[Any]], tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as pools:

        def start_one(*words: str) -> Project:
            directory = tmp_path / "project"
            directory.mkdir()
            (directory / "shop.py").write_text(APP)
            (directory / "rules.py").write_text("answer = 1\n")
            log_file = tmp_path / "pool.log"
            pools.callback(lambda: print(log_file.read_text()))  # noqa: T201  pytest shows it when the test fails
            starts = command("--app", "shop:app", "-w", "1", "--metrics-listen", "off", "--reload", *words)
            pool = pools.enter_context(launched(starts, log_file, environment(PGWORKER_DSN=dsn), directory))
            pool.wait_for_log("the pool is ready")
            pool.wait_for_log("Python files in .* are watched")
            connection = connect()
            connection.autocommit = True
            return Project(pool, directory, connection)

        yield start_one


def test_a_saved_file_is_one_reload_and_ctrl_c_leaves_nothing(start: Start) -> None:
    project = start()
    assert project.answer() == 1
    project.save("answer = 2\n")
    project.wait_for_reloads(1)
    assert project.answer() == 2
    project.save("answer = 3\n")
    project.wait_for_reloads(2)
    assert project.answer() == 3
    assert project.count("rules.py changed: HUP") == project.count(RELOADED) == 2
    project.pool.send(signal.SIGINT)
    assert project.pool.wait() == 0


def test_what_is_no_python_file_reloads_nothing_and_many_files_are_one_reload(start: Start) -> None:
    project = start()
    (project.directory / "notes.txt").write_text("x")
    (project.directory / "pgworker.toml").write_text("")
    (project.directory / "__pycache__").mkdir(exist_ok=True)
    (project.directory / "__pycache__" / "x.py").write_text("")
    for number in range(20):
        (project.directory / f"module{number}.py").write_text("")
    project.wait_for_reloads(1)
    assert project.count("changed: HUP") == project.count("and 17 more changed: HUP") == 1


def test_a_syntax_error_is_told_with_its_line_and_the_old_workers_go_on(start: Start) -> None:
    project = start()
    before = project.pool.workers
    project.save("answer = = 2\n")
    told = project.pool.wait_for_log("the old workers go on")
    assert "SyntaxError" in told
    assert "rules.py:1" in told or "line 1" in told
    assert project.answer() == 1
    assert project.pool.workers == before
    project.save("answer = 2\n")
    project.wait_for_reloads(1)
    assert project.answer() == 2


def test_an_edit_during_a_reload_is_reloaded_after_it(start: Start) -> None:
    project = start()
    job = project.enqueue("hold", f'{{"directory": "{project.directory}"}}')
    eventually((project.directory / "held-by-1").exists, "a running job")
    project.save("answer = 2\n")
    project.pool.wait_for_log("the app can be imported")
    project.save("answer = 3\n")
    project.pool.wait_for_log("once more, when the rolling restart under way is over")
    (project.directory / "gate").touch()
    assert project.result(job) == 1
    project.wait_for_reloads(2)
    assert project.answer() == 3


def test_a_long_job_holds_up_a_reload_for_the_drain_timeout_only_and_runs_again_in_the_new_app(start: Start) -> None:
    project = start("--drain-timeout", "1s", "--cancel-grace", "0", "--term-grace", "0.5")
    job = project.enqueue("hold", f'{{"directory": "{project.directory}"}}')
    eventually((project.directory / "held-by-1").exists, "a running job")
    project.save("answer = 2\n")
    project.pool.wait_for_log("a job of worker 0 is stopped after 1 s and goes back to the queue, uncharged")
    eventually((project.directory / "held-by-2").exists, "the job in the new app")
    (project.directory / "gate").touch()
    assert project.result(job) == 2
    assert project.count("is stopped after") == 1
    project.wait_for_reloads(1)


def test_a_watcher_that_dies_is_told_and_replaced(start: Start) -> None:
    project = start()
    (watcher,) = [pid for pid, title in project.pool.processes().items() if title.startswith("pgworker: watcher")]
    os.kill(watcher, signal.SIGKILL)
    project.pool.wait_for_log(rf"the watcher of --reload \(pid {watcher}\): killed by SIGKILL; it is started again")
    eventually(lambda: project.count("are watched") == 2, "a new watcher")
    project.save("answer = 2\n")
    project.wait_for_reloads(1)
    assert project.answer() == 2


def test_reload_and_preload_are_refused_together() -> None:
    words = ("--app", "shop:app", "--reload", "--preload")
    assert "reload needs an app that every worker imports anew, so leave preload out" in refusal(
        run("start", *words), 78
    )


def test_without_the_library_the_command_that_installs_it_is_told(dsn: str) -> None:
    """A finder that knows no watchfiles stands for an environment without it."""
    program = (
        "import sys; sys.modules['watchfiles'] = None\nfrom pgworker.cli.root import main; sys.exit(main(sys.argv[1:]))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", program, "start", "--app", "tests.acceptance.tasks:app", "--dsn", dsn, "--reload"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.returncode == 78
    assert asked.stderr == "pgworker: --reload needs watchfiles: pip install 'pgworker[reload]'\n"
