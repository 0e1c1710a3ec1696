"""The demo: a private PostgreSQL, real jobs, a pool that loses workers on the way, and the reckoning at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import psycopg

from pgworker.config.settings import PoolSettings
from pgworker.db import embedded
from pgworker.db.connect import Connection, connect, explain
from pgworker.db.migrate import migrate
from pgworker.demo.checks import Story, check_all
from pgworker.demo.evidence import count_unfinished, gather, make_table, read_clock, read_versions
from pgworker.demo.files import FileFacts, library_files, plain_loop
from pgworker.demo.interrupts import Interrupted, Interrupts
from pgworker.demo.jobs import app
from pgworker.demo.news import News
from pgworker.demo.plan import make_plan
from pgworker.demo.pool import PoolProcess
from pgworker.demo.progress import Stages, open_progress
from pgworker.demo.report import Result, as_json, print_report
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
    print_json: Callable[[Mapping[str, Any]], None] | None = None
    """Prints the result in place of the page."""


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
    with open_progress() as progress:
        result = _tell(options, run_pool, progress)
    if isinstance(result, Interrupted):
        return result.exit_code
    if options.print_json is not None:
        options.print_json(as_json(result))
    else:
        print_report(result)
    return 0 if result.holds else EXIT_FAILED


def _tell(options: DemoOptions, run_pool: RunPool, progress: Stages) -> Result | Interrupted:
    try:
        with Interrupts() as interrupts, _open_home(options) as home:
            story, seconds = _Telling(home, options.workers, run_pool, interrupts, progress).tell()
            checks = check_all(story)
            home.is_kept = home.is_kept or not all(check.holds for check in checks)
    except Interrupted as interrupted:
        left = f"its database stays in {home.path}" if home.is_kept else "its directory is removed"
        progress.finish(f"interrupted while {progress}: pool and PostgreSQL have ended, {left}")
        return interrupted
    kept = home.path if home.is_kept else None
    return Result(story, checks, options.workers, seconds, kept, home.log, options.program)


class _Telling:
    """The story, act by act."""

    def __init__(self, home: _Home, workers: int, run_pool: RunPool, interrupts: Interrupts, progress: Stages) -> None:
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
            self._check()
            migrate(self._dsn)
            self._check()
            return self._work(notes)

    def _check(self) -> None:
        try:
            self._interrupts.check()
        except Interrupted:
            self._progress.break_off("ending the pool and its PostgreSQL")
            raise

    def _work(self, notes: Path) -> tuple[Story, float]:
        plan = make_plan(library_files(), notes)
        with connect(self._dsn, application_name="pgworker demo") as connection:
            make_table(connection)
            begun = read_clock(connection)
            server, schema = read_versions(connection)
            self._progress.finish(f"a private PostgreSQL {server} runs, with pgworker's schema {schema}")
            ids = [job.id for job in app.enqueue_many([job.request for job in plan.jobs], connection)]
            self._progress.finish(f"{len(ids):,} jobs are enqueued, one for each file, and {plan.odd} that go wrong")
        facts, looped = self._loop([Path(job.path) for job in plan.jobs if job.path is not None])
        jobs = dict(zip(ids, plan.jobs, strict=True))
        started = time.monotonic()
        with (
            PoolProcess(partial(self._run_pool, self._dsn, self._settings), self._home.log) as pool,
            connect(self._dsn, application_name="pgworker demo") as connection,
        ):
            trouble = Trouble(plan, jobs, connection, self._progress)
            news = News(jobs, connection, self._progress)
            left = partial(_count_left, connection, ids)
            self._watch(pool, trouble, news, left, len(ids), _PATIENCE + 3 * looped)
            seconds = time.monotonic() - started
            self._progress.finish(f"a pool has done {len(ids) - left():,} of {len(ids):,} jobs, in {seconds:.1f} s")
            self._progress.stage("draining the pool")
            exit_code = pool.drain(2 * _DRAIN_TIMEOUT)
            self._progress.finish(
                f"it has drained: exit code {exit_code}" if exit_code is not None else "it did not end"
            )
            self._progress.stage("comparing")
            return Story(plan, jobs, facts, trouble.killed_pid, exit_code, gather(connection, ids, begun)), seconds

    def _loop(self, paths: list[Path]) -> tuple[dict[str, FileFacts], float]:
        """What is in the files by the plain loop, and the seconds that it took."""
        self._progress.stage("reading the standard library in a plain loop", len(paths))
        shown_at = started = time.monotonic()

        def look(done: int) -> None:
            nonlocal shown_at
            self._check()
            if time.monotonic() - shown_at > _LOOK_EVERY:
                shown_at = time.monotonic()
                self._progress.advance(done)

        facts, seconds = plain_loop(paths, look), time.monotonic() - started
        self._progress.finish(f"a plain loop has read {len(paths):,} files, in {seconds:.1f} s")
        return facts, seconds

    def _watch(
        self,
        pool: PoolProcess,
        trouble: Trouble,
        news: News,
        count_left: Callable[[], int],
        jobs: int,
        patience: float,
    ) -> None:
        """Until every job has ended, the pool has, or patience has."""
        self._progress.stage("running the jobs in a pool that loses workers", jobs)
        ends = time.monotonic() + patience
        while pool.wait(_LOOK_EVERY) is None and time.monotonic() < ends:
            self._check()
            trouble.make()
            left = count_left()
            news.look()
            self._progress.advance(jobs - left)
            if not left:
                return


def _count_left(connection: Connection, ids: Sequence[UUID]) -> int:
    """Jobs that have not ended."""
    return sum(count_unfinished(connection, ids))


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
