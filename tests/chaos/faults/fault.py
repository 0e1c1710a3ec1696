"""What a fault is: something done to a world of running pools, and undone, while jobs are enqueued and run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.world import World


@dataclass(frozen=True, slots=True)
class Fault:
    """`inject` does it and heals it, and returns when it is healed.

    It asserts what an operator was promised at that moment (within which time, which log line); what must hold of jobs
    is asked by the checker when all is quiet. It takes whatever it needs at random from the dice that it is given.
    """

    number: int
    """Of the list of faults in tests/README.md."""
    name: str
    inject: Callable[[World, random.Random], None]
    needs: frozenset[str] = frozenset()
    """What the world must have: "proxy", "pooler", "standby", "hosts", "clock", "small-disk", "failpoints"."""
    is_mixed: bool = True
    """Whether it takes part when all faults are mixed; one that is about a whole world of its own does not."""
    touches: str = "pools"
    """What it breaks: "pools", "network", "server" or "data". Two that touch the same never come at the same time."""
    every: float = 2.0
    """Seconds from one to the next when it is injected alone."""
