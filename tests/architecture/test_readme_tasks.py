"""The section "Tasks" of the README: its blocks are one module, which passes mypy strict and does what it says."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgworker import InvalidJob, Retry
from pgworker.model.progress import check_progress
from pgworker.testing import drain
from tests.architecture.test_readme import TASKS


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


def test_a_parcel_is_packed_and_tracked_inside_the_middleware(orders: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    orders.pack.enqueue(orders.Parcel(uuid4(), date(2026, 1, 2), ["book", "pen"]))
    asyncio.run(orders.track.enqueue_async("x"))
    assert [job.result for job in drain(orders.app, queues=["parcels", "default"], raising=True)] == [2, "x 3"]
    assert [message.split()[0] for message in caplog.messages] == ["took", "took"]
    assert asyncio.run(orders.track("x", 1)) == "x 1"


def test_a_parcel_that_is_given_up_is_told_to_its_hook(orders: Any) -> None:
    orders.pack.enqueue(orders.Parcel(UUID(int=7), date(2026, 1, 2), []))
    given_up, told = drain(orders.app)
    assert (str(given_up.error), told.job.task) == ("nothing is in it", "orders.pack:dead_letter")
    assert str(UUID(int=7)) in told.result
    assert told.result.endswith("was given up: nothing is in it")


def test_shelves_are_restocked_from_where_the_last_execution_was(orders: Any) -> None:
    assert [job.result for job in _drained(orders, orders.restock, 3)] == [3]
    job = orders.restock.enqueue(3)
    with orders.app.queue("default") as queue:
        [claimed] = queue.claim(1)
        queue.progress(claimed, check_progress(job.id, 1 / 3, "shelf 1", {"done": 1}))
        queue.fail(claimed, Retry(after=0))
    [again] = drain(orders.app, queues=["default"])
    assert (again.job.execution, again.result) == (2, 2)
    assert job.progress() is None


def _drained(orders: Any, task: Any, *arguments: Any) -> Any:
    task.enqueue(*arguments)
    return drain(orders.app, raising=True)


def test_an_invoice_is_for_an_org(orders: Any) -> None:
    orders.bill()
    with pytest.raises(InvalidJob, match="needs an org"):
        orders.invoice.enqueue(42)
    assert [job.result for job in drain(orders.tenants)] == ["42 EUR for acme"]


def test_the_page_names_the_tasks_that_the_module_has(orders: Any) -> None:
    assert set(orders.app.tasks) == {"orders.pack", "orders.track", "orders.restock", "orders.pack:dead_letter"}
