"""An execution without a worker: the Context and the Job that a task's `invoke` gets from one."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from pgworker import App, CancelReason, Context, Job, Task

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Execution:
    """Counts how often its Job is made."""

    def __init__(self, app: App, *, org_id: str | None = None, headers: dict[str, Any] | None = None) -> None:
        self.jobs_made = 0
        self._org_id = org_id
        self._headers = headers or {}
        self.context = Context(
            make_job=self.make_job,
            lease_id=UUID(int=1),
            position=1,
            deadline_ns=0,
            cancel_reason=lambda: CancelReason.NONE,
            transaction=self._transaction,
            transaction_async=self._transaction_async,
            progress=lambda *_said: None,
            checkpoint=None,
            state=SimpleNamespace(),
            org_config=app.org_config,
        )

    def make_job(self) -> Job:
        self.jobs_made += 1
        job_id = UUID(int=7)
        return Job(job_id, "t", "default", {}, 5, 3, 1, 25, None, NOW, NOW, self._org_id, self._headers)

    def run(self, task: Task[..., Any], payload: str = "{}") -> Any:
        return task.invoke(payload, self.context if task.needs_context else None, self.make_job)

    async def run_async(self, task: Task[..., Any], payload: str = "{}") -> Any:
        return await task.invoke_async(payload, self.context if task.needs_context else None, self.make_job)

    def _transaction(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _transaction_async(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext()
