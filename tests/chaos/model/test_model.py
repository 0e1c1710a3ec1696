"""The lease protocol, searched whole in small worlds; and the search itself, tried with mistakes planted in them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.model.defects import DEFECTS, SMALL, Defect
from tests.chaos.model.explore import STUCK, Exploration, Explored
from tests.chaos.model.protocol import Protocol
from tests.chaos.model.state import Configuration

WAYS = {
    "no-fence": (13, "something was settled after its lease was lost"),
    "settle-by-job": (15, "something was settled after its lease was lost"),
    "one-snapshot": (11, "job 0 is in 2 places"),
    "no-look-up": (12, "a settle that was acknowledged has no row"),
    "effect-outside-fence": (11, "an effect of job 0 happened in an execution that did not succeed"),
    "ends-by-count": (11, "a lease is left behind in which all is settled"),
    "crash-not-charged": (8, "a job ran when its worker crashed, and was not charged"),
    "neighbours-charged": (9, "a crash was charged to a job that did not run"),
    "no-limit-at-reclaim": (19, "a job with all its failures runs again"),
    "reclaim-forgets-cancel": (10, "job 0 goes on after a cancel was told that it would stop"),
    "settle-ignores-cancel": (9, "job 0 goes on after a cancel was told that it would stop"),
    "cancel-in-one-statement": (9, "job 0 goes on after a cancel was told that it would stop"),
    "no-conflict": (7, "an execution of job 0 has two outcomes"),
    "requeue-what-was-asked": (8, "job 0 is in 2 places"),
    "renews-what-is-not-shown": (3, STUCK),
    "no-sweep": (1, STUCK),
    "steady-at-once": (5, "what a living worker is about to settle after an outage was taken"),
    "releases-without-line": (9, "a job was released that its worker had started"),
    "erases-line-in-doubt": (9, "a job starts that its own monitor has given back"),
    "release-keeps-tail": (5, "job 1 is in 2 places"),
    "ends-before-tail-is-back": (7, "job 1 is in 0 places"),
}
"""Of each defect the length of the shortest way to what it breaks."""


def explore(world: Configuration, *planted: str) -> Explored:
    return Exploration(Protocol(world, frozenset(planted))).run(checks_ends=True)


@pytest.mark.parametrize("title", SMALL)
def test_in_a_small_world_nothing_breaks_and_every_job_can_end(title: str) -> None:
    found = explore(SMALL[title])
    assert (found.offence, found.trace) == ("", [])
    assert found.is_whole


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_each_planted_defect_is_found_by_the_shortest_way(defect: Defect) -> None:
    found = explore(defect.world, defect.name)
    assert (len(found.trace), found.offence) == WAYS[defect.name], found.trace


@pytest.mark.parametrize("world", {defect.world for defect in DEFECTS} - {*SMALL.values()}, ids=str)
def test_without_the_defect_its_world_is_sound(world: Configuration) -> None:
    assert explore(world).offence == ""


def test_a_trace_reads_as_what_happened() -> None:
    [defect] = [defect for defect in DEFECTS if defect.name == "requeue-what-was-asked"]
    assert explore(defect.world, defect.name).trace == [
        "worker 0 claims job 0, 1 as lease 1",
        "worker 0 hears the reply",
        "worker 0 runs job 0 (execution 1, lease 1)",
        "worker 0: job 0 (execution 1, lease 1) fails",
        "worker 0 settles job 0 (execution 1, lease 1)",
        "worker 0: the reply is lost",
        "worker 1 claims job 0 as lease 2",
        "worker 0 settles job 0 (execution 1, lease 1)",
    ]


def test_a_search_with_a_limit_says_that_it_saw_only_a_part() -> None:
    world = replace(SMALL["lines and a lost reply"], failures=1)
    found = Exploration(Protocol(world)).run(limit=100)
    assert not found.is_whole
    assert found.states >= 100
