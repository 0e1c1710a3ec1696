"""What is where, and what is nowhere: rules that a reader of the package may rely on without reading it all."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pgworker"
SQL_MAY_BE_EXECUTED_IN = {"lifecycle", "control", "inspection", "db", "bench", "demo"}
TRANSACTION_CONTROL = {
    "worker/transaction.py": {"*settings_of(execution)", "'discard all'"},
    "worker/transaction_async.py": {"*settings_of(execution)", "'discard all'"},
}
"""What the worker says to the database itself: where its transactions begin and end, and how."""

PUT_TOGETHER = {"db/migrate.py": {"f'select pg_advisory_xact_lock({_LOCK_KEY});'"}}
"""A script to read and run by hand has no parameters; the key is a number of the module's own."""

_EXECUTING = {"execute", "executemany", "copy", "stream"}
_SQL = re.compile(
    r"\s*(select|insert|update|delete|with|begin|set|listen|notify|create|drop|alter|lock|truncate|copy|values)\s",
    re.IGNORECASE,
)


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 kept, 0 broken" in checked.stdout


_PROBE = """
import importlib, json, os, pkgutil, signal, sys, threading
from pathlib import Path

def descriptors():
    return {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) > 2
            and os.path.exists(f"/proc/self/fd/{name}")}

def handlers():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}

def culprit():
    '''The module of ours that does this itself: not while it imports another, not a library that it imports.'''
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("pgworker"):
            return name
        if name.startswith("importlib._bootstrap"):
            return None
        frame = frame.f_back
    return None

done = []
ACTS = ("open", "socket.", "os.", "subprocess.", "ctypes.dlopen", "fcntl.", "mmap.", "signal.", "_thread.",
        "time.sleep", "tempfile.", "shutil.")

def watch(event, arguments):
    if event.startswith(ACTS) and (module := culprit()) is not None:
        done.append(f"{module}: {event} {arguments}")

LANGUAGE = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")  # click translates an option where it is written
read = type(os.environ).__getitem__
def noted(self, name):
    if name not in LANGUAGE and (module := culprit()) is not None:
        done.append(f"{module}: reads {name} in the environment")
    return read(self, name)

before = descriptors(), handlers(), os.getcwd(), dict(os.environ)
type(os.environ).__getitem__ = noted
sys.addaudithook(watch)
import pgworker
names = [found.name for found in pkgutil.walk_packages(pgworker.__path__, "pgworker.")]
for name in names:
    importlib.import_module(name)
ACTS = ()
type(os.environ).__getitem__ = read
after = descriptors(), handlers(), os.getcwd(), dict(os.environ)
for had, has in zip(before, after):
    if had != has:
        done.append(f"was {had}, is {has}")
tasks = os.listdir("/proc/self/task")
if threading.active_count() != 1 or len(tasks) != 1:
    done.append(f"threads: {threading.enumerate()}, tasks: {tasks}")
print(json.dumps({"modules": len(names), "done": done}))
"""


def test_nothing_happens_at_import() -> None:
    """No thread, descriptor, handler, file, socket, process or look at the environment, in any module of ours.

    What libraries do while they are imported is theirs, but for threads, descriptors and handlers that stay.
    """
    report = json.loads(_run_fresh(_PROBE))
    assert report["done"] == []
    assert report["modules"] == len(list(_sources())) - 1, "every one but pgworker itself"


_IMPORT_MASTER = """
import sys
before = set(sys.modules)
import importlib, pkgutil
import pgworker.master
for found in pkgutil.iter_modules(pgworker.master.__path__, "pgworker.master."):
    importlib.import_module(found.name)
print(*sorted(set(sys.modules) - before))
"""


def test_a_master_loads_the_standard_library_and_four_packages_of_ours_and_nothing_else() -> None:
    """Whatever they import in their turn included: no psycopg, msgspec, click, prometheus_client or psutil."""
    loaded = _run_fresh(_IMPORT_MASTER).split()
    assert "pgworker.master.main" in loaded
    ours = {name.split(".")[1] for name in loaded if name.startswith("pgworker.")}
    assert ours == {"master", "linux", "config", "model", "errors"}
    others = {name.partition(".")[0] for name in loaded} - {"pgworker"}
    assert others <= sys.stdlib_module_names | {name for name in others if name.startswith("_sysconfigdata")}


def test_sql_is_executed_in_four_packages_and_what_a_handlers_transaction_needs_by_the_worker() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in _sources():
        if path.parent.name in SQL_MAY_BE_EXECUTED_IN:
            continue
        for call in _calls(tree):
            if isinstance(call.func, ast.Attribute) and call.func.attr in _EXECUTING and call.args:
                found[_place(path)].add(ast.unparse(call.args[0]))
    assert found == TRANSACTION_CONTROL


def test_no_sql_is_put_together_from_strings() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in _sources():
        for node in ast.walk(tree):
            if _SQL.match(_beginning(node)):
                found[_place(path)].add(ast.unparse(node))
    assert found == PUT_TOGETHER


def test_every_statement_is_loaded_by_one_module_and_every_name_has_its_file() -> None:
    users: dict[str, set[str]] = defaultdict(set)
    for path, tree in _sources():
        for call in _calls(tree) if _place(path) != "sql/load.py" else ():  # which reads them all, before the forks
            if isinstance(call.func, ast.Name) and call.func.id == "query":
                assert isinstance(call.args[0], ast.Constant), f"{_place(path)}:{call.lineno}: a name that can be found"
                users[str(call.args[0].value)].add(_place(path))
    assert sorted(users) == sorted(path.stem for path in (PACKAGE / "sql" / "queries").iterdir())
    assert {name: where for name, where in users.items() if len(where) != 1} == {}


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell() -> None:
    found = []
    for path, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                found += [f"{_place(path)}: import {name}" for name in named if name.partition(".")[0] in _UNSAFE]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in _UNSAFE_CALLS:
                found.append(f"{_place(path)}: {ast.unparse(node)}")
            elif isinstance(node, ast.keyword) and node.arg == "shell":
                found.append(f"{_place(path)}: shell=")
    assert found == []


_UNSAFE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "code"}
_UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _beginning(node: ast.AST) -> str:
    """The constant text that a string made at run time begins with: an f-string, a sum, % or .format(); else ""."""
    start: ast.AST | None = None
    if isinstance(node, ast.JoinedStr) and any(isinstance(value, ast.FormattedValue) for value in node.values):
        start = node.values[0]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        start = node.left
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "join"):
        start = node.func.value
    return start.value if isinstance(start, ast.Constant) and isinstance(start.value, str) else ""


def _run_fresh(program: str) -> str:
    """What a new interpreter prints; where it runs, only the package itself can be imported from the tree."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
