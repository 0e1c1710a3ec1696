"""What reveals defects: faults of the catalogue, and a few that bring about just what a defect needs to show."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from pgworker.errors import JobNotFound
from pgworker.lifecycle.cancel import cancel_job
from tests.chaos.faults.catalogue import all_faults
from tests.chaos.faults.fault import Fault
from tests.chaos.world import World

_NUMBER = 0  # of none in the list of faults
_WITHIN = 5.0  # seconds


def kill_workers(world: World, _dice: random.Random) -> None:
    """All that there are, at a moment when jobs are claimed."""
    _await_work(world)
    for pid in [pid for kept in world.pools for pid in kept.pool.workers]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cancel_and_kill(world: World, dice: random.Random) -> None:
    """Cancel whatever runs, and kill who runs it."""
    _await_work(world)
    with world.connect() as looker, world.connect("chaos_operator") as operator:
        running = looker.execute("select unnest(job_ids) from pgworker.job_leases").fetchall()
        for (job_id,) in running:
            with suppress(JobNotFound):
                cancel_job(operator, job_id)
    kill_workers(world, dice)


def stop_past_the_lease(world: World, _dice: random.Random) -> None:
    """Stop a whole pool until others have its jobs, and let it go on with what it holds no more."""
    _await_work(world)
    kept = world.pools[0]
    kept.pool.signal_all(signal.SIGSTOP)
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


WORKERS_KILLED = Fault(_NUMBER, "workers-killed", kill_workers)
CANCELLED_AND_KILLED = Fault(_NUMBER, "cancelled-and-killed", cancel_and_kill)
STOPPED_PAST_LEASE = Fault(_NUMBER, "stopped-past-its-lease", stop_past_the_lease)
DRAINED = Fault(_NUMBER, "drained", drain_one)
POOL_KILLED = next(fault for fault in all_faults() if fault.name == "pool-killed")
