"""Faults of the server: restarts, outages, failover, a full disk, no connections, locks, a clock that steps."""

from __future__ import annotations

import random

from tests.chaos.faults.fault import Fault
from tests.chaos.world import World

_RESUMED = 20.0
"""Seconds within which jobs run again, on a machine that has other work; trials have the promised bounds."""


def restart(world: World, dice: random.Random) -> None:
    """As pg_ctl restart -m immediate: what was not committed is gone, and everybody must connect again."""
    world.server.restart("immediate")
    if world.is_alone:
        world.goes_on(_RESUMED)


def crash(world: World, dice: random.Random) -> None:
    """SIGKILL to the whole server."""
    world.server.crash()
    world.server.start()


def outage(world: World, dice: random.Random) -> None:
    """Down for longer or shorter than a lease."""
    shortest = min(kept.plan.settings["lease_ttl"] for kept in world.pools)
    world.server.restart("fast", down=shortest * dice.uniform(0.3, 1.7))
    if world.is_alone:
        world.goes_on(_RESUMED)


def kill_backends(world: World, dice: random.Random) -> None:
    """Twenty a second, for a few seconds."""
    with world.server.terminate_backends(20.0, dice):
        world.pause(dice.uniform(1, 3))


def fail_over(world: World, dice: random.Random) -> None:
    """The primary is gone at once, its synchronous standby takes over, and gets a standby of its own."""
    assert world.standby is not None
    old, world.server = world.server, world.standby
    world.standby = None
    old.crash()
    world.server.promote()
    with world.server.connect() as connection:  # it would wait for a standby that there is not yet
        connection.execute("alter system reset synchronous_standby_names")
        connection.execute("select pg_reload_conf()")
    for proxy in world.proxies:
        proxy.target = (world.server.address, world.server.port)
        proxy.cut()
    world.goes_on(_RESUMED)
    world.add_standby()


def make_read_only(world: World, dice: random.Random) -> None:
    """As a server is while it is being moved."""
    _set(world, "alter system set default_transaction_read_only = on")
    world.pause(dice.uniform(0.5, 3))
    _set(world, "alter system reset default_transaction_read_only")
    world.goes_on(_RESUMED)


def use_up_connections(world: World, dice: random.Random) -> None:
    """Strangers have all of max_connections."""
    with world.server.fill_connections():
        world.pause(dice.uniform(0.5, 3))


def fill_disk(world: World, dice: random.Random) -> None:
    """Nothing can be written any more."""
    world.server.fill_disk()
    world.pause(dice.uniform(0.5, 3))
    world.server.free_disk()


def lock_table(world: World, dice: random.Random) -> None:
    """Somebody holds a lock on a table that everybody needs."""
    tables = ["job_queue", "job_leases", "job_executions", "jobs", "worker_heartbeats"]
    world.server.lock_table(world.superuser_dsn, f"pgworker.{dice.choice(tables)}", dice.uniform(0.5, 5))


def step_clock(world: World, dice: random.Random) -> None:
    """Forward for good, or back for a while: a job that is due in an hour would not come to rest."""
    if dice.random() < 0.5:
        world.step_clock(dice.choice([60.0, 3600.0]))
        return
    world.step_clock(-3600.0)
    world.pause(dice.uniform(1, 4))
    world.step_clock(3600.0)


def pin_xmin(world: World, dice: random.Random) -> None:
    """A forgotten transaction keeps vacuum from removing anything."""
    with world.server.pin_xmin(world.superuser_dsn):
        world.pause(dice.uniform(2, 6))


def _set(world: World, statement: str) -> None:
    with world.connect() as connection:
        connection.execute("set default_transaction_read_only = off")
        connection.execute(statement.encode())
        connection.execute("select pg_reload_conf()")


FAULTS = (
    Fault(17, "server-restarted", restart, touches="server", every=5.0),
    Fault(17, "server-killed", crash, touches="server", every=5.0),
    Fault(18, "outage", outage, touches="server", every=8.0),
    Fault(19, "backends-killed", kill_backends, touches="server", every=4.0),
    Fault(22, "failover", fail_over, frozenset({"standby"}), touches="server", every=8.0),
    Fault(23, "read-only", make_read_only, touches="server", every=5.0),
    Fault(23, "no-connections-left", use_up_connections, touches="server", every=5.0),
    Fault(23, "disk-full", fill_disk, frozenset({"small-disk"}), touches="server", every=5.0),
    Fault(23, "table-locked", lock_table, touches="data", every=5.0),
    Fault(24, "xmin-pinned", pin_xmin, touches="data", every=5.0),
    Fault(28, "clock-stepped", step_clock, frozenset({"clock"}), touches="server", every=5.0),
)
