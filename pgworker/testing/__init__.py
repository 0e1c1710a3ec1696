"""For the tests of applications: run what was enqueued, here and now, through the real database.

    from pgworker.testing import assert_enqueued, drain

    def test_an_order_is_paid(pgworker_database):
        charge.enqueue(42)
        [ran] = drain(app)
        assert ran.outcome == "succeeded"
        assert_enqueued(send_receipt, {"order_id": 42})

There is no mode in which an enqueue runs the handler at once: a job is committed, claimed, run and settled by the
statements that a worker uses, so a test sees the payload as it is stored, and transactions as they are.
"""

from __future__ import annotations

from pgworker.testing.drain import Ran, drain, drain_async
from pgworker.testing.enqueued import assert_enqueued

__all__ = ["Ran", "assert_enqueued", "drain", "drain_async"]
