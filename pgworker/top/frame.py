"""What is on the screen: a function of one snapshot and of the size of the terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timezone
from textwrap import wrap
from uuid import UUID

from rich.console import Group
from rich.text import Text

from pgworker.inspection.failures import Failure
from pgworker.inspection.queues import Count, QueueCounts
from pgworker.inspection.workers import WorkerRow
from pgworker.model.display import printable, size
from pgworker.model.durations import duration
from pgworker.top.look import FAILURES_WITHIN, MAX_FAILURES, Snapshot
from pgworker.top.table import Cell, Column, cut, lay_out
from pgworker.top.view import View

KEYS = "q quit  p pause"

_WIDE = 140  # from this width on ids are whole
_SHORT_ID = 8  # characters of one that is not: the last ones, as the first are the time
_NOTICE_LINES = 3
_EVENTS = 10  # failures and dead letters that a page without an end shows
_BAD, _ODD, _GOOD, _QUIET = "red", "yellow", "green", "dim"
_NOTHING = Count(0)
_STATES = {"busy": _GOOD, "starting": _ODD, "draining": _ODD, "paused": _ODD}

_WORKERS = (
    Column("HOST", least=6, gives_way=3),
    Column("WORKER", right=True),
    Column("PID", right=True, gives_way=4),
    Column("STATE"),
    Column("JOB", gives_way=5),
    Column("TASK", least=12),
    Column("FOR", right=True),
    Column("MEMORY", right=True, gives_way=2),
    Column("CPU", right=True, gives_way=1),
    Column("JOBS/S", right=True),
)
_QUEUES = (
    Column("QUEUE", least=8),
    Column("WAITING", right=True),
    Column("OLDEST", right=True),
    Column("SCHEDULED", right=True, gives_way=2),
    Column("RUNNING", right=True),
    Column("FAILED", right=True),
    Column("IN/S", right=True, gives_way=1),
    Column("UNSERVED", right=True),
    Column(""),
)
_FAILURES = (
    Column("AGO", right=True),
    Column("FAILED TASK", least=12),
    Column("OUTCOME", gives_way=1),
    Column("JOB", gives_way=2),
    Column("ERROR", least=10, keeps_end=False),
)
_GIVEN_UP = (
    Column("AGO", right=True),
    Column("DEAD LETTER", least=12),
    Column("JOB", gives_way=1),
    Column("WHY", least=10, keeps_end=False),
)


@dataclass(frozen=True, slots=True)
class _Section:
    """A table, or one line in its place. `in_short`: the rows by how much they matter, should they not fit."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    in_short: Sequence[Sequence[Cell]]
    instead: str = ""
    share: int = 1
    """Rows that it gets where others get one."""

    beyond: Count = _NOTHING
    """How many more there are than these rows."""

    def lines(self, width: int, rows: int | None) -> list[Text]:
        """With at most so many lines below the heading; what is left out is counted in the last one."""
        if not self.rows:
            return [_text(self.instead, _QUIET, width)] if self.instead else []
        if rows is None or self.wants <= rows:
            more = [self._more(len(self.rows), width)] if self.wants > len(self.rows) else []
            return [*lay_out(self.columns, self.rows, width), *more]
        shown = max(0, rows - 1)
        return [*lay_out(self.columns, self.in_short[:shown], width), self._more(shown, width)][: rows + 1]

    @property
    def wants(self) -> int:
        """Lines below the heading."""
        return len(self.rows) + bool(self.beyond.number or self.beyond.is_more)

    def _more(self, shown: int, width: int) -> Text:
        left = Count(len(self.rows) - shown + self.beyond.number, self.beyond.is_more)
        return _text(f"… {left} more", _QUIET, width)


def frame(view: View, width: int, height: int | None, *, notice: str = "", is_paused: bool = False) -> Group:
    """The whole screen in at most `height` lines of `width` cells; no height: as many as it takes, without the keys.

    `notice`: what there is to say about the data, such as that it is old.
    """
    told = wrap(printable(notice), width, max_lines=_NOTICE_LINES, placeholder=" …") or [""]
    head = [*_head(view, width, is_paused), *(_text(line, _BAD, width) for line in told)]
    wide = width >= _WIDE
    events = _EVENTS if height is None else len(view.snapshot.failures) + len(view.snapshot.given_up)
    sections = [
        _workers(view, wide),
        _queues(view.snapshot),
        _failures(view.snapshot, view.snapshot.failures[:events], wide),
        _given_up(view.snapshot, view.snapshot.given_up[:events], wide),
    ]
    if height is None:
        return Group(*head, *_joined([section.lines(width, None) for section in sections]))
    foot = [_text(KEYS, _QUIET, width)]
    body = _joined(_fitted(sections, width, height - len(head) - len(foot)))
    body = body[: max(0, height - len(head) - len(foot))]
    filling = [Text(end="")] * (height - len(head) - len(foot) - len(body))
    return Group(*[_ended(line) for line in [*head, *body, *filling, *foot][:height]])


