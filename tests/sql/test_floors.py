"""How far a claim floor may rise where nothing of ours waits."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pgworker.lifecycle.claim import Lanes, find_below_floor, find_dry_lanes, floor_of
from pgworker.lifecycle.floors import LaneFloors
from pgworker.lifecycle.transaction import one_trip
from pgworker.linux.board import Board
from pgworker.linux.floors import FloorsSeen
from tests.sql.actors import Connect, Worker, ask, enqueue, now

LANES = Lanes.of(["default", "other"])
LANE, OTHER_LANE = 4, 14
"""The places of priority 5 in either queue."""

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MARGIN = 5.0


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


def dry(db: Connection[Any], floors: FloorsSeen | None = None, margin: float = MARGIN) -> dict[int, tuple[int, int]]:
    floors = floors or floors_at(EPOCH)
    return dict(find_dry_lanes(db.cursor(binary=True), tasks=["t", "u"], lanes=LANES, floors=floors, margin=margin))


def floors_at(moment: datetime) -> FloorsSeen:
    return FloorsSeen([(moment - EPOCH) // timedelta(microseconds=1)] * len(LANES), [0] * len(LANES))


def make_due_since(db: Connection[Any], seconds: float) -> None:
    db.execute("update pgworker.job_queue set run_at = clock_timestamp() - %s * interval '1 second'", [seconds])


def test_a_lane_is_dry_if_what_waits_in_it_is_nobodys_and_not_if_a_job_of_ours_does(db: Connection[Any]) -> None:
    enqueue(db, 3, task="unserved")
    make_due_since(db, 60)
    assert dry(db).keys() == set(range(len(LANES)))
    enqueue(db, task="u")
    make_due_since(db, 60)
    assert dry(db).keys() == set(range(len(LANES))) - {LANE}


def test_a_lane_whose_jobs_are_all_in_the_future_or_within_the_margin_is_dry(db: Connection[Any]) -> None:
    enqueue(db, run_at=now(db) + timedelta(hours=1))
    enqueue(db)
    assert LANE in dry(db)
    assert LANE not in dry(db, margin=0)


def test_the_lanes_of_a_paused_queue_are_never_dry(db: Connection[Any]) -> None:
    db.execute("insert into pgworker.queues (name, paused) values ('default', true), ('other', false)")
    assert dry(db).keys() == set(range(10, 20))
    db.execute("update pgworker.queues set paused = not paused")
    assert dry(db).keys() == set(range(10))


def test_the_place_is_the_margin_behind_the_clock_of_the_server(db: Connection[Any]) -> None:
    before = now(db)
    [place] = set(dry(db, margin=7.5).values())
    after = now(db)
    at = EPOCH + timedelta(microseconds=place[0], seconds=7.5)
    assert before <= at <= after
    assert place[1] == 0


def test_a_floor_does_not_sink_to_that_place(db: Connection[Any]) -> None:
    assert dry(db, floors_at(now(db))) == {}
    assert dry(db, floors_at(now(db) - timedelta(seconds=MARGIN + 1))).keys() == set(range(len(LANES)))


def test_a_job_below_the_floor_is_for_the_look_behind_and_leaves_its_lane_dry(db: Connection[Any]) -> None:
    enqueue(db, queue="other")
    make_due_since(db, 60)
    assert dry(db, floors_at(now(db) - timedelta(seconds=61))).keys() == set(range(len(LANES))) - {OTHER_LANE}
    assert dry(db, floors_at(now(db) - timedelta(seconds=59))).keys() == set(range(len(LANES)))


def test_a_claim_from_floors_that_have_risen_finds_what_becomes_due_later(db: Connection[Any]) -> None:
    enqueue(db, task="unserved")
    make_due_since(db, 60)
    [later] = enqueue(db)
    places = dry(db)
    floors = FloorsSeen(*map(list, zip(*(places[lane] for lane in range(len(LANES))), strict=True)))
    assert Worker(db).claim(queues=["default", "other"], floors=floors).ids == [later]
    assert ask(db, "select task from pgworker.job_queue") == ["unserved"]


@pytest.mark.parametrize(("waited", "behind"), [(0.0, 250_000), (0.2, 50_000), (0.25, 0), (9.0, 0)])
def test_a_claim_of_what_is_just_due_leaves_room_for_what_commits_a_moment_later(
    db: Connection[Any], waited: float, behind: int
) -> None:
    enqueue(db, 2)
    held = Worker(db).claim()
    last = held.rows[-1]._replace(waited=waited)
    floors = LaneFloors(Board(1, len(LANES)).floors, LANES)
    floors.rise(floors.read(), [held.rows[0], last])
    at, part = floors.read()[0][LANE], floors.read()[1][LANE]
    due, place = floor_of(last.run_at, last.job_id)
    assert at == due - behind
    assert part == (0 if behind else place)


def test_a_look_that_takes_too_long_ends_and_its_connection_goes_on(db: Connection[Any], connect: Connect) -> None:
    other = connect()
    with other.transaction():
        other.execute("lock table pgworker.job_queue")
        with pytest.raises(psycopg.errors.QueryCanceled):
            look_behind(db, limit_ms=100)
    assert look_behind(db, limit_ms=10_000) == []
    assert ask(db, "show statement_timeout") == ["0"]


def look_behind(db: Connection[Any], limit_ms: int) -> list[tuple[int, tuple[int, int]]]:
    floors = floors_at(EPOCH)
    with one_trip(db, limit_ms=limit_ms):
        return find_below_floor(db.cursor(binary=True), tasks=["t"], lanes=LANES, floors=floors, reach=None)
