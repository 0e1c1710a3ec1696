"""Faults of the network between pgworker and the server, by the proxy that all of it goes through."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.chaos.faults.fault import Fault
from tests.chaos.plan import HOSTS, POOLER
from tests.chaos.proxy import Proxy
from tests.chaos.world import World


def drop_replies(world: World, dice: random.Random) -> None:
    """The server does the work and commits, and nobody hears of it."""
    times = dice.randint(1, 10)
    _at_each(world, lambda proxy: proxy.drop_reply(r"^\s*commit", times=times))
    world.pause(dice.uniform(0.5, 2))
    _at_each(world, Proxy.heal)


def drop_requests(world: World, dice: random.Random) -> None:
    """A COMMIT never reaches the server."""
    times = dice.randint(1, 10)
    _at_each(world, lambda proxy: proxy.drop_request(r"^\s*commit", times=times))
    world.pause(dice.uniform(0.5, 2))
    _at_each(world, Proxy.heal)


def cut(world: World, dice: random.Random) -> None:
    """Every connection ends at once, with or without a goodbye."""
    is_rude = dice.random() < 0.5
    _at_each(world, lambda proxy: proxy.cut(how="rst" if is_rude else "fin"))


def blackhole(world: World, dice: random.Random) -> None:
    """Nothing arrives any more, and nobody is told."""
    accepts = dice.random() < 0.5
    _at_each(world, lambda proxy: proxy.blackhole(accepts=accepts))
    world.pause(dice.uniform(0.5, 6))
    _at_each(world, Proxy.heal)
    _at_each(world, Proxy.cut)  # whoever has lost bytes would find out by a keepalive, later than a seed lasts


def slow_down(world: World, dice: random.Random) -> None:
    """Half a second for each round trip."""
    _at_each(world, lambda proxy: proxy.delay(0.5))
    world.pause(dice.uniform(1, 4))
    _at_each(world, Proxy.heal)


def throttle(world: World, dice: random.Random) -> None:
    """A trickle."""
    rate = dice.choice([50.0, 1000.0, 10_000.0])
    _at_each(world, lambda proxy: proxy.throttle(rate))
    world.pause(dice.uniform(0.5, 3))
    _at_each(world, Proxy.heal)


def refuse(world: World, dice: random.Random) -> None:
    """Nobody gets a new connection."""
    _at_each(world, Proxy.refuse)
    _at_each(world, Proxy.cut)
    world.pause(dice.uniform(0.5, 3))
    _at_each(world, Proxy.heal)


def lose_listener(world: World, dice: random.Random) -> None:
    """Only the connection on which notifications arrive is lost."""
    _at_each(world, lambda proxy: proxy.cut("pgworker monitor listener*"))


def restart_pooler(world: World, dice: random.Random) -> None:
    """PgBouncer is gone, and back a moment later."""
    assert world.pooler is not None
    world.pooler.kill()
    world.pause(dice.uniform(0, 2))
    world.pooler.start()


def pull_cable(world: World, dice: random.Random) -> None:
    """One host is cut off; no kernel hears of it, and the other one goes on with what it held."""
    host = dice.choice(world.hosts)
    if host.is_up:
        host.cut()
        world.pause(dice.uniform(1, 8))
        host.heal()


def lose_power(world: World, dice: random.Random) -> None:
    """One host is gone at once with all that ran there, and boots again."""
    host = dice.choice(world.hosts)
    host.kill()
    world.pause(dice.uniform(0.5, 5))
    host.boot()


def _at_each(world: World, act: Callable[[Proxy], object]) -> None:
    for proxy in world.proxies:
        act(proxy)


FAULTS = (
    Fault(20, "commit-unknown", drop_replies, touches="network"),
    Fault(20, "commit-lost", drop_requests, touches="network"),
    Fault(21, "connections-cut", cut, touches="network"),
    Fault(21, "blackhole", blackhole, touches="network", every=6.0),
    Fault(21, "slow", slow_down, touches="network", every=4.0),
    Fault(21, "trickle", throttle, touches="network", every=4.0),
    Fault(21, "refused", refuse, touches="network", every=4.0),
    Fault(21, "cable-pulled", pull_cable, frozenset({HOSTS}), touches="network", every=6.0),
    Fault(4, "host-lost", lose_power, frozenset({HOSTS}), touches="network", every=8.0),
    Fault(26, "pooler-restarted", restart_pooler, frozenset({POOLER}), touches="network", every=5.0),
    Fault(27, "listener-lost", lose_listener, touches="network"),
)
