"""The real input: the standard library's source files, what is counted in them, and the plain loop that counts it."""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgworker.errors import ConfigurationError

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
"""Directories whose files are not the library's own, or are broken on purpose."""

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is found in one file. No `definitions`: it doesn't parse."""

    sha256: str
    size: int
    lines: int
    definitions: int | None


def library_files() -> list[Path]:
    """The standard library's modules on this machine. ConfigurationError if it comes without its sources."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [path for path in root.rglob("*.py") if not _LEFT_OUT.intersection(path.relative_to(root).parts)]
    readable = sorted(path for path in found if path.is_file() and os.access(path, os.R_OK))
    if not readable:
        raise ConfigurationError(f"the demo needs the source files of the standard library, and {root} has none")
    return readable


def read_facts(path: Path) -> FileFacts:
    """Hash, count and parse one file."""
    data = path.read_bytes()
    return FileFacts(hashlib.sha256(data).hexdigest(), len(data), data.count(b"\n"), _definitions(data))


def plain_loop(paths: Sequence[Path], on_progress: Callable[[int], None]) -> dict[str, FileFacts]:
    """The facts of each file, by path: one after the other, in this process. `on_progress` hears how many are done."""
    facts = {}
    for done, path in enumerate(paths):
        on_progress(done)
        facts[str(path)] = read_facts(path)
    return facts


def _definitions(source: bytes) -> int | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about the library's literals
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    return sum(isinstance(node, _DEFINITIONS) for node in ast.walk(tree))
