"""What reveals defects: faults of the catalogue, and a few that bring about just what a defect needs to show."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from pgworker.errors import JobNotFound
from pgworker.lifecycle.cancel import cancel_job
from tests.chaos.evidence import ASKED, PRODUCER, append
from tests.chaos.faults.fault import Fault
from tests.chaos.world import World

_NUMBER = 0  # of none in the list of faults
_WITHIN = 5.0  # seconds
_TRIES = 30
_HELD = """
    select held.job_id from pgworker.job_leases as lease join pgworker.worker_heartbeats using (worker_id),
                unnest(lease.job_ids, lease.executions) as held(job_id, execution)
    where pid = any (%s) and not exists (select from pgworker.job_executions as e
                                         where e.job_id = held.job_id and e.execution = held.execution)
"""


def kill_workers(world: World, _dice: random.Random) -> None:
    """All that there are, at a moment when jobs are claimed."""
    _await_work(world)
    _send([pid for kept in world.pools for pid in kept.pool.workers], signal.SIGKILL)


def cancel_and_kill(world: World, _dice: random.Random) -> None:
    """Cancel whatever runs, and kill who runs it before they hear of it."""
    pids = [pid for kept in world.pools for pid in kept.pool.workers]
    _await_work(world)
    _send(pids, signal.SIGSTOP)
    with world.connect() as looker, world.connect("chaos_operator") as operator:
        for (job_id,) in looker.execute(_HELD, [pids]).fetchall():
            append(world.directory / PRODUCER, ASKED, job_id)
            with suppress(JobNotFound):
                cancel_job(operator, job_id)
    _send(pids, signal.SIGKILL)


def stop_past_the_lease(world: World, _dice: random.Random) -> None:
    """Stop a whole pool that holds jobs until others have them, and let it go on with what it holds no more."""
    kept = world.pools[0]
    for _ in range(_TRIES):
        _await_work(world)
        kept.pool.signal_all(signal.SIGSTOP)
        if _holds_jobs(world, kept.pool.workers):
            break
        kept.pool.signal_all(signal.SIGCONT)
    time.sleep(kept.plan.settings["lease_ttl"] * 2 + 0.7)
    kept.pool.signal_all(signal.SIGCONT)


def drain_one(world: World, _dice: random.Random) -> None:
    """Replace the workers of a pool, each of which drains."""
    with suppress(ProcessLookupError):
        world.pools[0].pool.send(signal.SIGHUP)


def _await_work(world: World) -> None:
    """Until something is claimed, or too late to matter."""
    ends = time.monotonic() + _WITHIN
    while not world.leases() and not world.is_over.is_set() and time.monotonic() < ends:
        time.sleep(0.005)


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _holds_jobs(world: World, pids: list[int]) -> bool:
    """Whether a lease of one of these workers has a job that has not ended."""
    with world.connect() as connection:
        row = connection.execute(_HELD, [pids]).fetchone()
    return row is not None


WORKERS_KILLED = Fault(_NUMBER, "workers-killed", kill_workers)
CANCELLED_AND_KILLED = Fault(_NUMBER, "cancelled-and-killed", cancel_and_kill)
STOPPED_PAST_LEASE = Fault(_NUMBER, "stopped-past-its-lease", stop_past_the_lease)
DRAINED = Fault(_NUMBER, "drained", drain_one)
