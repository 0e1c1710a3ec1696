"""The section "Tasks" of the README: its blocks are one module, which passes mypy strict and does what it says."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgworker import App, Discard, InvalidJob, Retry
from pgworker.lifecycle.dead_letters import declare_hooks
from pgworker.lifecycle.settle import Next
from pgworker.model.progress import say
from pgworker.model.state import Outcome
from pgworker.testing.drain import drain
from tests.architecture.test_readme import TASKS
from tests.sql.actors import Connect, Worker, ask
from tests.unit.executions import Execution


@pytest.fixture
def orders(tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`orders.py` as a worker imports it."""
    monkeypatch.setenv("PGWORKER_DSN", dsn)
    (tmp_path / "orders.py").write_text("\n\n".join(TASKS))
    spec = importlib.util.spec_from_file_location("orders", tmp_path / "orders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "orders", module)
    spec.loader.exec_module(module)
    yield module
    module.app.close()
    module.tenants.close()


def test_its_blocks_pass_mypy_strict(tmp_path: Path) -> None:
    (tmp_path / "orders.py").write_text("\n\n".join(TASKS))
    command = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "orders.py")]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout


def executed(orders: ModuleType, app: App, task: Any, payload: str, **job: Any) -> Any:
    """What a worker's first job of this task returns, from the start hooks to the stop hooks."""
    execution = Execution(app, **job)
    state = execution.context.state = app.start_worker()
    try:
        run: Callable[..., Any] = execution.run_async if task.is_async else execution.run
        result = run(task, payload)
        return asyncio.run(result) if task.is_async else result
    finally:
        app.stop_worker(state)


def test_a_parcel_is_packed_and_tracked_inside_the_middleware(orders: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    parcel = orders.Parcel(uuid4(), date(2026, 1, 2), ["book", "pen"])
    assert executed(orders, orders.app, orders.pack, orders.pack.job(parcel).payload) == 2
    assert executed(orders, orders.app, orders.track, orders.track.job("x").payload) == "x 3"
    assert [message.split()[0] for message in caplog.messages] == ["took", "took"]
    assert asyncio.run(orders.track("x", 1)) == "x 1"
    with pytest.raises(Discard, match="nothing is in it"):
        executed(orders, orders.app, orders.pack, orders.pack.job(orders.Parcel(uuid4(), parcel.send_on, [])).payload)


def test_a_parcel_that_is_given_up_is_told_to_its_hook(orders: Any, connect: Connect) -> None:
    connection = connect()
    declare_hooks(connection, list(orders.app.tasks), orders.app.dead_letter_hooks)
    parcel = orders.Parcel(UUID(int=7), date(2026, 1, 2), [])
    asyncio.run(orders.pack.enqueue_async(parcel))
    worker = Worker(connection)
    held = worker.claim(tasks=list(orders.app.tasks), queues=["parcels"])
    error = '{"type": "Discard", "message": "nothing is in it"}'
    assert worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.BURY, error=error))
    [row] = worker.claim(tasks=["orders.pack:dead_letter"], queues=["parcels"]).rows
    told = executed(orders, orders.app, orders.unpacked, row.payload or "")
    assert str(UUID(int=7)) in told
    assert told.endswith("was given up: Discard: nothing is in it")


def test_shelves_are_restocked_from_where_the_last_execution_was(orders: Any, connect: Connect) -> None:
    execution = Execution(orders.app)
    said: list[tuple[Any, ...]] = []
    execution.context._progress = lambda *words: said.append(words)
    assert execution.run(orders.restock, '{"shelves": 3}') == 3
    assert said[1] == (1 / 3, "shelf 1", {"done": 1})
    job = orders.restock.enqueue(3)
    with orders.app.queue("default") as queue:
        [claimed] = queue.claim(1)
        queue.progress(claimed, say(job.id, *said[1]))
        queue.fail(claimed, Retry(after=0))
    [again] = drain(orders.app, queues=["default"])
    assert (again.job.execution, again.result) == (2, 2)
    assert job.progress() is None


def test_an_invoice_is_for_an_org(orders: Any, connect: Connect) -> None:
    orders.bill()
    with pytest.raises(InvalidJob, match="needs an org"):
        orders.invoice.enqueue(42)
    [(payload, org_id)] = ask(connect(), "select payload::text, org_id from pgworker.jobs")
    assert executed(orders, orders.tenants, orders.invoice, payload, org_id=org_id) == "42 EUR for acme"


def test_the_page_names_the_tasks_that_the_module_has(orders: Any) -> None:
    assert set(orders.app.tasks) == {"orders.pack", "orders.track", "orders.restock", "orders.pack:dead_letter"}
