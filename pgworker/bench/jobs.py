"""The jobs that the bench runs."""

from __future__ import annotations

from pgworker.app.app import App

app = App()


@app.task(name="noop")
def noop(user_id: int, email: str, template: str, note: str) -> None:
    """Nothing: what is measured is everything around it."""
