"""The work that servers are broken under: jobs with ledgers, a producer with one, and what must be true at the end.

The ledgers are files, one write per line: what a producer was told of each commit, and what handlers did. The database
is not asked what it has done; it is asked whether that agrees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.lifecycle.enqueue import enqueue_jobs
from pgworker.model.job import JobRequest
from tests.chaos.evidence import Ledger, read
from tests.chaos.trials.apps.noting import WORKED
from tests.chaos.trials.figures import none_of
from tests.chaos.trials.ground import is_quiet, meanwhile
from tests.chaos.trials.trial import Bench, Figure
from tests.process.pool import eventually
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences

APP = "tests.chaos.trials.apps.noting:app"
PATIENCE = 90.0
_PRODUCED = "produced"

# A handler whose own connection ends in the middle of its transaction has failed, as with any other error.
_CHARGED = """
    select count(*) from pgworker.job_executions as e join pgworker.jobs on jobs.id = e.job_id
    where e.outcome in ('failed', 'timed_out', 'crashed') and jobs.task <> 'effect'
"""
_OUTCOMES = "select outcome::text, count(*) from pgworker.job_executions group by 1 order by 1"
_OVERLAP = "I5: executions of a job never overlap"
_SETTLED_LATE = "I2: nothing is settled after its lease was lost"

# What happened first is told by numbers that are drawn under the locks, not by a clock that trials may step.
_NUMBERS = """
create sequence chaos.number;
alter table chaos.recorded add number bigint default nextval('chaos.number');
alter table chaos.lease_ended add number bigint default nextval('chaos.number');
"""
_SETTLED_LATE_BY_NUMBER = """
    select recorded.*, lease_ended.number as ended from chaos.recorded join chaos.lease_ended using (lease_id)
    where recorded.number > lease_ended.number and recorded.xid <> lease_ended.xid
"""


@dataclass(frozen=True, slots=True)
class Noted:
    """A line of a handler's: at `at` seconds of the monotonic clock of this machine."""

    event: str
    key: str
    execution: int
    at: float


