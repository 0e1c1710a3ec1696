"""Who may see /metrics: whoever sends the token that a file holds."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path

from pgworker.config.token import NoToken, read_token
from pgworker.errors import ConfigurationError
from pgworker.observe.logs import Throttle, fields, logger

_SAID_EVERY = 60.0

log = logger("monitor.bearer")


class Bearer:
    """Compares `Authorization: Bearer TOKEN` with the file, which is read for each request that sends a token: a new
    one holds at once, and while the file has none nobody is let in. Without a file everybody is."""

    def __init__(self, file: str | NoToken) -> None:
        self._file = None if isinstance(file, NoToken) else Path(file)
        self._throttle = Throttle(interval=_SAID_EVERY)

    def admits(self, authorizations: Sequence[str]) -> bool:
        """`authorizations`: every header of this name; two of them are one too many."""
        if self._file is None:
            return True
        if len(authorizations) != 1:
            return False
        scheme, _, sent = authorizations[0].partition(" ")
        if scheme.lower() != "bearer":
            return False
        token = self._read(self._file)
        return token is not None and hmac.compare_digest(sent.strip(" ").encode(errors="replace"), token)

    def _read(self, file: Path) -> bytes | None:
        try:
            return read_token(file)
        except ConfigurationError as error:
            if (more := self._throttle.admit("unreadable")) is not None:
                log.warning("nobody can see /metrics: %s%s", error, more, extra=fields("token_unreadable"))
            return None
