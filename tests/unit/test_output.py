from __future__ import annotations

import click
import pytest

from pgworker.cli.options import length_of_time
from pgworker.cli.output import size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5h", 5400), ("15m", 900), ("36h", 129_600), ("7d", 604_800), ("0", 0)],
)
def test_a_length_of_time_is_seconds_or_says_its_unit(text: str, seconds: float) -> None:
    assert length_of_time(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "7 d", "7D", "1w", "1h30m", "nan", "inf", "1e9", "٣d", "7d\n"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration: give seconds, or a number with s, m, h or d"):
        length_of_time(text)


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
