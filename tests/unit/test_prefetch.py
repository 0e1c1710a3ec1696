from __future__ import annotations

import pytest

from pgworker.worker.prefetch import Prefetch


def settled(seconds_per_job: float, slots: int = 1) -> Prefetch:
    prefetch = Prefetch(seconds=0.05, max_batch=500, slots=slots)
    for _ in range(20):
        prefetch.observe(10, 10 * seconds_per_job)
    return prefetch


def test_a_new_worker_claims_one_job_since_it_knows_nothing_yet() -> None:
    assert Prefetch(0.05, 500, 1).wanted(waiting=0, free=1, since_last_start=9) == 1


def test_no_op_jobs_are_claimed_by_the_batch_and_two_batches_ahead_at_most() -> None:
    prefetch = settled(0.000001)
    assert prefetch.target == pytest.approx(1000, abs=1)
    assert prefetch.wanted(waiting=0, free=1, since_last_start=9) == 500
    assert prefetch.wanted(waiting=499, free=0, since_last_start=0.0) == 500
    assert prefetch.wanted(waiting=501, free=0, since_last_start=0.0) == 0


def test_a_job_that_takes_longer_than_the_span_is_claimed_alone_and_only_when_nothing_runs() -> None:
    prefetch = settled(10.0)
    assert prefetch.wanted(waiting=0, free=1, since_last_start=9) == 1
    assert prefetch.wanted(waiting=0, free=0, since_last_start=0.001) == 0


def test_nothing_is_claimed_behind_a_job_that_turns_out_long() -> None:
    prefetch = settled(0.001)
    assert prefetch.wanted(waiting=0, free=0, since_last_start=0.01) == 49
    assert prefetch.wanted(waiting=0, free=0, since_last_start=0.06) == 0


def test_the_estimate_rises_at_once_and_falls_by_and_by() -> None:
    prefetch = settled(0.001)
    prefetch.observe(1, 10.0)
    assert prefetch.target == 1
    prefetch.observe(1, 0.001)
    assert prefetch.target == 1
    for _ in range(20):
        prefetch.observe(1, 0.001)
    assert prefetch.target == pytest.approx(50, abs=1)


def test_with_many_slots_long_jobs_are_claimed_for_those_that_are_free() -> None:
    prefetch = settled(10.0, slots=8)
    assert prefetch.wanted(waiting=0, free=8, since_last_start=60) == 8
    assert prefetch.wanted(waiting=0, free=3, since_last_start=60) == 3
    assert prefetch.wanted(waiting=0, free=0, since_last_start=0) == 0


def test_with_many_slots_short_jobs_are_claimed_ahead_for_all_of_them() -> None:
    prefetch = settled(0.001, slots=4)
    assert prefetch.wanted(waiting=0, free=4, since_last_start=60) == 199
    assert prefetch.wanted(waiting=0, free=0, since_last_start=0.01) == 199
    assert prefetch.wanted(waiting=150, free=0, since_last_start=0.01) == 0
    assert prefetch.wanted(waiting=0, free=0, since_last_start=0.06) == 0


def test_large_arguments_are_claimed_a_few_mib_at_a_time_whatever_the_slots_and_small_ones_by_the_batch_again() -> None:
    prefetch = settled(0.000001)
    prefetch.weigh(500, 500 * 2**20)
    assert prefetch.target == 32
    prefetch.weigh(4, 4 * 2**30)
    assert prefetch.target == 1
    for _ in range(20):
        prefetch.weigh(500, 500 * 100)
    assert prefetch.target == pytest.approx(1000, abs=1)


def test_it_can_forget_what_it_knows() -> None:
    prefetch = settled(0.000001)
    prefetch.weigh(500, 500 * 2**20)
    prefetch.begin_anew()
    assert prefetch.target == 1
    prefetch.observe(500, 0.0005)
    assert prefetch.target > 2
