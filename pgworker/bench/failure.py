"""What ends a measurement that has no figures."""

from __future__ import annotations

from pgworker.errors import PgworkerError


class BenchFailed(PgworkerError):
    """It came to no end, or found jobs missing."""

    exit_code = 1
