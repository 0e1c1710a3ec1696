"""What is found out before a pool forks: whether it can work at all, and with --preload whether it may fork."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import setproctitle

from pgworker.app.registry import load_app
from pgworker.config.settings import PoolSettings
from pgworker.db.connect import check_schema, connect
from pgworker.db.migrate import migrate
from pgworker.errors import (
    CHECK_PASSED,
    EXIT_BUG,
    EXIT_CONFIGURATION,
    EXIT_UNAVAILABLE,
    ConfigurationError,
    PgworkerError,
)
from pgworker.linux.audit import audit, open_descriptors
from pgworker.linux.fork import fork_child
from pgworker.linux.memory import data_bytes
from pgworker.linux.pidfd import Exit, kill_group

_LOOK = 0.01  # seconds between two looks whether the check has ended, and at signals
_HEADROOM = 32 << 20  # bytes that a worker needs beyond its app: its second thread, its connections, its first job


def check(
    dsn: str,
    app_path: str,
    settings: PoolSettings,
    say: Callable[[PgworkerError], None],
    *,
    migrates: bool = False,
    accepts_newer: bool = False,
) -> int:
    """Try what every worker will do: the database, its schema, the app. What is wrong is said once.

    `accepts_newer` as in `check_schema`. For a child that is gone afterwards; returns its exit code, CHECK_PASSED if
    all is well.
    """
    setproctitle.setproctitle("pgworker: check")
    try:
        if migrates:
            migrate(dsn)
        with connect(dsn, application_name="pgworker start") as connection:
            check_schema(connection, accepts_newer=accepts_newer)
        load_app(app_path)
        _check_memory(settings)
    except PgworkerError as error:
        say(error)
        return error.exit_code
    return CHECK_PASSED


def in_child(run: Callable[[], int]) -> int:
    """The exit code of a `check`, 0 if all is well. ConfigurationError for one that none ends with: importing the app
    has ended the process.

    It is gone when this is left, by a signal too: else it would tell of a server that ends with us as of an outage.
    """
    pid = fork_child(run, keep_fds=(), death_signal=signal.SIGKILL, blocked=())
    try:
        status = _wait(pid)
    except BaseException:
        kill_group(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # it had just ended
            os.waitpid(pid, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code == CHECK_PASSED:
        return 0
    if code in (EXIT_UNAVAILABLE, EXIT_BUG, EXIT_CONFIGURATION):
        return code
    exit_ = Exit(pid, code if code >= 0 else None, -code if code < 0 else None, os.WCOREDUMP(status))
    raise ConfigurationError(
        f"the process that tried to import the app ended with it ({exit_.describe()}):"
        " an app must not exit or crash while it is imported"
    )


def _wait(pid: int) -> int:
    """The status of a child that has ended. Not in one call: a signal a moment before it would go unheard."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(_LOOK)


def preload(app_path: str) -> frozenset[int]:
    """Import the app in this process, from which workers are forked then; returns the descriptors that it has opened.

    ConfigurationError when it has started a thread or opened a connection: no fork keeps those in working order.
    """
    before = open_descriptors()
    load_app(app_path)
    found = audit(before)
    if found.obstacles:
        raise ConfigurationError(
            f"--preload can't be used: importing {app_path.partition(':')[0]} leaves {', '.join(found.obstacles)},"
            " which workers would inherit broken; open it when it is first used, or leave --preload out"
        )
    gc.collect()
    return found.opened


class Interruptible:
    """TERM and QUIT while nothing runs yet: end as Ctrl-C does, undoing what was begun, with exit code 0.

    Without it, QUIT would dump core, TERM mean nothing to PID 1 of a container, and INT nothing to what a shell has put
    into the background. On leaving, all three wait for the master.
    """

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, self._leave)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT))

    @staticmethod
    def _leave(_number: int, _frame: object) -> None:
        raise SystemExit(0)


def _check_memory(settings: PoolSettings) -> None:
    needed = data_bytes() + _HEADROOM
    if settings.memory_limit is not None and settings.memory_limit < needed:
        raise ConfigurationError(
            f"memory_limit must be at least {-(-needed >> 20)}M with this app: a worker has {data_bytes() >> 20}M"
            " of data when the app is imported, before its first job"
        )
