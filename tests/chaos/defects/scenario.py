"""A short life of the machine's own world with a defect in it, and what the checker says."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.defects.defect import VARIABLE, Defect, planted
from tests.chaos.machine import Verdict, try_seed
from tests.chaos.plan import Plan, PoolPlan, Step

SECONDS = 2.5
"""How long jobs are enqueued, unless said otherwise; faults come meanwhile, each healed before the end."""

SEEDS = 3
"""How often a defect is tried at most: some show only when two processes meet."""

_SETTINGS: Mapping[str, Any] = {
    "workers": 2,
    "queues": ["default", "other"],
    "lease_ttl": 3.0,
    "heartbeat_interval": 0.3,
    "poll_interval": 0.1,
    "max_batch": 100,
    "cancel_grace": 0.3,
    "term_grace": 0.3,
    "drain_timeout": 5.0,
    "restart_backoff": {"base": 0.05, "cap": 0.2, "jitter": 0.25},
    "log_format": "json",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a defect: the offences of the seed that showed it, or of the last one; `by`: whose it is."""

    defect: Defect
    offences: Mapping[str, int]
    by: tuple[str, ...]
    seeds: int
    seconds: float

    @property
    def is_as_expected(self) -> bool:
        """Caught by an invariant that is there for it; of what is harmless, nothing."""
        return not self.offences if self.defect.is_harmless else bool(self.by)


def try_defect(defect: Defect, *, binaries: Path | None = None, seed: int = 1, enqueue_for: float = SECONDS) -> Found:
    """Up to so many seeds until an invariant that is there for the defect has found it."""
    began, seeds = time.monotonic(), 0
    by: tuple[str, ...] = ()
    while not by and seeds < (1 if defect.is_harmless else SEEDS):
        verdict = _one_life(defect, seed + seeds, enqueue_for, binaries)
        by, seeds = _finders(defect, verdict), seeds + 1
    offences = {what: len(rows) for what, rows in verdict.offences.items()}
    return Found(defect, offences, by, seeds, time.monotonic() - began)


def _finders(defect: Defect, verdict: Verdict) -> tuple[str, ...]:
    return tuple(what for what in verdict.offences if any(what.startswith(begins) for begins in defect.caught_by))


def _one_life(defect: Defect, seed: int, enqueue_for: float, binaries: Path | None) -> Verdict:
    evidence = Path(tempfile.mkdtemp(prefix="pgworker-defect-"))
    try:
        with planted(defect), _named(defect):
            return try_seed(_plan(defect, seed), evidence, seconds=enqueue_for, jobs=None, binaries=binaries)
    finally:
        shutil.rmtree(evidence)


def _plan(defect: Defect, seed: int) -> Plan:
    """Two pools, of one slot and of three, that do little at a time, so that faults find jobs in every state."""
    dice = random.Random(f"defect {seed}")
    pools = tuple(
        PoolPlan(f"pool{number}", {**_SETTINGS, "slots": slots, **defect.settings})
        for number, slots in enumerate(dice.sample([1, 3], 2))
    )
    moments = [number * defect.gap for number in range(1, int(SECONDS / defect.gap) + 1)] if defect.faults else []
    steps = tuple(
        Step(at, defect.faults[number % len(defect.faults)], f"{seed} {number}") for number, at in enumerate(moments)
    )
    return Plan(seed, pools, steps, frozenset(), is_alone=False, backlog=100, patience=_patience(defect))


def _patience(defect: Defect) -> float:
    """Seconds until all must have come to rest: few for a defect that keeps it from that."""
    return 6.0 if any("comes to rest" in begins for begins in defect.caught_by) else 30.0


@contextmanager
def _named(defect: Defect) -> Iterator[None]:
    """The processes that are started inside have it too."""
    os.environ[VARIABLE] = defect.name
    try:
        yield
    finally:
        del os.environ[VARIABLE]
