"""The app of the newer version in a rolling deploy: everything of the older one, and a task of its own."""

from __future__ import annotations

from pathlib import Path

from pgworker import Context
from tests.process.jobs import app, note

__all__ = ["app", "later"]


@app.task(name="later")
def later(ctx: Context, directory: str, name: str) -> None:
    """Known to newer workers only."""
    note(ctx, directory, "start", name)
    Path(directory, "later").touch()
