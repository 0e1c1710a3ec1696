"""The app of trials that mix whatever a job can have: an org, checkpoints, failures, a dead-letter hook, an effect."""

from __future__ import annotations

from typing import Any

from pgworker import App, Backoff, Context, DeadLetter
from tests.sql.tenants import SEEN

app = App()
MAX_ATTEMPTS = 3


@app.task(name="effect", max_attempts=MAX_ATTEMPTS, backoff=Backoff(base=0.02, cap=0.1))
def effect(ctx: Context, org: str | None, failures: int) -> Any:
    """Fail in the first so many executions, each from where the one before had come to; then write, all or nothing."""
    execution = ctx.job.execution
    _expect("the org", ctx.job.org_id, org)
    _expect("the checkpoint", ctx.checkpoint, {"execution": execution - 1} if execution > 1 else None)
    ctx.progress(min(1.0, execution / (failures + 1)), "on its way", checkpoint={"execution": execution})
    if execution <= failures:
        raise ConnectionError("as asked")
    with ctx.transaction() as connection:
        seen = [row[0] for row in connection.execute(SEEN)]
        _expect("the orgs that are seen", seen, [org] if org else [])
        connection.execute("insert into chaos.effect values (%s, %s)", [ctx.job.id, execution])
        if org:
            connection.execute("insert into shop.notes (note) values (%s)", [str(ctx.job.id)])


@effect.on_dead_letter
def told(ctx: Context, dead: DeadLetter) -> None:
    """Say of which job, and for which org one is asked."""
    with ctx.transaction() as connection:
        connection.execute("insert into chaos.told values (%s, %s)", [dead.id, ctx.job.org_id])


class Unexpected(AssertionError):
    """A handler found something that must not be."""


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Unexpected(f"{what}: {found!r}, not {expected!r}")