class Work:
    """The work of one trial: in the database `dsn`, with ledgers in a directory of its own."""

    def __init__(self, bench: Bench, dsn: str, directory: Path | None = None) -> None:
        self.dsn = dsn
        self.directory = directory or bench.directory
        self._dice = bench.dice
        self._keys = 0
        with self.connect() as connection:
            connection.execute((WITNESSES + _NUMBERS).encode())

    def connect(self) -> Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=True, application_name="observer", connect_timeout=5)

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            return connection.execute(statement.encode()).fetchall()

    # -- to enqueue

    def enqueue(self, jobs: int, *, task: str = "", seconds: float = 0.0) -> list[str]:
        """Enqueue so many in one transaction; their keys. A mixture, unless `task` says which."""
        with self.connect() as connection:
            return self._enqueue(connection, jobs, task, seconds)

    def _enqueue(self, connection: Connection[Any], jobs: int, task: str, seconds: float) -> list[str]:
        keys = [f"k{self._keys + number}" for number in range(jobs)]
        self._keys += jobs
        requests = []
        for key in keys:
            name = task or self._dice.choice(["plain", "plain", "effect"])
            arguments: dict[str, object] = {"directory": str(self.directory), "key": key}
            arguments |= {} if name == "hold" else {"seconds": seconds}
            requests.append(JobRequest(name, json.dumps(arguments), max_attempts=1 if name == "hold" else 3))
        ledger = Ledger(self.directory / _PRODUCED)
        ledger.note_all([("plan", key) for key in keys])
        ids = enqueue_jobs(connection, requests)
        ledger.note_all([("acked", key, job_id) for key, job_id in zip(keys, ids, strict=True)])
        return keys

    @contextmanager
    def producing(self, rate: float, *, batch: int = 1, seconds: float = 0.0) -> Iterator[None]:
        """Inside, a producer commits so many batches a second; what fails it enqueues no second time."""

        def produce(is_over: Event) -> None:
            while not is_over.is_set():
                with suppress(psycopg.Error), self.connect() as connection:
                    while not is_over.wait(1 / rate):
                        self._enqueue(connection, batch, "", seconds)

        with meanwhile(produce):
            yield

    # -- what was seen

    def produced(self) -> dict[str, str]:
        """The keys whose commit was acknowledged, and their jobs."""
        return {words[1]: words[2] for words in self._lines(_PRODUCED) if words[0] == "acked"}

    def worked(self) -> list[Noted]:
        return [Noted(event, key, int(number), float(at)) for event, key, number, at in self._lines(WORKED)]

    def ends(self) -> list[float]:
        """When jobs have ended, in order."""
        return sorted(noted.at for noted in self.worked() if noted.event == "end")

    def _lines(self, name: str) -> list[list[str]]:
        file = self.directory / name
        return list(read(file)) if file.exists() else []

    def wait_for(self, event: str, keys: Sequence[str]) -> None:
        """Return when handlers have noted this of all these keys."""
        eventually(
            lambda: {noted.key for noted in self.worked() if noted.event == event} >= set(keys), f"{event} {keys[:3]}"
        )

    def wait_until_done(self, within: float = PATIENCE) -> None:
        """Return when nothing waits or runs any more, whatever is wrong with the server meanwhile."""

        def look() -> bool:
            with suppress(psycopg.OperationalError), self.connect() as connection:
                return is_quiet(connection)
            return False

        eventually(look, lambda: f"all done, not {self.outcomes()}", within)

    # -- what must be true

    def outcomes(self) -> dict[str, int]:
        return dict(self.ask(_OUTCOMES))

    def overlaps(self) -> list[tuple[Noted, Noted]]:
        """Executions that began before an earlier one of the same job had said that it ended."""
        open_since: dict[str, Noted] = {}
        found = []
        for noted in sorted(self.worked(), key=lambda noted: noted.at):
            if noted.event == "start":
                if noted.key in open_since:
                    found.append((open_since[noted.key], noted))
                open_since[noted.key] = noted
            elif noted.key in open_since and open_since[noted.key].execution == noted.execution:
                del open_since[noted.key]
        return found

    def run_again(self) -> list[str]:
        """Keys of jobs that have started again after they had ended."""
        ended: set[str] = set()
        again = []
        for noted in sorted(self.worked(), key=lambda noted: noted.at):
            if noted.event == "end":
                ended.add(noted.key)
            elif noted.event == "start" and noted.key in ended:
                again.append(noted.key)
        return again

    def figures(self, *, charged: int | None = 0, timed: bool = True, lost: int = 0) -> list[Figure]:
        """The invariants at the end: nothing lost, nothing contradicts, no more charged than said.

        `timed`: the server's clock was never set, so times may be compared. `lost`: acknowledged jobs that may be gone.
        """
        with self.connect() as connection:
            stored = {name: query for name, query in STORED.items() if timed or name != _OVERLAP}
            found = offences(connection, stored | dict(WITNESSED) | {_SETTLED_LATE: _SETTLED_LATE_BY_NUMBER})
            jobs = {str(row[0]) for row in connection.execute("select id from pgworker.jobs")}
            charges = connection.execute(_CHARGED).fetchall()[0][0]
        missing = [job for job in self.produced().values() if job not in jobs]
        return [
            Figure("acknowledged jobs that are lost", f"{lost} at most", str(len(missing)), len(missing) <= lost),
            none_of("invariants broken", found),
            Figure(
                "executions charged without a transaction of their own",
                "any" if charged is None else f"{charged} at most",
                str(charges),
                charged is None or charges <= charged,
            ),
        ]


def rate_in(moments: Sequence[float], begin: float, end: float) -> float:
    """How many of these moments a second lie between the two."""
    return sum(begin <= at < end for at in moments) / (end - begin)


def recovered_after(moments: Sequence[float], begin: float, least: float, window: float = 1.0) -> float | None:
    """Seconds from `begin` to the end of the first window with so many a second; None: there is none."""
    last = max(moments, default=begin)
    step = 0
    while (opens := begin + step * 0.05) + window <= last + 0.05:
        if rate_in(moments, opens, opens + window) >= least:
            return opens + window - begin
        step += 1
    return None
