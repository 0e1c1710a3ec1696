"""The races of `tests/sql/test_cancel_races.py`, as many as a promise needs to be believed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.trials.figures import none_of, told
from tests.chaos.trials.ground import database
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences
from tests.sql.test_cancel_races import ENDS, PAIRS, Against, Pair, store

_ENOUGH = 480
"""Races in which either side is first at least once, of each kind."""


def run(bench: Bench) -> Sequence[Figure]:
    with database(bench) as (dsn, observer):
        observer.execute(WITNESSES.encode())
        pairs = [Pair(number, dsn, random.Random(bench.dice.random())) for number in range(PAIRS)]
        with ThreadPoolExecutor(PAIRS) as threads:
            wrong = [
                str(error)
                for race in [threads.submit(pair.run, bench.size // PAIRS) for pair in pairs]
                if (error := race.exception()) is not None
            ]
        for pair in pairs:
            store(observer, pair)
        answers = sum((pair.told for pair in pairs), Counter())
        possible = {(against, answer) for against in Against for answer in ENDS[against]}
        unseen = possible - {(against, answer) for against, _, answer in +answers}
        broken = offences(observer, {**STORED, **WITNESSED})
    return [
        told("races", f"{bench.size // PAIRS * PAIRS:,}"),
        none_of("races after which a side was told an untruth", wrong),
        Figure(
            "ends of which each was seen",
            f"{len(possible)}",
            f"{len(possible) - len(unseen)}",
            not unseen if bench.size >= _ENOUGH else None,
        ),
        none_of("invariants that are broken", broken),
    ]


TRIAL = Trial(
    name="cancel_races",
    promise="of a cancel and what it races with one is first, and both are told",
    unit="races",
    full=10_000,
    short=160,
    run=run,
)
