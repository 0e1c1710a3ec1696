"""Transactions that end before their time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from psycopg import Connection
from psycopg.pq import TransactionStatus

from pgworker.lifecycle.transaction import execute_alone, read_committed

Connect = Callable[[], Connection[Any]]


def interrupt(connection: Connection[Any]) -> None:
    with read_committed(connection):
        connection.pgconn.send_query(
            b"select pg_sleep(600)"
        )  # so the driver leaves it when it is hit between two waits
        raise KeyboardInterrupt


def test_ctrl_c_in_the_middle_of_an_answer_stays_ctrl_c_and_the_connection_is_given_up(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(KeyboardInterrupt):
        interrupt(connection)
    assert connection.closed


class Interrupted(Mapping[str, Any]):
    """Parameters that somebody waits for in vain."""

    def __getitem__(self, key: str) -> Any:
        raise KeyboardInterrupt

    def __iter__(self) -> Iterator[str]:
        raise KeyboardInterrupt

    def __len__(self) -> int:
        return 1


def test_ctrl_c_between_two_statements_of_one_trip_leaves_the_connection_as_it_was(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(KeyboardInterrupt):
        execute_alone(connection, "select %(name)s", Interrupted())
    assert connection.info.transaction_status is TransactionStatus.IDLE
    assert execute_alone(connection, "select 1", {}) == [(1,)]
