"""What a seed means: which pools there are, how they are set, and which faults come when. Pure.

The same seed gives the same plan, and to each fault the same dice. What the machine then does with it, how processes
interleave, is not in anybody's hand: a failure replays from its seed because the same faults come at the same moments.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.faults.fault import Fault

QUEUES = ("default", "other")
FAILPOINTS = "failpoints"
"""The feature of a world whose pools can be armed at every boundary, which costs them some speed."""
HOSTS = "hosts"
"""The feature of a world whose pools are on two hosts with a network between."""
POOLER = "pooler"
"""The feature of a world whose pools and producers come through PgBouncer."""

GAP = 1.5
"""Seconds from one fault to the next in a mixture, on average, unless said otherwise."""

_FEATURE = 0.3
"""How often a mixture has a feature that it could have."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool, which is started again whenever it ends, as systemd would."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """A fault, so many seconds after the world has begun, with dice of its own."""

    at: float
    fault: Fault
    seed: str


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    pools: tuple[PoolPlan, ...]
    steps: tuple[Step, ...]
    features: frozenset[str]
    """What the world has that not every world has: see `Fault.needs`."""
    is_alone: bool
    """One kind of fault only, so that each may expect what is promised of it alone."""
    backlog: int = 3000
    """Jobs that may wait before producers stop to let them run."""
    patience: float = 60.0
    """Seconds without an execution that ends after which, once nothing is broken any more, the world is stuck."""


def plan(seed: int, faults: Sequence[Fault], seconds: float, extra: Collection[str] = (), gap: float = GAP) -> Plan:
    """The plan for this seed: these faults, mixed at random for so long, one in `gap` seconds, on pools made at random.

    A mixture has some of the features that its faults need, and those faults that can do with them; `extra` are there
    in any case.
    """
    dice = random.Random(f"world {seed}")
    is_alone = len({fault.number for fault in faults}) == 1
    needs = sorted(frozenset().union(*(fault.needs for fault in faults)))
    features = frozenset(need for need in needs if is_alone or dice.random() < _FEATURE) | frozenset(extra)
    if not is_alone and HOSTS not in features and dice.random() < _FEATURE:
        features |= {POOLER}
    able = [fault for fault in faults if fault.needs <= features]
    pools = tuple(_pool(dice, number) for number in range(dice.choice([1, 2, 2, 3])))
    steps = _steps(dice, seed, able, seconds, able[0].every if able and is_alone else gap)
    return Plan(seed, pools, tuple(steps), features, is_alone)


def _pool(dice: random.Random, number: int) -> PoolPlan:
    settings: dict[str, Any] = {
        "workers": dice.randint(1, 3),
        "slots": dice.choice([1, 1, 3]),
        "queues": dice.sample(QUEUES, len(QUEUES)),
        "lease_ttl": dice.choice([3.0, 5.0, 8.0]),
        "heartbeat_interval": dice.choice([0.5, 1.0]),
        "poll_interval": dice.choice([0.1, 0.5, 1.0]),
        "max_batch": dice.choice([5, 100, 500]),
        "cancel_grace": 0.3,
        "term_grace": 0.3,
        "drain_timeout": 10.0,
        "restart_backoff": {"base": 0.1, "cap": 1.0, "jitter": 0.25},
        "log_format": "json",
    }
    if dice.random() < 0.3:
        settings["max_jobs"] = dice.choice([200, 1000])
    if dice.random() < 0.2:
        settings["preload"] = True
    return PoolPlan(f"pool{number}", settings)


def _steps(dice: random.Random, seed: int, faults: Sequence[Fault], seconds: float, gap: float) -> list[Step]:
    steps: list[Step] = []
    if not faults:
        return steps
    at = dice.uniform(0.3, 1.0)
    while at < seconds:
        steps.append(Step(round(at, 2), dice.choice(faults), f"{seed} {len(steps)}"))
        at += dice.uniform(0.5, 1.5) * gap
    return steps