def _head(view: View, width: int, is_paused: bool) -> Iterator[Text]:
    seen = view.snapshot
    now = f"{'PAUSED  ' if is_paused else ''}{seen.at.astimezone(timezone.utc):%H:%M:%S} UTC"
    place = cut(f"pgworker top  {printable(view.place)}  schema {seen.schema}", max(0, width - len(now) - 2))
    first = Text(place.ljust(width - len(now)) + now, style="bold", no_wrap=True, overflow="crop")
    first.truncate(width)
    yield first
    yield from _totals(view, width)


def _totals(view: View, width: int) -> Iterator[Text]:
    seen = view.snapshot
    runs = sum(len(worker.runs) for worker in seen.workers)
    busy = sum(bool(worker.runs) for worker in seen.workers)
    silent = sum(worker.is_silent for worker in seen.workers)
    hosts = len({worker.host for worker in seen.workers})
    oldest = max((queue.oldest for queue in seen.queues if queue.oldest is not None), default=None)
    waiting, scheduled, failed = (
        Count.total(getattr(queue, name) for queue in seen.queues) for name in ("waiting", "scheduled", "failed")
    )
    unserved = Count.total(queue.unserved_jobs for queue in seen.queues)
    ended = view.ended_per_second
    yield _words(
        width,
        (f"ended {'-' if ended is None else _rate(ended)}/s", ""),
        (f"failed {seen.failed} in {duration(FAILURES_WITHIN)}", _BAD if seen.failed.number else ""),
        (f"running {runs} in {busy} of {len(seen.workers)} workers on {hosts} host{'s' if hosts != 1 else ''}", ""),
        *([(f"{silent} silent", _BAD)] if silent else []),
    )
    yield _words(
        width,
        (f"waiting {waiting}{'' if oldest is None else f', oldest {duration(oldest)}'}", ""),
        (f"to run again {failed}", ""),
        *([(f"unserved {unserved}", _ODD)] if unserved.number else []),
        (f"dead letters {seen.dead}", _BAD if seen.dead.number else ""),
        (f"scheduled {scheduled}", ""),
    )


def _workers(view: View, wide: bool) -> _Section:
    workers = view.snapshot.workers
    in_short = sorted(workers, key=lambda worker: (not worker.is_silent, -_longest(worker)))
    instead = "no workers: `pgworker start` runs some"
    rows, ordered = ([_worker_row(worker, view, wide) for worker in some] for some in (workers, in_short))
    return _Section(_WORKERS, rows, ordered, instead, share=2)


def _longest(worker: WorkerRow) -> float:
    """Seconds that its longest job has run; below 0: none runs."""
    return worker.runs[0].seconds if worker.runs else -1.0


def _worker_row(worker: WorkerRow, view: View, wide: bool) -> list[Cell]:
    rate = view.rates.get(worker.worker_id)
    first = worker.runs[0] if worker.runs else None
    others = f" +{len(worker.runs) - 1}" if len(worker.runs) > 1 else ""
    state = Cell(f"silent {duration(worker.beat_age)}", _BAD) if worker.is_silent else _state(worker.state)
    cpu = rate.cpu if rate is not None else None
    return [
        Cell(worker.host),
        Cell(str(worker.number)),
        Cell(str(worker.pid)),
        state,
        Cell(_id(first.job_id, wide) if first else ""),
        Cell(f"{first.task}{others}" if first else ""),
        Cell(duration(first.seconds) if first else ""),
        Cell("-" if worker.uss_bytes is None else size(worker.uss_bytes)),
        Cell("-" if cpu is None else f"{cpu:.0%}"),
        Cell("-" if rate is None else _rate(rate.ended)),
    ]


def _state(state: str | None) -> Cell:
    return Cell(state or "-", _STATES.get(state or "", ""))


def _queues(seen: Snapshot) -> _Section:
    known = {queue.queue for queue in seen.queues}
    rows = [_queue_row(queue, seen.arrivals.get(queue.queue, 0.0)) for queue in seen.queues]
    in_short = [
        _queue_row(queue, seen.arrivals.get(queue.queue, 0.0))
        for queue in sorted(seen.queues, key=lambda queue: (-(queue.oldest or 0.0), -queue.waiting.number))
    ]
    emptied = [_drained_row(name, rate) for name, rate in sorted(seen.arrivals.items()) if name not in known]
    return _Section(_QUEUES, rows + emptied, in_short + emptied, "no jobs wait or run")


