"""How long a job that was killed with its worker, or its host, waits until it runs again."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pgworker.bench.ground import Ground
from pgworker.bench.jobs import rerun
from pgworker.bench.meter import Cost, cost_since, read_meter
from pgworker.bench.quantiles import Quantiles
from pgworker.config.settings import PoolSettings

_PREFIX = "pgworker-bench-"
_APART = 0.2  # seconds between two kills
_HAS_SUCCEEDED = """
    select exists (select from pgworker.job_executions where job_id = %s and outcome = 'succeeded')
"""
_RERUN = "select result::text::bigint from pgworker.job_executions where job_id = %s and outcome = 'succeeded'"


@dataclass(frozen=True, slots=True)
class Recovery:
    """`rerun`: from the kill to the first line of the handler's next run."""

    killed: str
    workers: int
    lease_ttl_seconds: float
    rerun: Quantiles
    cost: Cost
    """Per kill."""


def kill_workers(ground: Ground, kills: int, workers: int) -> Recovery:
    """Each job kills its own worker, in the midst of its handler, once."""
    reruns, before = [], read_meter(ground)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory, ground.pools(1, workers):
        for number in range(1, kills + 1):
            job = rerun.using(ground.connection).enqueue(path=f"{directory}/{number}", kills=True)
            reruns.append(_wait(ground, job.id, f"worker {number} of {kills} has been killed"))
            time.sleep(_APART)
    spent = cost_since(ground, kills, before)
    return Recovery("worker", workers, PoolSettings(workers=workers).lease_ttl, Quantiles.of(reruns), spent)


def kill_hosts(ground: Ground, kills: int, lease_ttl: float) -> Recovery:
    """All processes of a pool die at one moment, and another pool takes over what they held."""
    reruns, flags, before = [], ("--lease-ttl", f"{lease_ttl:g}"), read_meter(ground)
    for number in range(1, kills + 1):
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory, ground.pools(1, 1, *flags) as [doomed]:
            file = Path(directory, "killed")
            job = rerun.using(ground.connection).enqueue(path=str(file), kills=False)
            ground.wait("select exists (select from pgworker.job_leases)", doing=f"pool {number} of {kills} begins")
            with ground.pools(1, 1, *flags):
                # Who has just come takes no leases of strangers; then at whichever moment between two renewals.
                time.sleep((1.5 + random.random() / 3) * lease_ttl)
                file.write_text(str(time.monotonic_ns()))
                doomed.kill()
                reruns.append(_wait(ground, job.id, f"pool {number} of {kills} has been killed"))
    spent = cost_since(ground, kills, before)
    return Recovery("host", 1, lease_ttl, Quantiles.of(reruns), spent)


def _wait(ground: Ground, job_id: UUID, doing: str) -> float:
    """Until it has succeeded: milliseconds from the kill to its next start, which is its result."""
    ground.wait(_HAS_SUCCEEDED, job_id, doing=doing)
    return int(ground.value(_RERUN, job_id)) / 1e6
