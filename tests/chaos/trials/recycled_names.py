"""A pool comes back with the names of one that was killed or stopped: the same host, the same pids.

Each pool runs in a PID namespace of its own, in which pids begin anew, as containers of one host name do. The old
leases end by their time, as nobody can tell whether that process lives; whoever goes on under the old names settles
nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.trials import ledgers
from tests.chaos.trials.apps.jobs import effect_gated, gated
from tests.chaos.trials.figures import durations, none_of, timed
from tests.chaos.trials.ground import READY, Ground, gate, ground, open_gate
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import Pool, eventually
from tests.process.test_linux_process import IN_A_PID_NAMESPACE
from tests.sql.invariants import WITNESSED, offences

TTL = 2.0
WORKERS = 2
SETTINGS: dict[str, Any] = {"workers": WORKERS, "lease_ttl": TTL, "heartbeat_interval": 0.3}
FIRST = 20_000
"""The pid after which those of a namespace begin."""
COMMAND = (*IN_A_PID_NAMESPACE, "sh", "-c", f'echo {FIRST} > /proc/sys/kernel/ns_last_pid && "$@"; exit $?', "sh")

_RECYCLED = """
    select count(*) from (select from pgworker.worker_heartbeats group by host, pid having count(*) > 1) as recycled
"""
_STALE = {name: query for name, query in WITNESSED.items() if name.startswith("I2: nothing is settled")}


def come_back(bench: Bench, place: Ground, number: int) -> float:
    """Kill a pool whole, or stop it for a while; seconds from that to the reclaim by the next one of its names."""
    stops = bench.dice.random() < 0.5
    with ExitStack() as pools, gate(place, f"gate{number}") as path:
        first = pools.enter_context(place.pool(prefix=COMMAND, **SETTINGS))
        place.enqueue([task.job(path.name) for task in (gated, effect_gated)])
        eventually(lambda: running(place) == 2, lambda: f"both running; {place.describe()}")
        began = time.time()
        first.signal_all(signal.SIGSTOP)
        if not stops:
            first.signal_all(signal.SIGKILL)
        second = pools.enter_context(place.pool(ready=False, prefix=COMMAND, **SETTINGS))
        second.wait_for_log(READY)
        place.wait_until_quiet()
        reclaimed = place.scalar("select extract(epoch from max(at))::float8 from chaos.lease_left")
        if stops:
            go_on(first, path)
    return float(reclaimed) - began


def go_on(pool: Pool, path: Path) -> None:
    """Under names that are another's by now: both are refused. The workers first, so that nobody ends them before."""
    for pid in pool.workers:
        os.kill(pid, signal.SIGCONT)
    open_gate(path)
    eventually(lambda: pool.log().count("event=result_lost") == 2, "two settles refused")
    pool.signal_all(signal.SIGCONT)


def running(place: Ground) -> int:
    """How many jobs that wait at a gate have started and not ended."""
    seen = list(ledgers.read(place.directory))
    ended = {(one.job_id, one.execution) for one in seen if one.kind == ledgers.END}
    last = {one.job_id for one in seen if one.kind == ledgers.START and (one.job_id, one.execution) not in ended}
    return len(last & set(place.enqueued[-2:]))


def run(bench: Bench) -> Sequence[Figure]:
    made = subprocess.run([*COMMAND, "true"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"needs a PID namespace, and to choose a pid in it: {made.stderr.strip()}")
    with ground(bench) as place:
        seconds = [come_back(bench, place, number) for number in range(bench.size)]
        ledgers.store(place.connection, place.directory, place.enqueued)
        wrong = offences(place.connection, {**ledgers.WRONG, **_STALE})
        recycled = int(place.scalar(_RECYCLED))
        same = f"{recycled} of {WORKERS * bench.size} pids"
        return [
            none_of(
                "jobs lost, settled by an old incarnation, or twice", sum(map(len, wrong.values())), f"{bench.size}"
            ),
            Figure("names that more than one worker had", "> 0", same, timed(bench, 10, recycled > 0)),
            durations(f"reclaimed from the namesake (TTL {TTL:g} s)", None, seconds),
            place.offences(),
        ]


TRIAL = Trial(
    name="recycled_names",
    promise="a worker is known by its incarnation: one of the same host and pid neither keeps nor settles its leases",
    unit="restarts",
    full=50,
    short=1,
    run=run,
)
