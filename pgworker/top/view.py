"""Snapshots one after the other, with the rates from one to the next; and all of it as JSON."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pgworker.errors import PgworkerError
from pgworker.top.look import Database, Snapshot
from pgworker.top.rates import Rates, WorkerRate


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot of the database at `place`, and the rates that it and those before it make."""

    place: str
    snapshot: Snapshot
    rates: Mapping[UUID, WorkerRate]

    @property
    def ended_per_second(self) -> float | None:
        """Of all workers that have a rate; None: none has."""
        return sum(rate.ended for rate in self.rates.values()) if self.rates else None


class Source:
    """One view after the other, with rates from one to the next."""

    def __init__(self, dsn: str, place: str) -> None:
        self._database = Database(dsn)
        self._place = place
        self._rates = Rates()

    def look(self) -> View:
        """The database now. Raises PgworkerError; the next look connects again."""
        snapshot = self._database.look()
        return View(self._place, snapshot, self._rates.update(snapshot.at, snapshot.workers))

    def close(self) -> None:
        """Let go of the connection."""
        self._database.close()


def objects(source: Source, interval: float, pause: Callable[[float], None] = time.sleep) -> Iterator[dict[str, Any]]:
    """A JSON object per interval, for ever: a view, or an `error` where there was none to be had.

    Raises PgworkerError if that is so at the beginning.
    """
    yield as_json(source.look())
    while True:
        pause(interval)
        try:
            yield as_json(source.look())
        except PgworkerError as error:
            yield {"error": str(error)}


def as_json(view: View) -> dict[str, Any]:
    """All that the screen shows, and what it leaves out for want of room."""
    seen = view.snapshot
    return {
        "at": seen.at,
        "database": view.place,
        "schema": seen.schema,
        "ended_per_second": view.ended_per_second,
        "failed_in_60_s": dataclasses.asdict(seen.failed),
        "dead_letters": dataclasses.asdict(seen.dead),
        "workers": [
            {
                **dataclasses.asdict(worker),
                "is_silent": worker.is_silent,
                "ended_per_second": rate.ended if (rate := view.rates.get(worker.worker_id)) else None,
                "cpu": rate.cpu if rate else None,
            }
            for worker in seen.workers
        ],
        "queues": [
            {**dataclasses.asdict(queue), "enqueued_per_second": seen.arrivals.get(queue.queue, 0.0)}
            for queue in seen.queues
        ],
        "failures": [{**dataclasses.asdict(failure), "why": failure.why} for failure in seen.failures],
        "given_up": [{**dataclasses.asdict(failure), "why": failure.why} for failure in seen.given_up],
    }
