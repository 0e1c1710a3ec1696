"""Settings out of TOML: pgworker.toml, or the file named instead of it, and `[tool.pgworker]` of pyproject.toml."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pgworker.config.options import BY_KEY, DATABASE_KEYS, PREFIX
from pgworker.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN_FILE: Final = "pgworker.toml"
PROJECT_FILE: Final = "pyproject.toml"
_TABLE: Final = "[tool.pgworker]"
_RELATIVE: Final = ("dsn_file", "embedded", "metrics_token_file")


def read_own(path: Path, *, must_exist: bool, is_strict: bool) -> dict[str, Any]:
    """The values of a file of ours by key; none if there is no file. A pyproject.toml is one too, where it is named.

    ConfigurationError, with file and key: unreadable, no TOML, a value of another type and, if strict, an unknown key.
    """
    if path.name == PROJECT_FILE:
        return read_project(path, must_exist=must_exist, is_strict=is_strict)
    return _take(_load(path, must_exist=must_exist), path, str(path), is_strict=is_strict)


def read_project(path: Path, *, must_exist: bool = False, is_strict: bool) -> dict[str, Any]:
    """Likewise, of its table `[tool.pgworker]`."""
    tool = _load(path, must_exist=must_exist).get("tool", {})
    table = tool.get("pgworker", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: tool.pgworker is no table: write {_TABLE} above its keys")
    return _take(table, path, f"{path} {_TABLE}", is_strict=is_strict)


def _load(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        if must_exist:
            raise ConfigurationError(f"there is no file {path}: correct --config or {PREFIX}CONFIG") from error
        return {}
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror}. Correct its rights, or remove it") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8, as TOML must be: save it anew (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    return tables


def _take(table: dict[str, Any], path: Path, place: str, *, is_strict: bool) -> dict[str, Any]:
    taken = {}
    for key, value in table.items():
        if key not in BY_KEY:
            if is_strict:
                raise ConfigurationError(f"{place}: {_unknown(key, value)}")
        elif is_strict or key in DATABASE_KEYS:
            try:
                found = BY_KEY[key].kind.take(value)
            except ConfigurationError as error:
                raise ConfigurationError(f"{place}: {key}: {error}") from None
            is_relative = key in _RELATIVE and isinstance(found, str) and found
            taken[key] = str(path.parent / found) if is_relative else found
    return taken


def _unknown(key: str, value: object) -> str:
    if isinstance(value, dict):
        return f"there is no setting {key!r}, and none is a table: write the keys without one above them"
    if key == "config":
        return f"config can't name another file here: give --config, or set {PREFIX}CONFIG"
    close = get_close_matches(key.lower().replace("-", "_"), BY_KEY, n=1)
    if close:
        return f"there is no setting {key!r}; did you mean {close[0]}?"
    return f"there is no setting {key!r}; `pgworker start --help` lists them all"
