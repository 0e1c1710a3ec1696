"""What may stand in a DSN, and how to speak of it without its password.

Only the outer form is judged here; libpq has the last word on the rest when it connects.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

from pgworker.errors import ConfigurationError

UNREADABLE: Final = "(unreadable DSN)"

EMBEDDED: Final = "embedded:"
_HINT: Final = "use postgresql://user@host/dbname, host=… dbname=…, or embedded:DIR"

_SCHEME: Final = re.compile(r"postgres(?:ql)?(?:\+[a-z0-9_]+)?://", re.IGNORECASE)
"""libpq's two spellings and SQLAlchemy's dialect+driver."""

_ASSIGNMENT: Final = re.compile(
    r"\s*([A-Za-z_]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*|)", re.DOTALL
)
"""One keyword=value of a conninfo string: a value in single quotes, or without blanks; a backslash escapes."""

_URI: Final = re.compile(
    r"postgresql://"
    r"(?:(?P<user>[^:@/?]*)(?::[^?]*)?@)?"  # a password reaches to the last @: never show the half of one
    r"(?P<hosts>[^@/?]*)(?:/(?P<dbname>[^@/?]*))?(?:\?(?P<query>[^@]*))?",
    re.DOTALL,
)
_HOST: Final = re.compile(r"(?:\[(?P<ip6>[0-9A-Fa-f:.%]*)\]|(?P<name>[^\s:,\[\]]*))(?::(?P<port>[0-9]*))?")


def accept_dsn(text: str, source: str) -> str:
    """The DSN as libpq takes it, or `embedded:DIR`.

    ConfigurationError, with its source and without a word of the text, if it is no PostgreSQL DSN.
    """
    dsn = text.strip()  # a secret read from a file ends with a newline
    if dsn.startswith(EMBEDDED):
        if dsn == EMBEDDED:
            raise ConfigurationError(f"{source} names no directory after embedded:; use embedded:DIR")
        return dsn
    if scheme := _SCHEME.match(dsn):
        return "postgresql://" + dsn[scheme.end() :]
    if _ASSIGNMENT.match(dsn):
        return dsn
    if not dsn:
        raise ConfigurationError(f"{source} is empty; {_HINT}")
    raise ConfigurationError(f"{source} is not a PostgreSQL DSN; {_HINT}")


def embedded_directory(dsn: str) -> Path | None:
    """The directory of `embedded:DIR`; None for a server that somebody else runs."""
    return Path(dsn[len(EMBEDDED) :]) if dsn.startswith(EMBEDDED) else None


def redact(dsn: str) -> str:
    """`user@host:port/dbname` for logs and errors, never a secret; "(unreadable DSN)" where that isn't certain."""
    if dsn.startswith(EMBEDDED):
        return dsn
    scheme = _SCHEME.match(dsn)
    words = _words_of_uri("postgresql://" + dsn[scheme.end() :]) if scheme else _words_of_conninfo(dsn)
    return UNREADABLE if words is None else _location(words)


def _words_of_uri(uri: str) -> dict[str, str] | None:
    parts = _URI.fullmatch(uri)
    if parts is None:
        return None
    hosts = [found for one in parts["hosts"].split(",") if (found := _HOST.fullmatch(one))]
    if len(hosts) <= parts["hosts"].count(","):
        return None
    words = {
        "user": parts["user"] or "",
        "dbname": parts["dbname"] or "",
        "host": ",".join(host["ip6"] or host["name"] or "" for host in hosts),
        "port": ",".join(host["port"] or "" for host in hosts),
    }
    return words | dict(parse_qsl(parts["query"] or ""))


def _words_of_conninfo(dsn: str) -> dict[str, str] | None:
    words, position, text = {}, 0, dsn.rstrip()
    while position < len(text):
        found = _ASSIGNMENT.match(text, position)
        if found is None:
            return None
        value = found[2][1:-1] if found[2].startswith("'") else found[2]
        words[found[1]] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        position = found.end()
    return words


def _location(words: dict[str, str]) -> str:
    user, dbname, service = words.get("user"), words.get("dbname"), words.get("service")
    host, port = words.get("host") or words.get("hostaddr") or "", words.get("port") or ""
    address = _address(host.split(","), port.split(","))
    if any(sign in f"{user}{dbname}{host}{port}" for sign in ("://", "=")):  # a whole DSN, in the wrong place
        return UNREADABLE
    shown = f"{f'{user}@' if user else ''}{address}{f'/{dbname}' if dbname else ''}"
    return shown or (f"service {service}" if service else "(libpq's defaults)")


def _address(hosts: list[str], ports: list[str]) -> str:
    """host:port of each; a single port is that of all."""
    named = [f"[{host}]" if ":" in host and "/" not in host else host for host in hosts]
    own = ports * len(hosts) if len(ports) == 1 else ports
    return ",".join(
        f"{host}:{port}" if port else host for host, port in zip_longest(named, own[: len(named)], fillvalue="")
    )
