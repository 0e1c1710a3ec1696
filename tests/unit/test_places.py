"""How many workers a pool may grow to."""

from __future__ import annotations

import pytest

from pgworker.cli.pool import _count_places


@pytest.mark.parametrize(("workers", "places"), [(1, 9), (8, 16), (9, 18), (40, 80), (1024, 1024)])
def test_a_pool_has_room_for_twice_its_workers_and_at_least_for_eight_more(workers: int, places: int) -> None:
    assert _count_places(workers) == places
