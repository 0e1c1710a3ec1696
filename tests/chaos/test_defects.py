"""Defects that are planted are found: here those that show soonest, all of them by `python -m tests.chaos.defects`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgworker.sql.load import query
from tests.chaos import checker
from tests.chaos.defects.catalogue import NOTHING, all_defects
from tests.chaos.defects.defect import Defect, planted
from tests.chaos.defects.scenario import try_defect

QUICK = 1.0
"""Seconds for which jobs are enqueued."""

PLANTED = [defect for defect in all_defects().values() if not defect.is_harmless]
OF_THE_MACHINE = {"a pool drains", "I7: everything comes to rest"}
"""What is asked of pools, and not of the evidence."""


@pytest.mark.parametrize("name", ["crash-not-charged", "enqueue-lost", "failure-counted-twice"])
def test_a_planted_defect_is_caught(name: str, binaries: Path | None) -> None:
    found = try_defect(all_defects()[name], binaries=binaries, enqueue_for=QUICK)
    assert found.by, f"missed; what else was found: {found.offences}"


def test_without_a_defect_all_invariants_hold(binaries: Path | None) -> None:
    assert try_defect(NOTHING, binaries=binaries, enqueue_for=QUICK).offences == {}


@pytest.mark.parametrize("defect", [pytest.param(defect, id=defect.name) for defect in all_defects().values()])
def test_every_defect_finds_what_it_changes_and_leaves_nothing_behind(defect: Defect) -> None:
    before = query("settle_jobs"), query("claim_jobs")
    with planted(defect) as bed:
        there = {(owner, name): getattr(owner, name) for owner, name in bed.changed}
    assert (query("settle_jobs"), query("claim_jobs")) == before
    assert there.items().isdisjoint(bed.changed.items())
    assert bed.changed == {(owner, name): getattr(owner, name) for owner, name in bed.changed}


@pytest.mark.parametrize("defect", [pytest.param(defect, id=defect.name) for defect in PLANTED])
def test_what_catches_a_defect_is_an_invariant(defect: Defect) -> None:
    assert defect.caught_by
    for begins in defect.caught_by:
        assert [name for name in {*checker.INVARIANTS, *OF_THE_MACHINE} if name.startswith(begins)], begins
