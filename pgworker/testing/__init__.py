"""For the tests of applications: run what was enqueued, here and now, through the real database.

    from pgworker.testing import assert_enqueued, drain

    def test_an_order_is_paid(pgworker_database):
        charge.enqueue(42)
        [job] = drain(app)
        assert job.outcome == "succeeded"
        assert_enqueued(send_receipt, {"order_id": 42})

There is no mode in which an enqueue runs the handler at once: a job is committed, claimed, run and settled by the
statements that a worker uses, so a test sees the payload as it is stored, and transactions as they are.

Nothing of it is imported before it is used: pytest loads the plugin in this package wherever it is installed.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgworker.inspection.waiting import WaitingJob
    from pgworker.testing.due_jobs import DrainedJob, drain, drain_async
    from pgworker.testing.enqueued import assert_enqueued

__all__ = ["DrainedJob", "WaitingJob", "assert_enqueued", "drain", "drain_async"]

_HOMES = {"WaitingJob": "pgworker.inspection.waiting", "assert_enqueued": "pgworker.testing.enqueued"}


if not TYPE_CHECKING:  # a type checker that saw it would take every misspelt name for an object

    def __getattr__(name: str) -> object:
        """PEP 562: asked once per name."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(_import_module(_HOMES.get(name, "pgworker.testing.due_jobs")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
