"""Peers, each in an environment of its own: where they are, and one run of their scripts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import click
import msgspec
from psycopg.conninfo import conninfo_to_dict

from pgworker.bench.failure import BenchFailed

IN_PYTHON = {
    "procrastinate": "use_procrastinate.py",
    "pgqueuer": "use_pgqueuer.py",
    "awa": "use_awa.py",
    "oban": "use_oban.py",
}
IN_NODE = {"graphile-worker": "graphile-worker.mjs"}

_SCRIPTS = Path(__file__).with_name("peers")
_PATIENCE = 1800.0  # seconds for a whole run
_LAST_WORDS = 2000  # characters of what a peer said that are shown if it failed


class Run(msgspec.Struct, frozen=True):
    """What one contestant did in one run; a peer's script prints this."""

    peer: str
    version: str
    runtime: str
    jobs: int
    workers: int
    settings: str
    enqueue_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Peer:
    """`command` runs its script, up to the number of jobs; `directory` is where that looks for what it imports."""

    name: str
    command: tuple[str, ...]
    directory: Path


def find_peer(told: str) -> Peer:
    """From NAME=WHERE. click.BadParameter: there is no such peer, or it isn't there."""
    name, _, where = told.partition("=")
    place = Path(where).absolute()
    if name in IN_PYTHON:
        if not (place.is_file() and os.access(place, os.X_OK)):
            raise click.BadParameter(f"{name} needs the Python that has it, and {where!r} is no program")
        return Peer(name, (str(place), str(_SCRIPTS / IN_PYTHON[name])), _SCRIPTS)
    if name in IN_NODE:
        node = shutil.which("node")
        if node is None or not (place / "node_modules" / name).is_dir():
            raise click.BadParameter(f"{name} needs `node`, and {where!r} to be a directory with node_modules/{name}")
        return Peer(name, (node, str(_SCRIPTS / IN_NODE[name])), place)
    raise click.BadParameter(f"no peer is called {name!r}; there are: {', '.join([*IN_PYTHON, *IN_NODE])}")


def run_peer(dsn: str, jobs: int, workers: int, peer: Peer) -> Run:
    """In an empty database. BenchFailed: it failed, is not done in time, or did not say what it did."""
    told = _output(peer, [str(jobs), str(workers)], dsn)
    try:
        run = msgspec.json.decode(told, type=Run)
    except msgspec.DecodeError as error:
        raise BenchFailed(f"{peer.name} was to print one line of JSON ({error}), and said: {told!r}") from error
    if (run.jobs, run.workers) != (jobs, workers) or min(run.seconds, run.enqueue_seconds) <= 0:
        raise BenchFailed(f"{peer.name} was to run {jobs} jobs in {workers} workers, and says: {told}")
    return run


def _output(peer: Peer, words: Sequence[str], dsn: str) -> str:
    """What its script prints. It leaves no process behind."""
    nothing_of_ours = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.Popen(
        [*peer.command, *words],
        cwd=peer.directory,
        env=nothing_of_ours | {"LC_ALL": "C.UTF-8", "BENCH_DSN": as_uri(dsn)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        told, said = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"{peer.name}: not done within {_PATIENCE:g} s") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        last = (told + said)[-_LAST_WORDS:].strip()
        raise BenchFailed(f"{peer.name} has ended with code {process.returncode}; it said:\n{last}")
    return told.strip()


def as_uri(dsn: str) -> str:
    """A DSN as a URI, in the one form that most drivers understand: directories of sockets as a parameter."""
    told = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    user, password, name = (quote(told.pop(key, ""), safe="") for key in ("user", "password", "dbname"))
    host, port = ("", "") if told.get("host", "").startswith("/") else (told.pop("host", ""), told.pop("port", ""))
    login = user + (f":{password}" if password else "")
    place = host + (f":{port}" if port else "")
    return f"postgresql://{login}@{place}/{name}" + (f"?{urlencode(told)}" if told else "")
