"""Faults of processes: killed and stopped workers, masters, monitors, whole pools."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from tests.chaos.app import BROKEN
from tests.chaos.faults.fault import Fault
from tests.chaos.world import World


def kill_worker(world: World, dice: random.Random) -> None:
    if (pid := world.pick_worker(dice)) is not None:
        _send(pid, signal.SIGKILL)


def kill_master(world: World, dice: random.Random) -> None:
    """Its workers are gone at once; its monitor has reclaimed what they held and is gone soon after."""
    kept = world.pick_pool(dice)
    pool, workers = kept.pool, kept.pool.workers
    kept.send(signal.SIGKILL)
    if world.is_alone:
        world.eventually(lambda: not any(map(_is_alive, workers)), "no worker of a master that is gone", 3)
        world.eventually(lambda: not pool.processes(), "nothing left of its pool", 10)


def kill_pool(world: World, dice: random.Random) -> None:
    pool = world.pick_pool(dice).pool
    pool.signal_all(signal.SIGSTOP)
    pool.signal_all(signal.SIGKILL)


def kill_monitor(world: World, dice: random.Random) -> None:
    pool = world.pick_pool(dice).pool
    for pid, title in pool.processes().items():
        if title.startswith("pgworker: monitor"):
            _send(pid, signal.SIGKILL)


def stop_pool(world: World, dice: random.Random) -> None:
    """Stop a whole pool past its leases, while others take its jobs; then let it go on with what it holds no more."""
    kept = world.pick_pool(dice)
    pool = kept.pool
    pool.signal_all(signal.SIGSTOP)
    time.sleep(kept.plan.settings["lease_ttl"] * dice.uniform(0.8, 1.6))
    pool.signal_all(signal.SIGCONT)


def stop_worker(world: World, dice: random.Random) -> None:
    if (pid := world.pick_worker(dice)) is not None:
        _send(pid, signal.SIGSTOP)
        time.sleep(dice.uniform(0.1, 4))
        _send(pid, signal.SIGCONT)


def stop_master_or_monitor(world: World, dice: random.Random) -> None:
    kept = world.pick_pool(dice)
    title = dice.choice(["pgworker: master", "pgworker: monitor"])
    stopped = [pid for pid, found in kept.pool.processes().items() if found.startswith(title)]
    for pid in stopped:
        _send(pid, signal.SIGSTOP)
    time.sleep(dice.uniform(0.5, 4))
    kept.let_go_on(*stopped)


def signal_pool(world: World, dice: random.Random) -> None:
    """Whatever an operator may send, in any order; a pool that ends by it is started again."""
    kept = world.pick_pool(dice)
    kinds = [
        signal.SIGHUP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGUSR1,
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGQUIT,
    ]
    for _ in range(dice.randint(1, 4)):
        kept.send(dice.choice(kinds))
        time.sleep(dice.uniform(0, 0.5))


def break_app(world: World, dice: random.Random) -> None:
    """A new version of the app that can't be imported, and a rolling restart: the old workers go on."""
    broken = world.directory / BROKEN
    kept = world.pick_pool(dice)
    broken.touch()
    try:
        kept.send(signal.SIGHUP)
        world.pause(dice.uniform(0.5, 3))
    finally:
        broken.unlink()


def pause_pool(world: World, dice: random.Random) -> None:
    kept = world.pick_pool(dice)
    for _ in range(2):
        kept.send(signal.SIGUSR2)
        time.sleep(dice.uniform(0.1, 1))


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


FAULTS = (
    Fault(1, "worker-killed", kill_worker),
    Fault(3, "master-killed", kill_master, every=6.0),
    Fault(3, "monitor-killed", kill_monitor),
    Fault(4, "pool-killed", kill_pool, every=6.0),
    Fault(5, "pool-stopped", stop_pool, every=4.0),
    Fault(5, "worker-stopped", stop_worker, every=4.0),
    Fault(6, "master-or-monitor-stopped", stop_master_or_monitor, every=4.0),
    Fault(9, "signals", signal_pool, every=4.0),
    Fault(15, "app-broken", break_app, every=6.0),
    Fault(9, "paused", pause_pool, every=4.0),
)
