"""A short life of the machine: the ordinary slice of what a night of seeds tries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.evidence import FAULTS
from tests.chaos.faults.catalogue import all_faults, choose
from tests.chaos.machine import try_seed
from tests.chaos.plan import plan


def test_the_same_seed_gives_the_same_plan_and_another_one_another() -> None:
    faults = choose("all")
    assert plan(7, faults, 60) == plan(7, faults, 60)
    assert plan(7, faults, 60) != plan(8, faults, 60)


def test_a_plan_has_only_faults_that_its_world_can_bear() -> None:
    plans = [plan(seed, choose("all"), 60) for seed in range(100)]
    assert all(step.fault.needs <= made.features for made in plans for step in made.steps)
    assert {feature for made in plans for feature in made.features} >= {"standby", "clock", "small-disk", "pooler"}
    assert {step.fault for made in plans for step in made.steps} == set(choose("all"))


def test_a_fault_alone_has_what_it_needs() -> None:
    for fault in all_faults():
        made = plan(1, [fault], 60)
        assert fault.needs <= made.features, fault.name
        assert made.steps, fault.name


def test_an_unknown_fault_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no fault '99'.*1 worker-killed"):
        choose("1,99")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [7, 11])
def test_no_invariant_breaks_under_mixed_faults(seed: int, tmp_path: Path, binaries: Path | None) -> None:
    seconds = 4.0
    made = replace(plan(seed, choose("all"), seconds), backlog=200)  # the rest is to come soon
    verdict = try_seed(made, tmp_path, seconds=seconds, jobs=None, binaries=binaries)
    assert verdict.offences == {}, f"python -m tests.chaos --seed {seed} --minutes {seconds / 60:g}"
    assert verdict.jobs
    assert verdict.executions
    told = [json.loads(line) for line in (tmp_path / FAULTS).read_text().splitlines()]
    assert {line["event"] for line in told} & {fault.name for fault in all_faults()}
