"""Signals at random moments: whatever comes when, nothing is lost or charged unduly.

PGWORKER_SIGNAL_ROUNDS: how many signals the storm has. Pools that are ended at random moments are the trial `drains`.
PGWORKER_SIGNAL_SEED: to choose the dice.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

from tests.process import jobs, test_pool
from tests.process.pool import Pool, eventually
from tests.process.test_pool import Scene, StartPool
from tests.sql.invariants import STORED, offences

ROUNDS = int(os.environ.get("PGWORKER_SIGNAL_ROUNDS", "30"))
SEED = int(os.environ.get("PGWORKER_SIGNAL_SEED", str(time.time_ns() % 1_000_000)))
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
CHANGES = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2)
SETTINGS: dict[str, Any] = {
    "workers": 2,
    "drain_timeout": 4,
    "cancel_grace": 1,
    "term_grace": 0.5,
    "max_jobs": 15,
    "max_age": 2,
}

scene = test_pool.scene
start_pool = test_pool.start_pool


def let_pass(seconds: float) -> None:
    ends = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= ends, "some time")


def strike(pool: Pool, dice: random.Random) -> bool:
    """One signal to somebody of the pool; whether it may have cost a running job its execution."""
    blow = dice.random()
    if blow < 0.8:
        pool.send(dice.choice(CHANGES))
        return False
    victims = [pool.monitor] if blow > 0.96 else pool.workers
    number = signal.SIGKILL if blow > 0.9 else signal.SIGTERM
    for pid in dice.sample(victims, k=min(1, len(victims))):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return number is signal.SIGKILL


def test_a_storm_of_signals_loses_nothing_and_charges_only_what_was_killed(scene: Scene, start_pool: StartPool) -> None:
    dice = random.Random(SEED)
    print(f"PGWORKER_SIGNAL_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    pool = start_pool(**SETTINGS)
    names = [f"job{number}" for number in range(5 * ROUNDS)]
    ran = scene.enqueue_together(
        *(jobs.quick.job(str(scene.directory), name, dice.choice([0, 0.01, 0.1])) for name in names)
    )
    kills = 0
    for _ in range(ROUNDS):
        kills += strike(pool, dice)
        let_pass(dice.choice([0, 0.02, 0.2]))
    pool.send(dice.choice(ENDS))
    assert pool.wait() in (0, 75)
    assert not scene.leases()
    assert offences(scene.connection, STORED) == {}
    start_pool(workers=2)
    eventually(lambda: not scene.leases() and not scene.scalar("select count(*) from pgworker.job_queue"), "the rest")
    assert {scene.status(job) for job in ran} == {"succeeded"}
    charged = [scene.outcomes(job)[-1][2] for job in ran]
    assert sum(charged) <= kills
    assert offences(scene.connection, STORED) == {}
