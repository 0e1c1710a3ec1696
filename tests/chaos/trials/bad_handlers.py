"""Handlers that do to their worker whatever a handler can: the pool goes on, and each is charged for itself alone.

Deaf ones end at their deadline and the grace after it, as one `timed_out` execution with a stack; those that die are
named with their cause; what they have started ends with them; a mess on a connection reaches nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tests.chaos.trials import ledgers
from tests.chaos.trials.apps.jobs import deaf, effect, effect_mess, leak, multiply, plain, poison
from tests.chaos.trials.figures import none_of, percentile, told
from tests.chaos.trials.ground import Ground, ground
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import Pool, eventually
from tests.sql.invariants import offences

TIMEOUT, GRACE, LAST = 0.5, 1.0, 0.5
"""Seconds: of a deaf job, from its deadline to SIGTERM, and from there to SIGKILL."""
SLACK = 1.0
CHILDREN = 20

BAD: dict[str, tuple[Callable[[], Any], str, str]] = {
    "deaf": (lambda: deaf.options(timeout=TIMEOUT).job(), "timed_out", "its time was up"),
    "multiply": (lambda: multiply.job(CHILDREN), "crashed", "SIGKILL"),
    "segfault": (lambda: poison.job("segfault"), "crashed", "SIGSEGV"),
    "exit": (lambda: poison.job("exit"), "crashed", "exit code 3"),
    "leak": (lambda: leak.job(), "failed", ""),
    "memory": (lambda: poison.job("memory"), "failed", ""),
}
"""How each ends, and words of the cause that is recorded."""


@dataclass(slots=True)
class Rounds:
    place: Ground
    pool: Pool
    wrong: list[str] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    charged: Counter[str] = field(default_factory=Counter)
    """Good jobs that were charged, by what was among them."""

    def play(self, how: str) -> None:
        """A bad one among good ones."""
        make, outcome, cause = BAD[how]
        good = [job for _ in range(10) for job in (plain.job(), effect.job(), effect_mess.job())]
        jobs = self.place.enqueue([*good[:15], make(), *good[15:]])
        bad = jobs[15]
        self.place.enqueued.remove(bad)
        dead = "select exists (select from pgworker.dead_letter_jobs where job_id = %s)"
        eventually(lambda: self.place.scalar(dead, bad), lambda: f"{how} a dead letter; {self.place.describe()}")
        self.place.wait_until_quiet()
        self.judge(how, bad, outcome, cause)
        failed = "select count(distinct job_id) from pgworker.job_executions where job_id = any (%s) and failures > 0"
        self.charged[how] += int(self.place.scalar(failed, jobs)) - 1
        eventually(lambda: self.strangers() == {}, lambda: f"{how} has left {self.strangers()}")

    def judge(self, how: str, bad: UUID, outcome: str, cause: str) -> None:
        runs = self.place.rows(
            """select outcome::text, coalesce(cause, ''), coalesce(error->>'traceback', ''),
                      extract(epoch from finished_at - started_at)::float8
               from pgworker.job_executions where job_id = %s""",
            bad,
        )
        if len(runs) != 1 or runs[0][0] != outcome or cause not in runs[0][1]:
            self.wrong.append(f"{how}: {runs}")
        elif how == "deaf":
            self.late.append(runs[0][3] - TIMEOUT - GRACE - LAST)
            if "deaf" not in runs[0][2]:
                self.wrong.append(f"{how} has no stack: {runs[0][2]!r}")

    def strangers(self) -> dict[int, str]:
        """Workers beyond those that there are to be: children of handlers look like the worker that forked them."""
        workers = self.pool.workers
        return {pid: title for pid, title in self.pool.processes().items() if pid in workers[WORKERS:]}


WORKERS = 2


def run(bench: Bench) -> Sequence[Figure]:
    settings: dict[str, Any] = {"cancel_grace": GRACE, "term_grace": LAST, "memory_limit": "400M"}
    with ground(bench) as place, place.pool(workers=WORKERS, **settings) as pool:
        rounds = Rounds(place, pool)
        hows = list(BAD)
        for number in range(bench.size):
            rounds.play(hows[number % len(hows)])
            if number % 30 == 29:
                bench.tell(f"{number + 1} bad handlers")
        alive = pool.process.poll() is None
        ledgers.store(place.connection, place.directory, place.enqueued)
        wrong = offences(place.connection, ledgers.WRONG)
        for what in rounds.wrong[:20]:
            bench.tell(what)
        figures = [
            none_of("bad handlers with another end than theirs", len(rounds.wrong), f"{bench.size}"),
            none_of("good jobs lost, or run to no end", sum(map(len, wrong.values())), f"{len(place.enqueued):,}"),
            none_of("masters that have ended", int(not alive)),
            none_of("good jobs charged", sum(rounds.charged.values()) - rounds.charged["leak"]),
            told("good jobs charged where no descriptor was left", f"{rounds.charged['leak']}"),
            place.offences(),
        ]
        if rounds.late:
            worst = max(rounds.late)
            found = f"p50 {percentile(rounds.late, 50):.2f} max {worst:.2f} s after the grace (n={len(rounds.late)})"
            holds = worst < SLACK if bench.size > len(hows) else None
            figures.append(Figure("a deaf handler is gone", f"max < {SLACK:g} s", found, holds))
        return figures


TRIAL = Trial(
    name="bad_handlers",
    promise="a handler that is deaf, dies, multiplies, leaks or leaves a mess is charged for itself, and no other is",
    unit="bad handlers",
    full=300,
    short=3,
    run=run,
)
