"""A process dies at every boundary of every verb, and nothing is lost, done twice or left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pgworker.db.migrate import migrate
from pgworker.db.scratch import name_of, scratch_database
from tests.chaos.boundaries import POINTS, UNREACHED
from tests.chaos.failpoints import Failpoint, parse
from tests.chaos.sweep import Result, run_round
from tests.chaos.trials.trial import Bench, Figure, Trial

_AT_ONCE = 8
"""Failpoints of one round; each happens once."""
_ALONE = frozenset(
    {"boot_check", "fork_worker", "fork_monitor", "reap", "bury_worker", "bury_monitor", "report_death"}
    | {"acknowledge_death", "see_orphans_end", "find_own_executions", "serve"}
    | {"restore_dead_letter_hooks"}
)
"""Where the pool ends, or something else must happen first: nothing else would be reached in that round."""
_NTH = {"connect": 6, "check_schema": 6}
"""The first ones are those of a child that only tries whether a pool can be started."""
_THREADS = 4
"""Rounds at a time: each waits for most of its time."""
_TRIES = 4
"""Rounds, beyond the first, in which a failpoint is alone until it happens."""
_ORDER = ("kill", "stop", "cut", "raise", "confuse", "delay", "exit")

_NEEDS = {
    "find_own_executions": "settle.commit_sent=cut@n2,in=worker",
    "restore_dead_letter_hooks": "settle.commit_sent=cut@n1,in=worker",
    "see_orphans_end": "reap.before=kill@n1,in=master",
    "bury_monitor": "renew_leases.after=kill@n1,in=monitor",
}
"""What must happen first, for a statement or function to be reached at all."""


@dataclass(slots=True)
class _Sweep:
    bench: Bench
    template: str
    rounds: int = 0
    fired: set[tuple[str, str]] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)

    def run(self, group: Sequence[Failpoint]) -> None:
        """Have these happen; those that don't are tried again alone, unless this is a short try."""
        self._round(group)
        if self.bench.size <= len(group):
            return
        for failpoint in group:
            for _ in range(_TRIES):
                if _key(failpoint) not in self.fired:
                    self._round([failpoint])

    def _round(self, group: Sequence[Failpoint]) -> None:
        self.rounds += 1
        number = self.rounds
        needed = [_needed(failpoint) for failpoint in group]
        armed = [*group, *(failpoint for failpoint in needed if failpoint is not None)]
        slots = 1 if number % 2 else 3
        directory = self.bench.directory / f"round {number}"
        result = run_round(self.bench.server.dsn, self.template, directory, armed, slots)
        self.fired |= {(fault["point"], fault["failpoint"].split("=")[1].split("@")[0]) for fault in result.fired}
        self.violations += [f"{_words(armed)}, slots {slots}: {problem}" for problem in result.problems]
        self._tell(number, result)

    def _tell(self, number: int, result: Result) -> None:
        if result.problems:
            self.bench.tell(f"round {number} {_words(result.armed)}: {'; '.join(result.problems)}")
        elif number % 10 == 0:
            self.bench.tell(f"round {number}: {len(self.fired)} failpoints so far, {len(self.violations)} violations")


def run(bench: Bench) -> Sequence[Figure]:
    """`bench.size` failpoints: first all points with kill, in an order of the dice, then with the other actions."""
    chosen = list(_failpoints(bench))[: bench.size]
    groups = [chosen] if bench.size <= _AT_ONCE else _groups(chosen)
    with scratch_database(bench.server.dsn, "template0") as template:
        migrate(template)
        sweep = _Sweep(bench, name_of(template))
        with ThreadPoolExecutor(1 if len(groups) == 1 else _THREADS) as threads:
            list(threads.map(sweep.run, groups))
    missed = sorted({failpoint.point for failpoint in chosen if _key(failpoint) not in sweep.fired})
    for point in missed:
        bench.tell(f"never reached: {point}")
    is_brief = len(groups) == 1
    return [
        Figure("failpoints that happened", f"{len(chosen)}", f"{len(sweep.fired & {*map(_key, chosen)})}", None),
        Figure("points never reached", "-" if is_brief else "0", f"{len(missed)}", None if is_brief else not missed),
        Figure("rounds", "-", f"{sweep.rounds}", None),
        Figure("violations", "0", "; ".join(sweep.violations) or "0", not sweep.violations),
    ]


def _groups(chosen: Sequence[Failpoint]) -> list[list[Failpoint]]:
    alone = [[failpoint] for failpoint in chosen if _name(failpoint.point) in _ALONE]
    others = [failpoint for failpoint in chosen if _name(failpoint.point) not in _ALONE]
    return [*(others[at : at + _AT_ONCE] for at in range(0, len(others), _AT_ONCE)), *alone]


def _name(point: str) -> str:
    """The statement, verb or function that it is a point of."""
    return point.rpartition(".")[0]


def _failpoints(bench: Bench) -> Iterator[Failpoint]:
    points = [point for point in POINTS.values() if _name(point.name) not in UNREACHED]
    for action in _ORDER:
        applicable = [point.name for point in points if action in point.actions]
        bench.dice.shuffle(applicable)
        yield from (Failpoint(name, action, nth=_NTH.get(_name(name), 1)) for name in applicable)


def _needed(failpoint: Failpoint) -> Failpoint | None:
    spec = _NEEDS.get(_name(failpoint.point))
    return parse(spec)[0] if spec else None


def _key(failpoint: Failpoint) -> tuple[str, str]:
    return failpoint.point, str(failpoint).split("=")[1].split("@")[0]


def _words(armed: Sequence[Failpoint]) -> str:
    return "; ".join(map(str, armed))


_ALL = sum(len(point.actions) for point in POINTS.values() if _name(point.name) not in UNREACHED)

TRIAL = Trial(
    name="every_boundary",
    promise="a process killed, stopped or cut off at any boundary loses nothing and does nothing twice",
    unit="failpoints",
    full=_ALL,
    short=4,
    run=run,
    server_options=(("max_connections", "300"),),
)