def _queue_row(queue: QueueCounts, arrivals: float) -> list[Cell]:
    unserved = queue.unserved_jobs
    return [
        Cell(queue.queue),
        Cell(str(queue.waiting)),
        Cell("-" if queue.oldest is None else duration(queue.oldest)),
        Cell(str(queue.scheduled)),
        Cell(str(queue.running)),
        Cell(str(queue.failed), _ODD if queue.failed.number else ""),
        Cell(_rate(arrivals)),
        Cell(str(unserved), _ODD if unserved.number else ""),
        Cell("paused", _ODD) if queue.paused else Cell(""),
    ]


def _drained_row(name: str, arrivals: float) -> list[Cell]:
    """A queue in which jobs came in, and that holds none of them any more."""
    return [Cell(name), Cell("0"), Cell("-"), *[Cell("0")] * 3, Cell(_rate(arrivals)), Cell("0"), Cell("")]


def _failures(seen: Snapshot, failures: Sequence[Failure], wide: bool) -> _Section:
    rows = [
        [
            Cell(_ago(seen, failure)),
            Cell(failure.task or "-"),
            Cell(failure.outcome, _BAD),
            Cell(_id(failure.job_id, wide)),
            Cell(_one_line(failure.why)),
        ]
        for failure in failures
    ]
    read = len(seen.failures)
    return _Section(_FAILURES, rows, rows, beyond=Count(read - len(rows), read >= MAX_FAILURES))


def _given_up(seen: Snapshot, given_up: Sequence[Failure], wide: bool) -> _Section:
    rows = [
        [
            Cell(_ago(seen, failure)),
            Cell(failure.task),
            Cell(_id(failure.job_id, wide)),
            Cell(_one_line(failure.why)),
        ]
        for failure in given_up
    ]
    beyond = Count(max(0, seen.dead.number - len(rows)), seen.dead.is_more)
    return _Section(_GIVEN_UP, rows, rows, beyond=beyond)


def _fitted(sections: Sequence[_Section], width: int, room: int) -> list[list[Text]]:
    """Each with as many rows as fairly fit: one after the other gets its share, until there are no more lines."""
    shown = [section for section in sections if section.rows or section.instead]
    while shown and sum(1 + min(1, len(section.rows)) for section in shown) + len(shown) - 1 > room:
        shown.pop()
    room -= sum(1 for _ in shown) + len(shown) - 1
    rows = [0] * len(shown)
    while room > 0:
        hungry = [place for place, section in enumerate(shown) if rows[place] < section.wants]
        if not hungry:
            break
        for place in hungry:
            more = min(shown[place].share, shown[place].wants - rows[place], room)
            rows[place] += more
            room -= more
    return [section.lines(width, some) for section, some in zip(shown, rows, strict=True)]


def _joined(tables: Sequence[Sequence[Text]]) -> list[Text]:
    """With an empty line between two of them."""
    lines: list[Text] = []
    for table in tables:
        if table and lines:
            lines.append(Text())
        lines.extend(table)
    return [_ended(line) for line in lines]


def _ended(line: Text) -> Text:
    line = line.copy()
    line.end = "\n"
    return line


def _text(text: str, style: str, width: int) -> Text:
    return Text(cut(printable(text), width), style=style, no_wrap=True, overflow="crop")


def _words(width: int, *parts: tuple[str, str]) -> Text:
    """As many of these as there is room for."""
    line = Text(no_wrap=True, overflow="crop")
    for text, style in parts:
        gap = "  " if line else ""
        if line.cell_len + len(gap) + len(text) <= width:
            line.append(gap).append(text, style)
    return line


def _ago(seen: Snapshot, failure: Failure) -> str:
    seconds = max(0.0, (seen.at - failure.at).total_seconds())
    return f"{seconds:.0f}s" if seconds < 10 else duration(seconds)


def _one_line(text: str) -> str:
    """With the blanks and line ends of a message as single blanks."""
    return " ".join(text.split())


def _id(job_id: UUID, wide: bool) -> str:
    return str(job_id) if wide else str(job_id)[-_SHORT_ID:]


def _rate(per_second: float) -> str:
    """One digit after the point for what is slow."""
    return f"{per_second:.1f}" if 0 < per_second < 10 else f"{per_second:.0f}"
