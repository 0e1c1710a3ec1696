"""The commands as logins of the roles run them, none of them a superuser."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome
from tests.acceptance.test_cli import output, refusal, run
from tests.sql.actors import Worker, ask, enqueue

Login = Callable[..., str]


def test_an_operator_sees_and_mends_everything_as_an_admin(roles_dsn: str, login: Login) -> None:
    theirs = login("pgworker_admin")
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        worker = Worker(connection)
        dead = [str(job) for job in enqueue(connection, 2)]
        worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.BURY))
        running = str(enqueue(connection)[0])
        held = worker.claim()
        job = output(run("enqueue", "shop.greet", '{"name": "Ada"}', "--org", "acme", dsn=theirs)).strip()
        for words in (["jobs", "list"], ["jobs", "show", job], ["jobs", "show", running], ["status"]):
            assert output(run(*words, dsn=theirs))
        assert dead[0] in output(run("dead-letters", "list", dsn=theirs))
        output(run("dead-letters", "requeue", dead[0], dsn=theirs))
        output(run("dead-letters", "discard", dead[1], dsn=theirs))
        output(run("jobs", "cancel", job, dsn=theirs))
        output(run("jobs", "cancel", running, dsn=theirs))
        assert ask(connection, "select cancelled[1]::text from pgworker.job_leases") == [running]
        assert worker.settle(held.settlement())
        found = ask(connection, "select pgworker.job_status(id) from unnest(%s::uuid[]) as id", [*dead, job])
    assert found == ["pending", "cancelled", "cancelled"]
    for words in (
        ["jobs", "cancel", "-q", "default", "--older-than", "1h", "--yes"],
        ["queues", "pause", "default"],
        ["queues", "list"],
        ["queues", "resume", "default"],
        ["queues", "purge", "default", "--yes"],
        ["prune", "--dry-run"],
        ["prune"],
    ):
        finished = run(*words, dsn=theirs)
        assert finished.returncode == 0, finished.stderr
    assert output(run("migrate", dsn=theirs)).startswith("nothing to do")
    assert "permission denied to create role" not in refusal(run("migrate", "--roles", dsn=theirs), 78)


def test_an_enqueuer_enqueues_and_is_told_what_it_lacks_for_more(login: Login) -> None:
    theirs = login("pgworker_enqueuer")
    assert len(output(run("enqueue", "shop.greet", "{}", dsn=theirs)).strip()) == 36
    for words in (["jobs", "list"], ["status"], ["dead-letters", "list"]):
        told = refusal(run(*words, dsn=theirs), 78)
        assert "permission denied" in told
        assert "the rights of pgworker_enqueuer, pgworker_worker or pgworker_admin" in told


def test_migrate_makes_the_roles_and_says_what_to_grant(dsn: str) -> None:
    said = output(run("migrate", "--roles", dsn=dsn))
    assert said.startswith("nothing to do")
    for role in ("pgworker_enqueuer", "pgworker_worker", "pgworker_admin"):
        assert f"grant {role} to" in said
    assert output(run("migrate", "--roles", dsn=dsn)) == said


def test_what_to_mind_is_said_on_the_side(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("grant create on schema public to public")
    finished = run("migrate", "--roles", dsn=dsn)
    assert finished.returncode == 0
    assert finished.stderr.startswith("pgworker: mind that anybody may create functions in the schema public")


def test_the_script_for_an_administrator_makes_the_roles_too(dsn: str) -> None:
    plain, whole = output(run("migrate", "--print")), output(run("migrate", "--print", "--roles"))
    assert whole.startswith(plain)
    assert "create role" not in plain
    assert "create role" in whole


@pytest.mark.parametrize("role", ["pgworker_enqueuer", "pgworker_worker"])
def test_start_as_a_login_without_the_rights_ends_with_a_sentence(role: str, login: Login) -> None:
    """A worker's rights suffice for the check at the start; who has none at all is told before anything is forked."""
    nobody = login()
    told = refusal(run("start", "--app", "tests.process.jobs:app", "--metrics-listen", "off", dsn=nobody), 78)
    assert "permission denied for schema pgworker" in told
    assert str(conninfo_to_dict(make_conninfo(nobody))["user"]) in told
