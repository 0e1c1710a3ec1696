"""Pools of the command `pgworker start`, as anybody would start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

from pgworker.bench.failure import BenchFailed
from pgworker.linux.fork import set_death_signal

APP = "pgworker.bench.jobs:app"

_DRAINED_WITHIN = 60.0  # seconds
_LAST_LINES = 2000  # bytes of a pool's log that are shown if it failed


class Pool:
    """One of them, with its log in a file. It drains when this process dies."""

    def __init__(self, dsn: str, log: Path, workers: int, flags: Sequence[str]) -> None:
        """Nothing but `flags` says how: neither the environment nor a file of this directory."""
        self._log = log
        self._is_killed = False
        nowhere = {name: value for name, value in os.environ.items() if not name.startswith("PGWORKER_")}
        command = [sys.executable, "-m", "pgworker", "start", "--app", APP, "--workers", str(workers), *flags]
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603  ourselves
                [*command, "--metrics-listen", "off"],
                env=nowhere | {"PGWORKER_DSN": dsn, "PGWORKER_CONFIG": os.devnull},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is for the bench, which drains its pools
                preexec_fn=partial(set_death_signal, signal.SIGTERM),
            )

    def pids(self) -> list[int]:
        """Of all its processes, the master's first."""
        try:
            master = psutil.Process(self._process.pid)
            return [master.pid, *(child.pid for child in master.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def require_alive(self) -> None:
        """BenchFailed, with the end of its log, unless it runs, or has been killed by us."""
        code = self._process.poll()
        if code is not None and not self._is_killed:
            last = self._log.read_bytes()[-_LAST_LINES:].decode(errors="replace").strip()
            raise BenchFailed(f"the pool has ended with code {code}; its log ends with:\n{last}")

    def begin_drain(self) -> None:
        """Send it TERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has ended; killed if that takes longer than a drain may."""
        try:
            self._process.wait(_DRAINED_WITHIN)
        finally:
            self.kill()

    def kill(self) -> None:
        """All its processes at one moment, as if the host had lost power."""
        self._is_killed = True
        pids = self.pids() if self._process.poll() is None else []
        for number, order in ((signal.SIGSTOP, reversed(pids)), (signal.SIGKILL, pids)):  # nobody sees another one die
            for pid in order:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        self._process.wait()


@contextmanager
def running(dsn: str, directory: Path, count: int, workers: int, flags: Sequence[str]) -> Iterator[list[Pool]]:
    """So many pools; they are drained together at the end, and nothing is left of them however that goes."""
    pools: list[Pool] = []
    try:
        for number in range(count):
            pools.append(Pool(dsn, directory / f"pool{number}.log", workers, flags))  # noqa: PERF401  each may fail
        yield pools
        for pool in pools:
            pool.begin_drain()
        for pool in pools:
            with suppress(subprocess.TimeoutExpired):
                pool.wait()
    finally:
        for pool in pools:
            pool.kill()
