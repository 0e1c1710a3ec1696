"""What a job sees of users' own tables, and that nothing of it reaches the next job. Tried as a login without powers.

PGWORKER_TENANCY_TRANSACTIONS=10000 makes the mixture of the last test longer, PGWORKER_TENANCY_SEED chooses its dice.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import dict_row

from pgworker.app.queue.leases import ClaimedJob
from pgworker.errors import Cancelled
from tests.sql.actors import Connect, ask
from tests.sql.tenants import (
    MISCHIEF,
    ORGS,
    SEEN,
    Slot,
    Standing,
    Tenants,
    claim,
    is_fresh,
    make_mischief,
    protect_notes,
)

FORBIDDEN = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def tenants(connect: Connect, login: Callable[..., str]) -> Tenants:
    return protect_notes(connect(), login)


@pytest.fixture
def slot(tenants: Tenants) -> Iterator[Slot]:
    with Slot(tenants.dsn) as opened:
        yield opened


# -- what a job sees


def test_a_job_sees_and_writes_its_own_org_and_one_without_an_org_nothing(tenants: Tenants, slot: Slot) -> None:
    for job in claim(tenants.dsn, [*ORGS, None]):
        org = job.row.org_id
        with slot.run(job) as connection:
            assert ask(connection, SEEN) == [org] * (org is not None)
            assert ask(connection, "select pgworker.current_org()") == [org]
            for other in ORGS:
                if other != org:
                    with pytest.raises(FORBIDDEN), connection.transaction():
                        connection.execute("insert into shop.notes values (%s, 'forged')", [other])
            if org:
                connection.execute("insert into shop.notes (note) values ('by a job')")
    written = ask(tenants.owner, "select org_id from shop.notes where note = 'by a job' order by 1")
    assert written == sorted(ORGS)
    assert ask(tenants.owner, "select count(*) from shop.notes where note = 'forged'") == [0]


def test_defaults_of_the_login_or_the_database_give_no_org(tenants: Tenants) -> None:
    tenants.owner.execute(f"alter role {tenants.user} set pgworker.org_id = 'acme'".encode())
    with psycopg.connect(tenants.dsn) as plain:
        assert ask(plain, "select pgworker.current_org()") == ["acme"], "as somebody wanted who set it"
    without, with_one = claim(tenants.dsn, [None, "bolt"])
    with Slot(tenants.dsn) as slot:
        with slot.run(without) as connection:
            assert ask(connection, SEEN) == []
        with slot.run(with_one) as connection:
            assert ask(connection, SEEN) == ["bolt"]


def test_after_the_handlers_own_commit_the_org_is_gone(tenants: Tenants, slot: Slot) -> None:
    (job,) = claim(tenants.dsn, ["acme"])
    with slot.run(job) as connection:
        connection.execute("commit")
        assert ask(connection, SEEN) == []


ENDS: dict[str, BaseException | None] = {
    "success": None,
    "an error": ValueError("as asked"),
    "a cancel": Cancelled(),
    "a rollback": psycopg.Rollback(),
    "an exit": SystemExit(1),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_that_a_job_leaves_behind_reaches_the_next_however_it_ends(
    tenants: Tenants, slot: Slot, end: str
) -> None:
    pids = set()
    jobs = iter(claim(tenants.dsn, [org for _ in MISCHIEF for org in ("acme", None, "cork")]))
    for name in MISCHIEF:
        with suppress(*[type(error) for error in ENDS.values() if error]), slot.run(next(jobs)) as connection:
            make_mischief(connection, name)
            if error := ENDS[end]:
                raise error
        for org in (None, "cork"):
            with slot.run(next(jobs)) as connection:
                is_fresh(connection, org)
                assert ask(connection, SEEN) == [org] * (org is not None), name
                pids.add(connection.info.backend_pid)
    assert len(pids) == 1, "it was the same connection all the time"


def test_what_a_job_changes_at_the_drivers_side_of_the_connection_ends_with_it(tenants: Tenants, slot: Slot) -> None:
    class OwnCursor(psycopg.Cursor[Any]):
        pass

    class OwnServerCursor(psycopg.ServerCursor[Any]):
        pass

    for number, job in enumerate(claim(tenants.dsn, ["acme", "bolt"] * 3)):
        with slot.run(job) as connection:
            is_fresh(connection, job.row.org_id)
            assert connection.cursor_factory is psycopg.Cursor
            assert connection.server_cursor_factory is psycopg.ServerCursor
            assert connection.execute("select count(*) as looks from shop.notes").fetchall() == [(1,)]
            assert (connection.read_only, connection.deferrable, connection.prepare_threshold) == (None, None, None)
            connection.row_factory = dict_row
            connection.cursor_factory, connection.server_cursor_factory = OwnCursor, OwnServerCursor
            if number % 2:
                connection.prepare_threshold = 0
                connection.execute("select count(*) as looks from shop.notes")
            else:
                connection.execute("commit")
                connection.read_only = connection.deferrable = True


def test_a_copy_or_a_pipeline_left_open_ends_with_its_job(tenants: Tenants, slot: Slot) -> None:
    for leave in (leave_a_copy, leave_a_pipeline):
        first, second = claim(tenants.dsn, ["acme", "bolt"])
        with ExitStack() as left_open, suppress(psycopg.Error, ValueError), slot.run(first) as connection:
            leave(connection, left_open)
            raise ValueError("as asked")
        with slot.run(second) as connection:
            is_fresh(connection, "bolt")
            assert ask(connection, SEEN) == ["bolt"]


def leave_a_copy(connection: Connection[Any], left_open: ExitStack) -> None:
    connection.pgconn.exec_(b"copy shop.notes to stdout")


def leave_a_pipeline(connection: Connection[Any], left_open: ExitStack) -> None:
    connection.pgconn.enter_pipeline_mode()
    connection.pgconn.send_query_params(b"select 1", [])


# -- all of it in a mixture


TRANSACTIONS = int(os.environ.get("PGWORKER_TENANCY_TRANSACTIONS", "1000"))


Written = Counter[tuple[str, str]]


class Mixture:
    """Transactions of several orgs and of none, two at a time, a statement of the one and a statement of the other."""

    def __init__(self, tenants: Tenants, dice: random.Random, make_slot: Callable[[str], Slot] = Slot) -> None:
        self.tenants = tenants
        self.make_slot = make_slot
        self.dice = dice
        self.committed: Written = Counter({(org, f"of {org}"): 1 for org in ORGS})
        self.done: Counter[str] = Counter()

    def run(self, transactions: int) -> None:
        with ExitStack() as slots:
            idle = [slots.enter_context(self.make_slot(self.tenants.dsn)) for _ in range(2)]
            under_way: list[tuple[Slot, Iterator[None]]] = []
            waiting = self.jobs(transactions)
            job = next(waiting, None)
            while job or under_way:
                if job and idle:
                    slot = idle.pop()
                    under_way.append((slot, self.transaction(slot, job)))
                    job = next(waiting, None)
                    continue
                slot, steps = self.dice.choice(under_way)
                if next(steps, self) is self:
                    under_way.remove((slot, steps))
                    idle.append(slot)

    def jobs(self, count: int) -> Iterator[ClaimedJob]:
        for begin in range(0, count, 500):
            chosen = self.dice.choices([*ORGS, None], k=min(500, count - begin))
            yield from claim(self.tenants.dsn, chosen)

    def transaction(self, slot: Slot, job: ClaimedJob) -> Iterator[None]:
        """One job, a statement or a few at each step."""
        org = job.row.org_id
        written: Written = Counter()
        end = self.dice.choice(list(ENDS))
        mischief = self.dice.choice(["", *MISCHIEF])
        try:
            with slot.run(job) as connection:
                is_fresh(connection, org)
                for number in range(self.dice.randint(1, 5)):
                    yield
                    step = self.dice.choice(STEPS)
                    step(connection, org, f"{job.row.job_id} {number}", written)
                    self.done[step.__name__] += 1
                    look(connection, org)
                yield
                if mischief:
                    self.done[mischief] += 1
                    make_mischief(connection, mischief)
                yield
                if error := ENDS[end]:
                    raise error
        except (ValueError, Cancelled, SystemExit, psycopg.Error):
            assert end not in ("success", "a rollback") or mischief, "nothing else goes wrong"
        if "its own commit" in mischief or (end == "success" and mischief != "its own rollback"):
            self.committed += written
        self.done[end] += 1


def look(connection: Connection[Any], org: str | None) -> None:
    looks = "select org_id, bool_and(note like 'of ' || org_id || '%%') from shop.notes group by org_id"
    assert ask(connection, looks) == [(org, True)] * (org is not None)


def look_prepared(connection: Connection[Any], org: str | None, note: str, written: Written) -> None:
    connection.execute("deallocate all; prepare looks as select distinct org_id from shop.notes")
    for _ in range(2):
        assert ask(connection, "execute looks") == ([org] if org else [])
    connection.execute("deallocate all")


def insert(connection: Connection[Any], org: str | None, note: str, written: Written) -> None:
    text = f"of {org} {note}"
    try:
        with connection.transaction():
            connection.execute("insert into shop.notes (note) values (%s)", [text])
    except FORBIDDEN:
        assert org is None
    else:
        assert org
        written[org, text] += 1


def insert_and_take_back(connection: Connection[Any], org: str | None, note: str, written: Written) -> None:
    if org:
        with connection.transaction(force_rollback=True):
            connection.execute("insert into shop.notes values (%s, %s)", [org, f"of {org} {note}"])
            look(connection, org)


def forge(connection: Connection[Any], org: str | None, note: str, written: Written) -> None:
    other = next(other for other in reversed(ORGS) if other != org)
    for statement in ("insert into shop.notes values (%s, 'forged')", "update shop.notes set org_id = %s returning 1"):
        with suppress(FORBIDDEN), connection.transaction():
            changed = connection.execute(statement.encode(), [other]).rowcount
            assert (org, changed) == (None, 0), "only an update of nothing is let through"


def rob(connection: Connection[Any], org: str | None, note: str, written: Written) -> None:
    for statement in (
        "update shop.notes set note = 'stolen' where org_id is distinct from %s",
        "delete from shop.notes where org_id is distinct from %s",
    ):
        assert connection.execute(statement.encode(), [org]).rowcount == 0


def fail(connection: Connection[Any], org: str | None, note: str, written: Written) -> None:
    with suppress(psycopg.errors.DivisionByZero), connection.transaction():
        connection.execute("select set_config('pgworker.org_id', 'bolt', false), 1 / 0")


def scope_for_a_moment(connection: Connection[Any], org: str | None, note: str, written: Written) -> None:
    """A SET inside a savepoint that is rolled back is undone with it, LOCAL or not."""
    with connection.transaction(force_rollback=True):
        connection.execute("set pgworker.org_id = 'dune'")
        assert ask(connection, SEEN) == ["dune"]


STEPS = (look_prepared, insert, insert, insert_and_take_back, forge, rob, fail, scope_for_a_moment)


@pytest.mark.timeout(1800)
def test_nothing_leaks_between_transactions_of_several_orgs_mixed_on_two_connections(tenants: Tenants) -> None:
    seed = int(os.environ.get("PGWORKER_TENANCY_SEED") or random.randrange(2**32))
    print(f"PGWORKER_TENANCY_SEED={seed}")  # noqa: T201  pytest shows it when the test fails
    mixture = Mixture(tenants, random.Random(seed))
    mixture.run(TRANSACTIONS)
    found = Counter(tenants.owner.execute("select org_id, note from shop.notes").fetchall())
    assert found == mixture.committed, "and what each has written is there"
    if TRANSACTIONS >= 1000:
        kinds = {step.__name__ for step in STEPS} | set(MISCHIEF) | set(ENDS)
        assert kinds - set(mixture.done) == set(), "there was some of everything"


class Forgetful(Slot):
    """One that doesn't reset."""

    @contextmanager
    def run(self, job: ClaimedJob) -> Iterator[Connection[Any]]:
        with self.transactions.open(Standing(job)) as connection:
            yield connection


def test_the_mixture_finds_a_connection_that_is_not_reset(tenants: Tenants) -> None:
    with pytest.raises((AssertionError, psycopg.Error)):
        Mixture(tenants, random.Random(1), Forgetful).run(200)


@pytest.mark.parametrize(
    "hole",
    [
        "drop policy pgworker_org on shop.notes; create policy everything on shop.notes using (true)",
        "alter table shop.notes disable row level security",
    ],
)
def test_the_mixture_finds_a_table_that_is_not_protected(tenants: Tenants, hole: str) -> None:
    tenants.owner.execute(hole.encode())
    with pytest.raises(AssertionError):
        Mixture(tenants, random.Random(1)).run(200)
