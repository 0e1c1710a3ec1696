"""Locks among processes of one host."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusively(directory: Path, flags: int = 0) -> Iterator[None]:
    """One at a time in `directory`: its flock(2), which the kernel drops when we die. OSError if `flags` has LOCK_NB
    and somebody else is in there."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(handle)
