"""Neighbours: workers of other pools on this host, whose processes are gone and whose pools have not said so.

A pool that is killed whole, by kill -9 or for want of memory, leaves nobody who could. Without this its jobs would wait
until their leases have run out.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from pgworker.lifecycle.heartbeat import PoolIdentity, end_silent_worker, find_silent_workers
from pgworker.linux.pidfd import is_gone
from pgworker.observe.logs import fields, logger

log = logger("monitor.neighbours")


def end_the_gone(connection: Connection[Any], pool: PoolIdentity, silence: float) -> None:
    """Record the end of every worker on this host that has been silent for so many seconds and is proven to be gone.

    The proof is its pid, of the same space as ours. Silence proves nothing: it gives a pool that lives the time to say
    how its worker ended, and what it ran. In doubt (the pid is a stranger's by now) the lease decides.
    """
    for worker in find_silent_workers(connection, pool, silence):
        if not is_gone(worker.pid):
            continue
        how = f"worker {worker.number} (pid {worker.pid}) is gone, and its pool is silent"
        if end_silent_worker(connection, worker, how):
            log.warning(
                "%s, on this host; what it held goes back now",
                how,
                extra=fields("worker_gone", worker_id=worker.worker_id, worker_pid=worker.pid),
            )
