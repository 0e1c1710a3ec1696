"""Signals at random moments: whatever comes when, a pool ends in time, with nothing leased, lost or charged unduly.

PGWORKER_SIGNAL_ROUNDS: how many signals a storm has, and how many pools are stopped in the middle of whatever they do.
PGWORKER_SIGNAL_SEED: to choose the dice.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.process import jobs, test_pool
from tests.process.pool import Pool, eventually, start
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


@pytest.mark.parametrize("number", range(max(2, ROUNDS // 10)))
def test_a_pool_that_is_ended_at_any_moment_ends_in_time_with_nothing_leased(
    number: int, scene: Scene, dsn: str, tmp_path: Path
) -> None:
    dice = random.Random(SEED + number)
    print(f"PGWORKER_SIGNAL_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    scene.enqueue_together(
        *(jobs.quick.job(str(scene.directory), f"job{n}", dice.choice([0, 0.05, 0.5])) for n in range(100)),
        *(jobs.cooperate.job(str(scene.directory), f"kind{n}") for n in range(2)),
    )
    with start(dsn, tmp_path / "pool.log", **SETTINGS) as pool:
        eventually(lambda: pool.processes().get(pool.master, "").startswith("pgworker: master"), "a pool that boots")
        for _ in range(dice.randrange(10)):
            pool.send(dice.choice(CHANGES))
            let_pass(dice.choice([0, 0.05, 0.3]))
        end = dice.choice(ENDS)
        pool.send(end)
        if end is signal.SIGINT and dice.random() < 0.5:
            pool.send(signal.SIGQUIT)
        assert pool.wait() in ((0, 75, 130) if end is signal.SIGINT else (0, 75))  # 130: INT before there was a pool
    eventually(lambda: not scene.leases(), "nothing leased", within=1)
    assert offences(scene.connection, STORED) == {}
