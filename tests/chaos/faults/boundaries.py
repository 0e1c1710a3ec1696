"""Faults at a named boundary: a process dies, stops, waits or loses its connection exactly there."""

from __future__ import annotations

import random

from tests.chaos.boundaries import POINTS
from tests.chaos.failpoints import fired
from tests.chaos.faults.fault import Fault
from tests.chaos.plan import FAILPOINTS
from tests.chaos.world import World


def fail_at_a_boundary(world: World, dice: random.Random) -> None:
    """Some point of the list, armed in one pool for a while."""
    kept = world.pick_pool(dice)
    directory = world.directory / kept.plan.name
    point = POINTS[dice.choice(sorted(POINTS))]
    action = dice.choice([action for action in point.actions if action in ("kill", "stop", "delay", "raise", "cut")])
    world.log.tell("armed", point=point.name, action=action)
    armed = directory / "failpoints"
    armed.with_suffix(".new").write_text(f"{point.name}={action}@p{dice.choice([0.02, 0.2, 1])}")
    armed.with_suffix(".new").replace(armed)
    before = len(fired(directory))
    world.pause(dice.uniform(0.5, 2))
    armed.write_text("")
    for hit in fired(directory)[before:]:
        world.log.tell("failpoint fired", point=hit["point"], pid=hit["pid"])
        if action == "stop":
            kept.let_go_on(int(hit["pid"]))


FAULTS = (Fault(2, "boundary", fail_at_a_boundary, frozenset({FAILPOINTS}), touches="pools"),)
