"""The SQL of the package, by name: a statement per file in `queries/`, numbered `migrations/`, scripts for roles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING

from pgworker.errors import PgworkerError

if TYPE_CHECKING:
    from importlib.abc import Traversable

_MIGRATION_FILE = re.compile(r"(?P<name>(?P<number>\d{4})_[a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: `name` is the file's stem (`0001_spine`), `checksum` the SHA-256 of `text` in hex."""

    number: int
    name: str
    text: str
    checksum: str


@cache
def query(name: str) -> str:
    """The statement in `queries/<name>.sql`, without the comment at its head. FileNotFoundError: no such statement."""
    text = (files("pgworker.sql") / "queries" / f"{name}.sql").read_text("utf-8")
    lines = text.splitlines()
    while lines and (not lines[0].strip() or lines[0].startswith("--")):
        del lines[0]
    return "\n".join(lines).rstrip()


def keep_all() -> None:
    """Read every statement and migration now, for this process and those that it forks: the files may be replaced by
    those of another version while it runs."""
    for file in (files("pgworker.sql") / "queries").iterdir():
        query(file.name.removesuffix(".sql"))
    migrations()


@cache
def script(name: str) -> str:
    """The script in `<name>.sql`: `roles` or `grants`."""
    return (files("pgworker.sql") / f"{name}.sql").read_text("utf-8")


@cache
def migrations() -> tuple[Migration, ...]:
    """The migrations of this package, in order."""
    return read_migrations(files("pgworker.sql") / "migrations")


def read_migrations(directory: Traversable) -> tuple[Migration, ...]:
    """The migrations in `directory`, numbered from 0001 without a gap; PgworkerError (a bug) when they are not."""
    scripts = (file for file in directory.iterdir() if file.name.endswith(".sql"))
    found = tuple(sorted((_read_migration(file) for file in scripts), key=lambda step: step.name))
    if not found or [step.number for step in found] != list(range(1, len(found) + 1)):
        names = ", ".join(step.name for step in found) or "none"
        raise PgworkerError(f"the package's migrations must be numbered 0001, 0002, ... without a gap; found: {names}")
    return found


def _read_migration(file: Traversable) -> Migration:
    named = _MIGRATION_FILE.fullmatch(file.name)
    if not named:
        raise PgworkerError(f"{file.name} among the migrations is not named like 0001_what_it_does.sql")
    text = file.read_text("utf-8")
    return Migration(int(named["number"]), named["name"], text, sha256(text.encode()).hexdigest())
