"""Times and sizes as people write them on a command line."""

from __future__ import annotations

import click
import pytest

from pgworker.cli.options import time_span
from pgworker.config.kinds import parse_size
from pgworker.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("0", 0), ("0.5", 0.5), ("30s", 30), ("1.5 s", 1.5), ("5m", 300), ("1h", 3600), ("2d", 172_800)],
)
def test_a_time_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert time_span(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1e3", "inf", "1.", "1 0", "5M", "5min", "٣", "9" * 40])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time"):
        time_span(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("64k", 65_536),
        ("512M", 512 << 20),
        ("512 MiB", 512 << 20),
        ("2gb", 2 << 30),
        ("1.5G", 3 << 29),
        ("1T", 1 << 40),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1e6", "1P", "1 0M", "٣M", "9" * 40])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no size"):
        parse_size(text)
