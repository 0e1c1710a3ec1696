"""No terminal for workers: several of them can't share the master's, and one that read from it would be stopped."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from pgworker.app.scope import job_here


def leave_terminal() -> None:
    """Empty standard input for this process, and a breakpoint() that fails at once and says who has a terminal.

    A debugger that PYTHONBREAKPOINT or the app has chosen stays: it may be one that needs none.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    if not os.environ.get("PYTHONBREAKPOINT") and sys.breakpointhook is sys.__breakpointhook__:
        sys.breakpointhook = _refuse


def _refuse(*_args: object, **_named: object) -> NoReturn:
    job = (job_here() or {}).get("job", "ID")
    raise RuntimeError(f"a worker has no terminal for breakpoint(): `pgworker jobs run {job}` runs the job in yours")
