"""The shop's own tests."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from webshop import app, charge, mail, remind

from pgworker import InvalidJob
from pgworker.testing import assert_enqueued, drain

NEXT_WEEK = datetime.now(timezone.utc) + timedelta(days=8)


def mails(owner: psycopg.Connection[Any]) -> list[tuple[str, int, str]]:
    return owner.execute("select org_id, number, text from mails order by org_id, number, text").fetchall()


def test_a_charge_is_paid_and_mailed_at_once_and_asked_about_next_week(
    owner: psycopg.Connection[Any],
) -> None:
    with app.org("acme"):
        charge.enqueue(1)
    [job] = drain(app, queues=["billing"], raising=True)
    assert job.outcome == "succeeded"
    assert_enqueued(mail, {"text": "receipt", "number": 1}, org_id="acme", count=1)
    assert_enqueued(remind, {"number": 1}, org_id="acme", count=1)
    assert [job.job.task for job in drain(app)] == ["webshop.mail"]
    assert [job.job.task for job in drain(app, until=NEXT_WEEK)] == ["webshop.remind"]
    assert mails(owner) == [("acme", 1, "how is it, ['acme']?"), ("acme", 1, "receipt")]


def test_a_declined_card_is_not_tried_again_and_apologised_for(owner: psycopg.Connection[Any]) -> None:
    with app.org("acme"):
        charge.enqueue(1, card="stolen")
    assert [(job.job.task, job.outcome) for job in drain(app)] == [
        ("webshop.charge", "failed"),
        ("webshop.charge:dead_letter", "succeeded"),
        ("webshop.mail", "succeeded"),
    ]
    assert mails(owner) == [("acme", 1, "sorry: webshop.Declined: the card stolen is declined")]


def test_a_bank_that_is_closed_is_asked_again(owner: psycopg.Connection[Any]) -> None:
    answers: Iterator[Any] = iter([ConnectionError("closed"), ConnectionError("still"), "paid at last"])

    def pay(*_: str) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with app.org("acme"):
        charge.enqueue(1)
    fake = SimpleNamespace(bank=SimpleNamespace(pay=pay))
    jobs = drain(app, until=datetime.now(timezone.utc) + timedelta(minutes=5), state=fake)
    assert [job.outcome for job in jobs] == ["failed", "failed", "succeeded", "succeeded"]
    assert owner.execute("select payment from orders").fetchall() == [("paid at last",)]


def test_an_org_sees_its_own_orders_only(owner: psycopg.Connection[Any]) -> None:
    app.enqueue_many([charge.options(org_id=org).job(number) for number, org in enumerate(("acme", "bolt", "acme"))])
    drain(app, until=NEXT_WEEK, raising=True)
    asked = owner.execute("select distinct org_id, text from mails where text like 'how%' order by org_id").fetchall()
    assert asked == [("acme", "how is it, ['acme']?"), ("bolt", "how is it, ['bolt']?")]


def test_a_job_without_an_org_is_refused() -> None:
    with pytest.raises(InvalidJob, match="needs an org"):
        charge.enqueue(1)
    assert_enqueued(charge, count=0)
