"""Which jobs a filter means, and what it refuses to mean."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from pgworker.errors import InvalidFilter
from pgworker.model.selection import JobFilter


@pytest.mark.parametrize("given", [{}, {"waiting": False}, {"older_than": 0}, {"older_than": timedelta(0)}])
def test_a_filter_that_would_mean_every_job_is_refused_with_what_to_name(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidFilter, match="every job there is: name a queue, a task, an organisation, or how old"):
        JobFilter(**given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"queue": "my queue"}, "'my queue' can't name a queue: use 1 to 128"),
        ({"task": ""}, "can't name a task: use 1 to 256"),
        ({"task": 5}, "a task name must be a string, not int"),
        ({"org_id": ""}, "org_id must be a string of 1 to 256 characters"),
        ({"org_id": "x" * 257}, "org_id must be a string of 1 to 256 characters"),
        ({"org_id": "a\0b"}, "org_id must not have the character U+0000"),
        ({"org_id": "\ud800"}, "org_id must not have the character U+0000 or lone surrogates"),
        ({"org_id": 5}, "org_id must be a string of 1 to 256 characters"),
        ({"older_than": -1}, "older_than must be between 0 seconds and 100 years, not -1"),
        ({"older_than": "1h"}, "older_than must be a number of seconds or a timedelta, not str"),
        ({"queue": "mail", "waiting": False, "running": False}, "jobs that neither wait nor run have ended"),
    ],
)
def test_what_no_job_could_have_is_refused_in_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidFilter) as refused:
        JobFilter(**given)
    assert sentence in str(refused.value)


def test_an_age_may_be_a_timedelta_and_is_seconds_from_then_on() -> None:
    assert JobFilter(older_than=timedelta(hours=1)).parameters()["older_than"] == 3600.0


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (JobFilter(queue="mail"), "of queue mail"),
        (JobFilter(queue="mail", task="t", org_id="acme"), "of queue mail and task t and organisation acme"),
        (JobFilter(task="t", older_than=90), "of task t, enqueued over 90 s ago"),
        (JobFilter(older_than=90), "enqueued over 90 s ago"),
    ],
)
def test_a_filter_reads_as_a_part_of_a_sentence(chosen: JobFilter, told: str) -> None:
    assert str(chosen) == told
