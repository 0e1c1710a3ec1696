"""The app of trials that measure: a job that does nothing."""

from __future__ import annotations

from pgworker import App

app = App()


@app.task(name="noop")
def noop() -> None:
    """End at once."""
