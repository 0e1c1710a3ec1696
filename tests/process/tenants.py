"""The app of the pool that works for several orgs: handlers that say what they saw, and leave a mess."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from pgworker import App, Backoff, Cancelled, Context
from tests.chaos.evidence import append
from tests.sql.tenants import SEEN, is_fresh, make_mischief

app = App()


@app.task(backoff=Backoff(base=0.05, cap=0.2), max_attempts=3)
def visit(ctx: Context, directory: str, mischief: str, end: str) -> None:
    """Say which orgs are there to be seen, write a row, do something that the next job must not find, and end."""
    org = ctx.job.org_id
    with ctx.transaction() as connection:
        is_fresh(connection, org)
        seen = [row[0] for row in connection.execute(SEEN).fetchall()]
        append(Path(directory, "ledger"), json.dumps({"org": org, "seen": seen, "pid": os.getpid()}))
        if org is not None:
            connection.execute("insert into shop.notes (note) values (%s)", [str(ctx.job.id)])
        if ctx.job.execution == 1:
            make_mischief(connection, mischief)
            if end == "error":
                raise ValueError("as asked")
            if end == "cancel":
                raise Cancelled
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
