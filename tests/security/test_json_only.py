"""What comes from outside is data: nothing of pgworker turns bytes or names into code. Read from its own source."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgworker import App
from pgworker.errors import InvalidJob, RegistrationError
from pgworker.lifecycle.enqueue import enqueue_jobs
from pgworker.model.job import JobRequest
from tests.process import jobs, test_pool
from tests.process.pool import ROOT
from tests.process.test_pool import Scene, StartPool

scene = test_pool.scene
start_pool = test_pool.start_pool

SOURCES = sorted([*(ROOT / "pgworker").rglob("*.py"), *(ROOT / "deploy").rglob("*.py")])

MODULES = {
    "pickle": "runs what it reads",
    "_pickle": "likewise",
    "cPickle": "likewise",
    "dill": "likewise",
    "cloudpickle": "likewise",
    "joblib": "likewise",
    "shelve": "is pickle",
    "dbm": "is what shelve stands on",
    "marshal": "reads code",
    "copyreg": "is for pickle",
    "multiprocessing": "pickles what goes through its queues and pipes",
    "concurrent.futures.process": "likewise",
    "code": "runs what is typed",
    "codeop": "likewise",
    "yaml": "makes objects unless it is told not to",
    "xml": "follows entities",
    "runpy": "runs files",
    "imp": "imports by path",
    "telnetlib": "is for consoles",
    "ftplib": "is for files of others",
    "xmlrpc": "is for calls by others",
    "logging.config": "imports what a configuration names, and may listen for one",
}
"""What no module of pgworker imports, and why."""

CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "breakpoint",
    "input",
    "os.system",
    "os.popen",
    "os.execl",
    "os.execlp",
    "os.execvp",
    "os.spawnl",
    "os.spawnvp",
    "os.posix_spawnp",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
    "pty.spawn",
    "tempfile.mktemp",
    "types.FunctionType",
    "types.CodeType",
    "re.Scanner",
    "msgspec.msgpack.decode",
    "msgspec.yaml.decode",
}
"""What none of them calls."""

IMPORTERS = {
    "pgworker/app/registry.py": "the app that whoever starts a pool names",
    "pgworker/__init__.py": "its own modules, by a table in it",
    "pgworker/testing/__init__.py": "likewise",
    "pgworker/cli/root.py": "the module of a command, by a table in it",
}
"""Who imports by a name that is not written in an import statement."""

STARTERS = {
    "pgworker/db/account.py": "postgres and initdb, by a list of words",
    "pgworker/bench/pool.py": "pgworker start, likewise",
}
"""Who starts programs."""


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def name_of(called: ast.expr, names: dict[str, str]) -> str:
    """`os.system` of `os.system(...)`, of `system(...)` after `from os import system`, and of `o.system(...)`."""
    if isinstance(called, ast.Attribute):
        return f"{name_of(called.value, names)}.{called.attr}"
    return names.get(called.id, called.id) if isinstance(called, ast.Name) else "…"


def names_in(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def offences(tree: ast.AST, place: str) -> list[str]:
    """Everything in this module that turns data into code, or asks a shell."""
    names = names_in(tree)
    found = [
        f"{place}:{line} imports {name}"
        for line, name in imported(tree)
        if any(name == banned or name.startswith(f"{banned}.") for banned in MODULES)
    ]
    for call in calls(tree):
        name = name_of(call.func, names)
        bad = name.removeprefix("builtins.") in CALLS
        shell = any(word.arg == "shell" and not is_false(word.value) for word in call.keywords)
        hook = any(word.arg in ("object_hook", "object_pairs_hook", "ext_hook") for word in call.keywords)
        if name.endswith("import_module") and place not in IMPORTERS:
            bad = True
        if name.startswith("subprocess.") and place not in STARTERS:
            bad = True
        if bad or shell or hook:
            found.append(f"{place}:{call.lineno} calls {name}")
    return found


def is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_nothing_of_pgworker_turns_data_into_code_or_asks_a_shell() -> None:
    found = [line for place, tree in trees() for line in offences(tree, place)]
    assert len(SOURCES) > 150
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads as read",
        "import multiprocessing.queues",
        "from concurrent.futures import process",
        "import logging.config",
        "eval('1')",
        "import builtins; builtins.exec('1')",
        "from os import system as say; say('true')",
        "import os as o; o.popen('true')",
        "import subprocess; subprocess.run('true', shell=True)",
        "from importlib import import_module; import_module(name)",
        "import json; json.loads('{}', object_hook=make)",
        "__import__('os')",
    ],
)
def test_the_scan_finds_each_of_these(line: str) -> None:
    assert offences(ast.parse(line), "pgworker/somewhere.py")


def test_processes_of_a_pool_talk_in_json_and_in_packed_numbers() -> None:
    """Of the modules that read a socket or a mapping of theirs, each decodes with one of these and nothing else."""
    readers = {
        "pgworker/linux/control.py": {"json"},
        "pgworker/observe/events.py": {"struct"},
        "pgworker/linux/board.py": set[str](),  # words of 64 bits in a mapping
        "pgworker/linux/row.py": set[str](),  # likewise
        "pgworker/linux/wake.py": set[str](),  # a byte in a pipe, never looked at
    }
    decoders = {"json", "struct", "msgspec", "ast", "configparser", "tomllib", "tomli", "csv", "base64", "zlib"}
    found = {place: {name for _, name in imported(tree)} & decoders for place, tree in trees() if place in readers}
    assert found == readers


# -- names of tasks are looked up, never followed


HOSTILE = (
    "os.system",
    "os:system",
    "subprocess.run",
    "builtins.eval",
    "tests.security.bait.spring",
    "tests.security.bait:spring",
    "tests.process.jobs:app",
    "tests.process.jobs.app.__class__",
    "app:__class__",
    "__main__",
    "__init__",
    "..",
    "..jobs.quick",
    "tests.process.jobs.quick.handler",
    "tests.process.jobs.Quick",
    "tests.process.jobs.quick.",
    ".tests.process.jobs.quick",
    "-c",
    "--help",
)
"""What a task may be called as far as its letters go; none of them is one."""

UNSPEAKABLE = (
    "../../x",
    "/etc/passwd",
    "a b",
    "a;b",
    "$(id)",
    "`id`",
    "%s",
    "{0.__class__}",
    "a\nb",
    "a\0b",
    "ｏｓ",
    "",
)


def test_names_that_are_paths_modules_or_attributes_run_and_import_nothing(
    scene: Scene, start_pool: StartPool, tmp_path: Path
) -> None:
    bait = tmp_path / "sprung"
    os.environ["PGWORKER_TEST_BAIT"] = str(bait)
    try:
        pool = start_pool(log_format="json")
    finally:
        del os.environ["PGWORKER_TEST_BAIT"]
    enqueue_jobs(scene.connection, [JobRequest(name, f'{{"command": "touch {bait}"}}') for name in HOSTILE])
    last = scene.enqueue(jobs.quick, "last")
    scene.wait_for_status("succeeded", last)
    states = "select count(*) from pgworker.job_status where status = 'pending' and task = any (%s)"
    assert scene.scalar(states, list(HOSTILE)) == len(HOSTILE), "they wait for somebody who serves them"
    assert not bait.exists()
    for pid in pool.workers:
        assert "bait" not in Path(f"/proc/{pid}/maps").read_text()


def test_the_bait_is_one(tmp_path: Path) -> None:
    bait = tmp_path / "sprung"
    command = [sys.executable, "-c", "import tests.security.bait"]
    subprocess.run(command, env={**os.environ, "PGWORKER_TEST_BAIT": str(bait)}, cwd=ROOT, check=True)
    assert bait.exists()


def test_a_name_with_any_other_sign_is_refused_here_and_by_the_table(scene: Scene) -> None:
    app = App("postgresql://nowhere")
    for name in UNSPEAKABLE:
        with pytest.raises((InvalidJob, RegistrationError)):
            app.task(name=name)(print_nothing)
        with pytest.raises((InvalidJob, RegistrationError)):
            app.task(name="t", queue=name)(print_nothing)
        with pytest.raises(InvalidJob):
            jobs.quick.options(queue=name)
        for call in ("select pgworker.enqueue(%s)", "select pgworker.enqueue('t', queue => %s)"):
            with pytest.raises((psycopg.errors.CheckViolation, psycopg.DataError)):
                scene.connection.execute(call.encode(), [name])


def print_nothing() -> None: ...
