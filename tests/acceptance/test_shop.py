"""A small web shop, written from the README: its own tests, and its pool under Ctrl-C, HUP and kill -9."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgworker import App, Context
from tests.process.pool import Pool, eventually, start

SHOP = Path(__file__).with_name("shop")
ORGS = ("acme", "bolt")
ORDERS = 150
"""Of each org, in each part of the test."""

Ask = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The shop's, whose code a test changes."""
    return shutil.copytree(SHOP, tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture
def owner(roles_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        connection.execute((SHOP / "schema.sql").read_bytes())
        yield connection


@pytest.fixture
def ask(owner: psycopg.Connection[Any]) -> Ask:
    return lambda statement, *parameters: owner.execute(statement.encode(), parameters).fetchall()


@pytest.mark.parametrize(
    ("command", "said"),
    [("pytest -W error -p no:cacheprovider tests.py", "5 passed"), ("mypy --strict .", "no issues")],
)
def test_its_own_tests_pass_and_so_does_mypy(directory: Path, binaries: Path | None, command: str, said: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PGWORKER_"))}
    environment["MYPYPATH"] = str(Path(__file__).parents[2])  # mypy can't follow an editable install of setuptools
    ran = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=directory,
        env=environment | ({"PGWORKER_PG_BINDIR": str(binaries)} if binaries else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert said in ran.stdout, ran.stdout + ran.stderr


def test_every_order_is_paid_once_whatever_happens_to_the_pool(
    directory: Path, owner: psycopg.Connection[Any], ask: Ask, login: Callable[..., str], tmp_path: Path
) -> None:
    works = login("pgworker_worker")
    with psycopg.connect(works) as connection:
        owner.execute(f"grant select, insert on orders, mails to {connection.info.user}".encode())
    logs = count()

    def pool() -> Any:
        log = tmp_path / f"pool{next(logs)}.log"
        queues = ["billing", "mail"]
        settings = {"workers": 2, "slots": 4, "queues": queues, "cancel_grace": 0.3, "term_grace": 0.3}
        return start(works, log, app="webshop:app", cwd=directory, **settings)

    with psycopg.connect(login("pgworker_enqueuer"), autocommit=True) as web:
        numbers = count()
        with pool() as first:
            first.wait_for_log("the pool is ready")
            order(web, numbers)
            paid(ask, 20)
            os.kill(first.workers[0], signal.SIGKILL)
            first.wait_for_log("was killed by SIGKILL, not by pgworker")
            order(web, numbers)
            roll(first, directory)
            order(web, numbers)
            paid(ask, 5 * ORDERS)
            os.killpg(first.master, signal.SIGINT)
            assert first.wait() == 0
        assert ask("select from pgworker.job_leases") == [], "what had not started went back"
        with pool() as second:
            second.wait_for_log("the pool is ready")
            kill_what_never_ends(second, web, ask, tmp_path)
            eventually(lambda: left(ask) == 0, lambda: f"nothing left to do, not {left(ask)} jobs")
            second.send(signal.SIGTERM)
            assert second.wait() == 0
    charged = 3 * ORDERS
    for org in ORGS:
        assert ask("select count(*), count(distinct payment) from orders where org_id = %s", org) == [(charged,) * 2]
        receipts = "select count(*), count(distinct number) from mails where org_id = %s and text = 'receipt'"
        assert ask(receipts, org) == [(charged,) * 2]
        reminded = "select distinct text from mails where org_id = %s and text like 'how%%'"
        assert ask(reminded, org) == [(f"how is it, ['{org}']?",)], "no reminder saw another org's orders"
    assert ask("select count(*) from mails where text like 'sorry%%'") == [(3 * len(ORGS),)]
    later = "select task, count(*) from pgworker.job_queue where run_at > now() + interval '6 days' group by task"
    assert ask(later) == [("webshop.remind", len(ORGS) * charged)]
    by_both = {line.partition("done by version ")[2][:1] for line in first.log().splitlines()} - {""}
    assert by_both == {"1", "2"}


def order(web: psycopg.Connection[Any], numbers: count[int]) -> None:
    """Of each org: orders through the API and SQL, one on a stolen card, and a reminder that is due in a second."""
    remote = App(web.info.dsn)

    @remote.task(name="webshop.charge", queue="billing", max_attempts=5)
    def charge(ctx: Context, number: int, card: str = "visa") -> None: ...

    @remote.task(name="webshop.remind", queue="mail")
    def remind(ctx: Context, number: int) -> None: ...

    soon = datetime.now(timezone.utc) + timedelta(seconds=1)
    for org in ORGS:
        with web.transaction(), remote.org(org):
            remote.enqueue_many([charge.job(next(numbers)) for _ in range(ORDERS - 1)], web)
            charge.using(web).enqueue(next(numbers), card="stolen")
            remind.using(web).options(run_at=soon).enqueue(next(numbers))
            web.execute(
                "select pgworker.enqueue('webshop.charge', jsonb_build_object('number', %s::integer),"
                " queue => 'billing', org_id => %s)",
                [next(numbers), org],
            )


def roll(pool: Pool, directory: Path) -> None:
    """A broken app changes nothing, the next version comes worker by worker."""
    code = directory / "webshop.py"
    good = code.read_text()
    code.write_text(good.replace("VERSION = 1", "VERSION = = 2"))
    pool.send(signal.SIGHUP)
    pool.wait_for_log("SyntaxError.*the old workers go on")
    code.write_text(good.replace("VERSION = 1", "VERSION = 2"))
    pool.send(signal.SIGHUP)
    pool.wait_for_log("HUP: 2 workers run the app as it is now")


def kill_what_never_ends(pool: Pool, web: psycopg.Connection[Any], ask: Ask, tmp_path: Path) -> None:
    enqueue = (
        "select pgworker.enqueue('webshop.count_stars', jsonb_build_object('path', %s::text), queue => 'billing',"
        " org_id => 'acme', timeout => interval '1 second', max_attempts => 1)"
    )
    [job] = web.execute(enqueue, [str(tmp_path / "pid")]).fetchone() or [None]
    pool.wait_for_log("was killed with its job: its time was up")
    eventually(lambda: ask("select pgworker.job_status(%s)", job) == [("dead_letter",)], "its dead letter")
    assert int((tmp_path / "pid").read_text()) not in pool.workers


def paid(ask: Ask, orders: int) -> None:
    eventually(lambda: ask("select count(*) >= %s from orders", orders) == [(True,)], f"{orders} orders are paid")


def left(ask: Ask) -> int:
    """Jobs that wait and are not for next week, or run."""
    soon = "select count(*) from pgworker.job_queue where run_at < now() + interval '1 day'"
    [(number,)] = ask(f"select ({soon}) + (select count(*) from pgworker.job_leases)")
    return int(number)
