"""The master is killed, with its monitor or with the whole pool: who ends, and when its jobs are free again.

Alone: the kernel kills the workers, and the monitor gives back what they ran. With the monitor: the workers end, and
another pool takes over, as it does when a pool is killed whole. In a part of these the dead pool is made one of another
host: then no process of it can be looked for, and the end of its leases decides.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.trials import ledgers
from tests.chaos.trials.apps.jobs import gated
from tests.chaos.trials.figures import durations, none_of
from tests.chaos.trials.ground import Ground, gate, ground
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import Pool, eventually
from tests.sql.invariants import offences

WORKERS = 2
TTL = 4.0
BEAT = 0.5
TOGETHER = 3
"""Masters that are killed at a time, each of a pool and a database of its own."""
BRIEF = 20

_HELD = "select count(*) from pgworker.job_leases"
_LEFT = "select extract(epoch from max(at))::float8 from chaos.lease_left"


@dataclass(slots=True)
class Times:
    """Seconds from the kill."""

    workers_gone: list[float] = field(default_factory=list)
    reclaimed: list[float] = field(default_factory=list)
    monitor_gone: list[float] = field(default_factory=list)
    wrong: int = 0


def kill_masters(bench: Bench, name: str, tries: int) -> Times:
    """One after the other, on one database; each runs a job in every worker and has others waiting behind."""
    times = Times()
    with ground(bench, name) as place:
        for number in range(tries):
            with place.pool(workers=WORKERS) as pool, gate(place, f"gate{number}") as path:
                records = place.starts()
                jobs = [gated.job(path.name) for _ in range(WORKERS)]
                place.enqueue(jobs)
                place.wait_for_starts(records + WORKERS)
                workers, monitor = pool.workers, pool.monitor
                killed = time.time()
                os.kill(pool.master, signal.SIGKILL)
                times.workers_gone.append(until_gone(workers, killed))
                times.monitor_gone.append(until_gone([monitor], killed))
                times.wrong += int(place.scalar(_HELD))
                times.reclaimed.append(float(place.scalar(_LEFT)) - killed)
        times.wrong += sum(map(len, settle_the_rest(place)))
    return times


def settle_the_rest(place: Ground) -> list[list[object]]:
    """Run what was given back; what is wrong then. Nobody was charged for his master."""
    with place.pool(workers=WORKERS):
        place.wait_until_quiet()
    ledgers.store(place.connection, place.directory, place.enqueued)
    wrong: list[list[object]] = [list(rows) for rows in offences(place.connection, ledgers.WRONG).values()]
    charged = place.rows("select job_id, outcome from pgworker.job_executions where failures > 0")
    return [*wrong, list(charged)]


def until_gone(pids: Sequence[int], began: float) -> float:
    eventually(lambda: not any(is_there(pid) for pid in pids), lambda: f"{pids} gone")
    return time.time() - began


def is_there(pid: int) -> bool:
    """Whether there is such a process that has not ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- others take over


def take_over(bench: Bench, name: str, elsewhere: bool, tries: int) -> tuple[list[float], list[float], int]:
    """Seconds from the kill to the reclaim by another pool, how long after the end of the leases that was, and how many
    jobs are wrong at the end. A master is killed with its monitor, or its whole pool."""
    after_kill, after_expiry = [], []
    settings: dict[str, Any] = {"workers": WORKERS, "lease_ttl": TTL, "heartbeat_interval": BEAT}
    with ground(bench, name) as place, place.pool(**settings, queues=["elsewhere", "default"]) as other:
        for number in range(tries):
            other.send(signal.SIGUSR2)
            eventually(lambda paused=number + 1: other.log().count("claiming is paused") == paused, "a pause")  # type: ignore[misc]
            with place.pool(**settings) as pool, gate(place, f"gate{number}") as path:
                records = place.starts()
                place.enqueue([gated.job(path.name) for _ in range(WORKERS)])
                place.wait_for_starts(records + WORKERS)
                killed = kill_some(place, pool, elsewhere, whole=bench.dice.random() < 0.5)
                expiry = float(place.scalar("select extract(epoch from max(expires_at)) from pgworker.job_leases"))
                eventually(lambda: not place.scalar(_HELD), place.describe)
                freed = float(place.scalar(_LEFT))
                after_kill.append(freed - killed)
                after_expiry.append(freed - expiry)
            other.send(signal.SIGUSR2)
            place.wait_until_quiet()
        ledgers.store(place.connection, place.directory, place.enqueued)
        wrong = offences(place.connection, ledgers.WRONG)
    return after_kill, after_expiry, sum(map(len, wrong.values()))


def kill_some(place: Ground, pool: Pool, elsewhere: bool, *, whole: bool) -> float:
    """When. The workers of a master that is killed with its monitor are ended by the kernel."""
    if elsewhere:
        move = "update pgworker.worker_heartbeats set host = 'elsewhere' where pid = any (%s) returning pid"
        eventually(lambda: len(place.rows(move, pool.workers)) == WORKERS, "beats of both workers")
    monitor = pool.monitor
    killed = time.time()
    if whole:
        pool.signal_all(signal.SIGSTOP)
        pool.signal_all(signal.SIGKILL)
    else:
        for pid in (monitor, pool.master):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not pool.processes(), "nobody left of the pool")
    return killed


def run(bench: Bench) -> Sequence[Figure]:
    is_brief = bench.size <= BRIEF
    places = min(TOGETHER, bench.size)
    with ThreadPoolExecutor(places) as threads:
        shares = [bench.size // places + (number < bench.size % places) for number in range(places)]
        done = list(threads.map(lambda one: kill_masters(bench, f"master{one[0]}", one[1]), enumerate(shares)))
    gone = [second for times in done for second in times.workers_gone]
    ended = [second for times in done for second in times.monitor_gone]
    reclaimed = [second for times in done for second in times.reclaimed]
    figures = [
        none_of("jobs wrong, or charged, or still leased", sum(times.wrong for times in done), f"{len(gone)} masters"),
        durations("master killed: no worker left", None if is_brief else 1.0, gone),
        durations("master killed: its jobs reclaimed", None if is_brief else 5.0, reclaimed),
        durations("master killed: the monitor gone", None if is_brief else 5.0, ended),
    ]
    if is_brief:
        return figures
    others = max(1, bench.size // 10)
    for where, elsewhere in (("this host", False), ("another host", True)):
        kills, expiries, wrong = take_over(bench, where.replace(" ", "-"), elsewhere, others)
        figures += [
            none_of(f"pool of {where} killed: jobs wrong", wrong, f"{others} pools"),
            durations(f"pool of {where} killed: reclaimed", None, kills),
            durations(f"pool of {where} killed: after its leases' end", None, expiries),
        ]
        if elsewhere:
            figures.append(none_of("leases of another host taken before their end", sum(one < 0 for one in expiries)))
    return figures


TRIAL = Trial(
    name="orphans",
    promise="a killed master leaves no worker after 1 s, and no job leased and no monitor after 5 s",
    unit="masters killed",
    full=200,
    short=1,
    run=run,
)
