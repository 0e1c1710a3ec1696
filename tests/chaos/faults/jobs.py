"""Faults that come with the jobs themselves: handlers that crash, hang, hold the GIL, or leave a mess."""

from __future__ import annotations

import random

from tests.chaos.faults.fault import Fault
from tests.chaos.world import World


def hold_gil(world: World, dice: random.Random) -> None:
    """Longer than a lease lasts: it runs once."""
    longest = max(kept.plan.settings["lease_ttl"] for kept in world.pools)
    world.enqueue("hold_gil", [longest * dice.uniform(0.5, 1.5)])


def hang(world: World, dice: random.Random) -> None:
    """Handlers that never end, and listen to nobody."""
    world.enqueue("hang", *([] for _ in range(dice.randint(1, 3))))


def crash(world: World, dice: random.Random) -> None:
    """Handlers that take their process with them."""
    world.enqueue("crash", *([dice.choice(["kill", "exit", "segfault"])] for _ in range(dice.randint(1, 3))))


def poison(world: World, dice: random.Random) -> None:
    """One of them among a hundred that are good."""
    world.enqueue("plain", *([0.0] for _ in range(50)))
    world.enqueue("crash", [dice.choice(["kill", "exit", "segfault"])])
    world.enqueue("plain", *([0.0] for _ in range(49)))


def leave_a_mess(world: World, dice: random.Random) -> None:
    """Handlers that leave their connection, their process group and their files as they should not."""
    kinds = ["transaction", "settings", "files", "children", "thread"]
    world.enqueue("mess", *([dice.choice(kinds)] for _ in range(dice.randint(1, 5))))


def end_badly(world: World, dice: random.Random) -> None:
    """Results and errors that can't be stored as they are."""
    kinds = ["nul", "surrogate", "nan", "no-json", "large", "deep", "bad-str", "large-error", "cause-loop"]
    world.enqueue("odd", *([dice.choice(kinds)] for _ in range(dice.randint(1, 10))))


FAULTS = (
    Fault(7, "gil-held", hold_gil, touches="jobs", every=6.0),
    Fault(8, "hang", hang, touches="jobs"),
    Fault(12, "crash", crash, touches="jobs"),
    Fault(13, "poison", poison, touches="jobs"),
    Fault(14, "mess", leave_a_mess, touches="jobs"),
    Fault(31, "odd-ends", end_badly, touches="jobs"),
)
