"""The demo: a private PostgreSQL, real jobs, a pool that loses workers on the way, and the reckoning at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import psycopg

from pgworker.config.settings import PoolSettings
from pgworker.db import embedded
from pgworker.db.connect import connect, explain
from pgworker.db.migrate import migrate
from pgworker.demo.checks import Story, check_all
from pgworker.demo.evidence import count_unfinished, gather, make_table, read_clock
from pgworker.demo.files import FileFacts, library_files, plain_loop
from pgworker.demo.interrupts import Interrupted, Interrupts
from pgworker.demo.jobs import app
from pgworker.demo.plan import make_plan
from pgworker.demo.pool import PoolProcess
from pgworker.demo.progress import Progress, open_progress
from pgworker.demo.report import Result, print_report
from pgworker.demo.trouble import Trouble
from pgworker.linux.cpus import count_cpus

APP = "pgworker.demo.jobs:app"
EXIT_FAILED = 1

_LOOK_EVERY = 0.1  # seconds
_PATIENCE = 30.0  # seconds for the pool, besides three times what the plain loop took
_DRAIN_TIMEOUT = 5.0  # seconds

RunPool = Callable[[str, PoolSettings], int]
"""`pgworker start` on this DSN with these settings, for the app above; returns its exit code."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says; `program` is how to call it again.

    No `directory`: a temporary one, removed at the end unless `keep`.
    """

    directory: Path | None
    keep: bool
    workers: int
    program: str


@dataclass(slots=True)
class _Home:
    path: Path
    is_kept: bool

    @property
    def log(self) -> Path:
        return self.path / "pool.log"


def default_demo_workers() -> int:
    """Two at least, so that one can die while the other works on."""
    return max(2, min(8, count_cpus()))


def run_demo(options: DemoOptions, run_pool: RunPool) -> int:
    """Tell the whole story and print what came of it; returns 0 only if every check holds.

    130 (143, 129) after INT (TERM, HUP), once everything is ended. A temporary directory is kept for its log if
    something was off. Raises ConfigurationError where no PostgreSQL can be run, DatabaseUnavailable if it ends early.
    """
    try:
        with Interrupts() as interrupts, _open_home(options) as home:
            with open_progress() as progress:
                story, seconds = _Telling(home, options.workers, run_pool, interrupts, progress).tell()
            checks = check_all(story)
            home.is_kept = home.is_kept or not all(check.holds for check in checks)
    except Interrupted as interrupted:
        return interrupted.exit_code
    kept = home.path if home.is_kept else None
    print_report(Result(story, checks, options.workers, seconds, kept, home.log, options.program))
    return 0 if all(check.holds for check in checks) else EXIT_FAILED


class _Telling:
    """The story, act by act."""

    def __init__(
        self, home: _Home, workers: int, run_pool: RunPool, interrupts: Interrupts, progress: Progress
    ) -> None:
        self._home = home
        self._dsn = f"embedded:{home.path}"
        self._settings = PoolSettings(
            workers=workers, metrics_listen=None, cancel_grace=1.0, term_grace=0.5, drain_timeout=_DRAIN_TIMEOUT
        )
        self._run_pool = run_pool
        self._interrupts = interrupts
        self._progress = progress

    def tell(self) -> tuple[Story, float]:
        """What came of it, and the seconds that the pool took."""
        self._progress.stage("starting a private PostgreSQL")
        with embedded.start(self._home.path), _open_notes(self._home) as notes:
            self._interrupts.check()
            migrate(self._dsn)
            self._interrupts.check()
            return self._work(notes)

    def _work(self, notes: Path) -> tuple[Story, float]:
        plan = make_plan(library_files(), notes)
        with connect(self._dsn, application_name="pgworker demo") as connection:
            make_table(connection)
            begun = read_clock(connection)
            ids = [job.id for job in app.enqueue_many([job.request for job in plan.jobs], connection)]
        facts, looped = self._loop([Path(job.path) for job in plan.jobs if job.path is not None])
        jobs = dict(zip(ids, plan.jobs, strict=True))
        started = time.monotonic()
        with (
            PoolProcess(partial(self._run_pool, self._dsn, self._settings), self._home.log) as pool,
            connect(self._dsn, application_name="pgworker demo") as connection,
        ):
            trouble = Trouble(plan, jobs, connection, self._progress)
            self._watch(pool, trouble, lambda: sum(count_unfinished(connection, ids)), len(ids), _PATIENCE + 3 * looped)
            seconds = time.monotonic() - started
            self._progress.stage("draining the pool")
            exit_code = pool.drain(2 * _DRAIN_TIMEOUT)
            return Story(plan, jobs, facts, trouble.killed_pid, exit_code, gather(connection, ids, begun)), seconds

    def _loop(self, paths: list[Path]) -> tuple[dict[str, FileFacts], float]:
        """What is in the files by the plain loop, and the seconds that it took."""
        self._progress.stage("a plain loop over the standard library", len(paths))
        shown_at = started = time.monotonic()

        def look(done: int) -> None:
            nonlocal shown_at
            self._interrupts.check()
            if time.monotonic() - shown_at > _LOOK_EVERY:
                shown_at = time.monotonic()
                self._progress.advance(done)

        return plain_loop(paths, look), time.monotonic() - started

    def _watch(
        self, pool: PoolProcess, trouble: Trouble, unfinished: Callable[[], int], jobs: int, patience: float
    ) -> None:
        """Until every job has ended, the pool has, or patience has."""
        self._progress.stage("the same by a pool that loses workers", jobs)
        ends = time.monotonic() + patience
        while pool.wait(_LOOK_EVERY) is None and time.monotonic() < ends:
            self._interrupts.check()
            trouble.make()
            left = unfinished()
            self._progress.advance(jobs - left)
            if not left:
                return


@contextmanager
def _open_home(options: DemoOptions) -> Iterator[_Home]:
    """The demo's directory: removed at the end unless it is to be kept, or has the log of something that went wrong.

    An error of the database comes out as what it means.
    """
    home = _Home(_make_directory(options.directory), options.keep or options.directory is not None)
    try:
        yield home
    except Interrupted:
        raise
    except Exception as error:
        home.is_kept = home.log.exists() or options.directory is not None
        if home.log.exists():
            click.echo(f"The pool's log: {home.log}", err=True)
        if isinstance(error, psycopg.Error):
            raise explain(error, f"embedded:{home.path}") from error
        raise
    finally:
        if not home.is_kept:
            _remove(home.path)


def _make_directory(given: Path | None) -> Path:
    if given is not None:
        return given.resolve()
    made = Path(tempfile.mkdtemp(prefix="pgworker-"))
    if os.geteuid() == 0:
        made.chmod(0o711)  # the server runs as another user, and its data shall be in here
    return made.resolve()


@contextmanager
def _open_notes(home: _Home) -> Iterator[Path]:
    """Where jobs say that they run, for this run of the demo alone."""
    with tempfile.TemporaryDirectory(prefix="notes-", dir=home.path) as name:
        yield Path(name)


def _remove(directory: Path) -> None:
    """All of it, with the data that the server of root may have had to put elsewhere."""
    data = directory / "data"
    if data.is_symlink():
        shutil.rmtree(data.resolve(), ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)
