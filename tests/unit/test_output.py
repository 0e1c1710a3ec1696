from __future__ import annotations

import pytest

from pgworker.cli.output import size


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
