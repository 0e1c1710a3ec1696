"""The token of /metrics: what a file holds, and no variable, option or log line ever does."""

from __future__ import annotations

import os
import re
import stat
from enum import Enum
from pathlib import Path
from typing import Final

from pgworker.errors import ConfigurationError

SHORTEST: Final = 16
LONGEST: Final = 1024
"""Characters; a file with more is another file."""

_PRINTABLE: Final = re.compile(rb"[!-~]+")  # what a header can carry in one word
_MAKE: Final = "Make one: `openssl rand -hex 32`"


class NoToken(Enum):
    """Why /metrics asks for none. Its values are what `config show --json` prints."""

    UNSAID = ""
    """Nobody has said: so there is none on addresses that no other host reaches, and on others no pool."""
    OFF = None
    """On purpose."""


def read_token(path: Path) -> bytes:
    """The token as it is in the file by now, without blanks and line ends around it.

    ConfigurationError, with the path and without a word of the content, for a file that holds none.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would wait for its writer
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            token = file.read(2 * LONGEST).strip() if is_file else b""
    except OSError as error:
        raise ConfigurationError(
            f"can't read the token of /metrics from {path}: {error.strerror}. Correct --metrics-token-file, or the file"
        ) from error
    if not is_file:
        raise ConfigurationError(f"{path} is no regular file: the token of /metrics is read from it again and again")
    if (fault := _fault(token)) is not None:
        raise ConfigurationError(f"{path} holds no token for /metrics: {fault}. {_MAKE}")
    return token


def is_readable_by_all(path: Path) -> bool:
    """Whether the rights of the file keep nobody out."""
    return bool(path.stat().st_mode & stat.S_IROTH)


def _fault(token: bytes) -> str | None:
    if not token:
        return "it is empty"
    if not _PRINTABLE.fullmatch(token):
        return "a token is one word of printable ASCII"
    if not SHORTEST <= len(token) <= LONGEST:
        return f"a token has from {SHORTEST} to {LONGEST} characters"
    return None
