"""Sizes and times as people read them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from pgworker.cli.output import size
from pgworker.model.display import ago, utc


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**21, "2.0 MiB"),
        (2**35, "32 GiB"),
        (2**51, "2048 TiB"),
    ],
)
def test_a_size_has_two_digits_that_matter(count: int, shown: str) -> None:
    assert size(count) == shown


def test_times_are_those_of_utc_whichever_zone_the_server_has() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 600_000, timezone(timedelta(hours=9)))
    assert utc(moment) == "2026-01-01 18:04:05 UTC"
    assert ago(moment, moment.astimezone(timezone.utc) + timedelta(seconds=90)) == "90s ago"
