"""Text of anybody, sizes and times, as people see them on a terminal."""

from __future__ import annotations

from datetime import datetime, timezone

from pgworker.model.durations import duration


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with an escape for whatever moves the cursor, ends a line or hides: controls, separators, bidi marks.

    `lines` keeps its line ends, and turns tabs into blanks.
    """
    if lines:
        return "\n".join(printable(line) for line in text.expandtabs().split("\n"))
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def size(count: int) -> str:
    """`512 B`, `3.1 MiB`, `40 GiB`."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f} {unit}" if amount < 10 and unit != "B" else f"{amount:.0f} {unit}"


def utc(moment: datetime) -> str:
    """`2026-11-21 10:00:00 UTC`, in whichever zone the server or its user has it."""
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def ago(then: datetime, now: datetime) -> str:
    """`12s ago`."""
    return f"{duration((now - then).total_seconds())} ago"
