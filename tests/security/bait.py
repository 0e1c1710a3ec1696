"""A module that nobody has a reason to import: who does leaves a file behind."""

from __future__ import annotations

import os
from pathlib import Path

if wanted := os.environ.get("PGWORKER_TEST_BAIT"):
    Path(wanted).touch()


def spring(command: str = "") -> None:
    """What a task of this name would run."""
