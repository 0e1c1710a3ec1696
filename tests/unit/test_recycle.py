from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworker.config.settings import PoolSettings
from pgworker.model.recycle import RecycleReason
from pgworker.worker.recycle import Limits

ROOT = Path(__file__).parents[2]
SETTINGS = PoolSettings(workers=1, max_jobs=1000, max_memory=512 << 20, max_age=3600)


@given(st.uuids())
def test_every_limit_is_lowered_by_up_to_a_quarter_and_never_raised(worker_id: UUID) -> None:
    limits = Limits.draw(SETTINGS, worker_id)
    assert limits.jobs is not None
    assert limits.memory is not None
    assert limits.age is not None
    for drawn, whole in ((limits.jobs, 1000), (limits.memory, 512 << 20), (limits.age, 3600)):
        assert whole * 0.75 - 1 <= drawn <= whole
    assert Limits.draw(PoolSettings(workers=1, max_jobs=1), worker_id) == Limits(jobs=1)


def test_the_same_worker_draws_the_same_limits_and_others_draw_others() -> None:
    drawn = [Limits.draw(SETTINGS, UUID(int=number)) for number in range(50)]
    assert drawn[7] == Limits.draw(SETTINGS, UUID(int=7))
    assert len(set(drawn)) == 50


@pytest.mark.parametrize(
    ("limits", "seen", "reason"),
    [
        (Limits(), (10**9, 1e9, 1 << 50), RecycleReason.NONE),
        (Limits(jobs=5), (4, 0, 0), RecycleReason.NONE),
        (Limits(jobs=5), (5, 0, 0), RecycleReason.JOBS),
        (Limits(memory=100), (1, 0, 99), RecycleReason.NONE),
        (Limits(memory=100), (1, 0, 100), RecycleReason.MEMORY),
        (Limits(memory=100), (0, 0, 100), RecycleReason.NONE),
        (Limits(age=60), (0, 59, 0), RecycleReason.NONE),
        (Limits(age=60), (0, 60, 0), RecycleReason.AGE),
    ],
)
def test_a_worker_is_recycled_at_its_limit(limits: Limits, seen: tuple[int, float, int], reason: RecycleReason) -> None:
    assert limits.find_reached(*seen) is reason


def test_private_memory_is_what_a_child_has_written_itself_and_not_what_it_shares_with_its_parent() -> None:
    program = """
import os
from pgworker.linux.memory import private_bytes
inherited = os.urandom(64 << 20)
if os.fork() == 0:
    before = private_bytes()
    own = os.urandom(32 << 20)
    print(before >> 20, (private_bytes() - before) >> 20, flush=True)
    os._exit(0)
os.wait()
print(private_bytes() >> 20)
"""
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    at_first, written, parent = map(int, printed)
    assert at_first < 32
    assert 31 <= written <= 33
    assert parent >= 64
