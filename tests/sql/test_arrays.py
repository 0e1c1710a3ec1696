"""Literals of arrays, read back by the server."""

from __future__ import annotations

import pytest
from psycopg import Connection

from pgworker.db.arrays import number_array, text_array
from tests.sql.actors import Connect, ask

TEXTS = [
    [],
    [""],
    ["mail", "mail.eu-1:a_b"],
    ["null", "NULL", "{}", "{a,b}", "a,b", " a b "],
    ['"', '""', "\\", "\\\\", '\\"', "'", "a\nb\tc"],
    ["é", "\u20ac", "\U0001f600"],
]


@pytest.fixture
def db(connect: Connect) -> Connection[object]:
    return connect()


@pytest.mark.parametrize("texts", TEXTS)
def test_texts_arrive_as_they_are(db: Connection[object], texts: list[str]) -> None:
    assert ask(db, "select %s::text[]", text_array(texts)) == [texts]


@pytest.mark.parametrize("numbers", [[], [0], [None], [1, None, -1, 2**63 - 1, -(2**63)]])
def test_numbers_arrive_as_they_are(db: Connection[object], numbers: list[int | None]) -> None:
    assert ask(db, "select %s::bigint[]", number_array(numbers)) == [numbers]
