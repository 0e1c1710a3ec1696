"""Every log call of the package says what happened by a name of the vocabulary, and about a job which one it is."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pgworker.model.state import Outcome
from pgworker.observe.vocabulary import ALWAYS, ENDED, EVENTS, FIELDS, JOB_EVENTS, POOL_EVENTS

PACKAGE = Path(__file__).parents[2] / "pgworker"
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
WHO = {"log_fields"}
"""What gives a call all the fields of a job: each is a function of the package that returns them."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `fields(...)`: the names of its events, of its keywords, and what is unpacked into it."""

    place: str
    events: frozenset[str]
    names: frozenset[str]
    unpacked: frozenset[str]

    @property
    def is_about_a_job(self) -> bool:
        return bool(self.events & JOB_EVENTS.keys())


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Of our own loggers: all are called `log`."""
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "log":
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def field_calls() -> list[Call]:
    return [
        Call(
            f"{path.relative_to(PACKAGE)}:{node.lineno}",
            frozenset(_events(node.args[0])),
            frozenset(word.arg for word in node.keywords if word.arg),
            frozenset(_name(word.value) for word in node.keywords if word.arg is None),
        )
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _name(node.func) == "fields"
    ]


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _events(node: ast.expr) -> Iterator[str]:
    """A name, a choice between names, or that of an outcome."""
    if isinstance(node, ast.IfExp):
        yield from _events(node.body)
        yield from _events(node.orelse)
    elif isinstance(node, ast.Subscript) and _name(node.value) == "ENDED":
        yield from ENDED.values()
    else:
        assert isinstance(node, ast.Constant), ast.dump(node)
        yield str(node.value)


def test_every_log_call_says_what_happened() -> None:
    calls = list(log_calls())
    assert len(calls) > 80
    assert [place for place, call in calls if not any(word.arg == "extra" for word in call.keywords)] == []


def test_no_logger_of_ours_has_another_name() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and _name(node.value) in ("logger", "getLogger") and path.name != "logs.py":
                assert [_name(target) for target in node.targets] == ["log"], path


def test_every_event_is_in_the_vocabulary_and_each_of_it_is_logged() -> None:
    said = {event for call in field_calls() for event in call.events}
    assert said - EVENTS.keys() == set()
    assert EVENTS.keys() - said == {"log_lines_lost"}  # it is no call: stderr has it from the handler itself


def test_every_field_is_in_the_vocabulary() -> None:
    known = FIELDS.keys() | ALWAYS.keys()
    assert [(call.place, unknown) for call in field_calls() if (unknown := call.names - known)] == []


def test_every_line_about_a_job_says_which_execution_of_which_task() -> None:
    about = [call for call in field_calls() if call.is_about_a_job]
    assert len(about) > 10
    bare = [call for call in about if "job_enqueued" not in call.events and not call.unpacked & (WHO | {"who", "told"})]
    assert bare == []


@pytest.mark.parametrize("outcome", Outcome)
def test_each_outcome_has_an_event(outcome: Outcome) -> None:
    assert ENDED[outcome] in JOB_EVENTS


def test_no_event_is_in_both_tables() -> None:
    assert JOB_EVENTS.keys() & POOL_EVENTS.keys() == set()


def tables() -> str:
    """As they end the page."""
    heads = {"on every line": ALWAYS, "field": FIELDS, "event of a job": JOB_EVENTS, "other event": POOL_EVENTS}
    return "\n".join(
        f"| {head} | |\n|---|---|\n" + "".join(f"| `{name}` | {meaning} |\n" for name, meaning in names.items())
        for head, names in heads.items()
    )


def test_the_page_for_operators_has_every_name_with_its_meaning() -> None:
    page = PACKAGE.parent / "deploy/logs.md"
    prose, head, rest = page.read_text().partition("| on every line |")
    if os.environ.get("PGWORKER_WRITE_LOGS"):
        page.write_text(prose + tables())
        pytest.skip("written")
    assert head + rest == tables(), "write it with PGWORKER_WRITE_LOGS=1"
