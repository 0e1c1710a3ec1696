"""Faults of the network between pgworker and the server, by the proxy that all of it goes through."""

from __future__ import annotations

import random

from tests.chaos.faults.fault import Fault
from tests.chaos.plan import POOLER
from tests.chaos.world import World


def drop_replies(world: World, dice: random.Random) -> None:
    """The server does the work and commits, and nobody hears of it."""
    world.proxy.drop_reply(r"^\s*commit", times=dice.randint(1, 10))
    world.pause(dice.uniform(0.5, 2))
    world.proxy.heal()


def drop_requests(world: World, dice: random.Random) -> None:
    """A COMMIT never reaches the server."""
    world.proxy.drop_request(r"^\s*commit", times=dice.randint(1, 10))
    world.pause(dice.uniform(0.5, 2))
    world.proxy.heal()


def cut(world: World, dice: random.Random) -> None:
    """Every connection ends at once, with or without a goodbye."""
    world.proxy.cut(how="rst" if dice.random() < 0.5 else "fin")


def blackhole(world: World, dice: random.Random) -> None:
    """Nothing arrives any more, and nobody is told."""
    world.proxy.blackhole(accepts=dice.random() < 0.5)
    world.pause(dice.uniform(0.5, 6))
    world.proxy.heal()
    world.proxy.cut()  # whoever has lost bytes would find out by a keepalive, later than a seed lasts


def slow_down(world: World, dice: random.Random) -> None:
    """Half a second for each round trip."""
    world.proxy.delay(0.5)
    world.pause(dice.uniform(1, 4))
    world.proxy.heal()


def throttle(world: World, dice: random.Random) -> None:
    """A trickle."""
    world.proxy.throttle(dice.choice([50.0, 1000.0, 10_000.0]))
    world.pause(dice.uniform(0.5, 3))
    world.proxy.heal()


def refuse(world: World, dice: random.Random) -> None:
    """Nobody gets a new connection."""
    world.proxy.refuse()
    world.proxy.cut()
    world.pause(dice.uniform(0.5, 3))
    world.proxy.heal()


def lose_listener(world: World, dice: random.Random) -> None:
    """Only the connection on which notifications arrive is lost."""
    world.proxy.cut("pgworker monitor listener*")


def restart_pooler(world: World, dice: random.Random) -> None:
    """PgBouncer is gone, and back a moment later."""
    assert world.pooler is not None
    world.pooler.kill()
    world.pause(dice.uniform(0, 2))
    world.pooler.start()


FAULTS = (
    Fault(20, "commit-unknown", drop_replies, touches="network"),
    Fault(20, "commit-lost", drop_requests, touches="network"),
    Fault(21, "connections-cut", cut, touches="network"),
    Fault(21, "blackhole", blackhole, touches="network", every=6.0),
    Fault(21, "slow", slow_down, touches="network", every=4.0),
    Fault(21, "trickle", throttle, touches="network", every=4.0),
    Fault(21, "refused", refuse, touches="network", every=4.0),
    Fault(26, "pooler-restarted", restart_pooler, frozenset({POOLER}), touches="network", every=5.0),
    Fault(27, "listener-lost", lose_listener, touches="network"),
)
