"""Mistakes that can be planted in the protocol, each with the smallest world in which it shows; and sound worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.chaos.model.state import Configuration


@dataclass(frozen=True, slots=True)
class Defect:
    name: str
    what: str
    world: Configuration


ZOMBIES = Configuration(neighbour=True, stops=1)
"""A pool is stopped past its leases and goes on; another one's monitor has taken them meanwhile."""

DEFECTS = (
    Defect("no-fence", "a settle does not ask whether its lease is still there", ZOMBIES),
    Defect("settle-by-job", "a settle goes by the job's id, whoever holds it now", ZOMBIES),
    Defect("one-snapshot", "a reclaim deletes the lease and sends its jobs on in one statement", ZOMBIES),
    Defect("no-look-up", "a settle that recorded less than it should counts as one that was sent again", ZOMBIES),
    Defect(
        "effect-outside-fence",
        "a handler's own transaction commits though its lease is gone",
        Configuration(neighbour=True, stops=1, own_transactions=True),
    ),
    Defect(
        "ends-by-count",
        "a settle ends the lease if it counts no unsettled position in its own snapshot",
        Configuration(own_transactions=True),
    ),
    Defect("crash-not-charged", "what ran when its worker crashed goes back uncharged", Configuration(crashes=1)),
    Defect("neighbours-charged", "a crash is charged to all that had started", Configuration(crashes=1)),
    Defect("no-limit-at-reclaim", "a reclaim requeues whatever its failures", Configuration(jobs=1, crashes=2)),
    Defect(
        "reclaim-forgets-cancel", "a reclaim does not look for marks of cancels", Configuration(crashes=1, cancels=1)
    ),
    Defect(
        "settle-ignores-cancel", "a failure requeues though its job was cancelled", Configuration(failures=1, cancels=1)
    ),
    Defect(
        "cancel-in-one-statement",
        "a cancel marks what its own snapshot shows as unsettled, after it has waited for the lease",
        Configuration(failures=1, cancels=1),
    ),
    Defect("no-conflict", "a settle that is sent again inserts its rows again", Configuration(replies=1)),
    Defect(
        "requeue-what-was-asked",
        "a settle requeues what it was asked to, and not only what it has recorded just now",
        Configuration(workers=2, replies=1, failures=1),
    ),
    Defect(
        "renews-what-is-not-shown",
        "a monitor renews all leases of a living worker, those too whose claim it never heard of",
        Configuration(flights=1),
    ),
    Defect("no-sweep", "nobody looks below the claim floor", Configuration(uncommitted=(0,))),
    Defect(
        "steady-at-once",
        "a monitor takes what has expired as soon as the database is back",
        Configuration(neighbour=True, outages=1),
    ),
    Defect(
        "releases-without-line",
        "a monitor releases behind the last start that it has read, and draws no line",
        Configuration(lines=True),
    ),
    Defect(
        "erases-line-in-doubt",
        "a monitor that has not heard whether its release took effect erases the line",
        Configuration(lines=True, replies=1),
    ),
    Defect("release-keeps-tail", "a release leaves the positions in the lease", Configuration(lines=True)),
    Defect(
        "ends-before-tail-is-back",
        "a worker ends a lease whose tail it has not released yet",
        Configuration(lines=True),
    ),
)

SMALL: Mapping[str, Configuration] = {
    "failures and lost replies": Configuration(failures=1, replies=1),
    "failures and cancels": Configuration(failures=1, cancels=1),
    "transactions that go on, two workers": Configuration(workers=2, flights=1),
    "crashes of workers and of their monitor": Configuration(crashes=1, monitors=1),
    "an outage": Configuration(outages=1, failures=1),
    "a stopped pool and its neighbour": Configuration(neighbour=True, stops=1, own_transactions=True),
    "lines and a lost reply": Configuration(lines=True, replies=1),
    "own transactions and lost replies": Configuration(own_transactions=True, replies=1, failures=1),
    "late commits": Configuration(uncommitted=(0,), workers=2, failures=1),
}
"""Each searched whole in the ordinary tests, and for jobs that wait for ever too."""

FULL: Mapping[str, Configuration] = {
    "two workers, a crash and a lost reply": Configuration(workers=2, crashes=1, replies=1),
    "two workers, a late commit and a crash": Configuration(uncommitted=(0,), workers=2, crashes=1),
    "a crash, a failure and a cancel": Configuration(crashes=1, failures=1, cancels=1),
    "a stopped pool, its neighbour, a failure and a lost reply": Configuration(
        neighbour=True, stops=1, failures=1, replies=1
    ),
    "an outage, a crash and a neighbour": Configuration(neighbour=True, outages=1, crashes=1),
    "a transaction that goes on, an outage, a cancel and a neighbour": Configuration(
        neighbour=True, flights=1, outages=1, cancels=1
    ),
    "a transaction that goes on, crashes of worker and monitor, and a neighbour": Configuration(
        neighbour=True, flights=1, monitors=1, crashes=1
    ),
    "two workers with lines and own transactions, a failure and a crash": Configuration(
        workers=2, lines=True, own_transactions=True, failures=1, crashes=1
    ),
    "leases of three jobs, two workers, a failure, a crash, a lost reply and a cancel": Configuration(
        jobs=3, batch=3, workers=2, failures=1, crashes=1, replies=1, cancels=1
    ),
}
"""Hundreds of thousands of states each, and millions in the last ones."""
