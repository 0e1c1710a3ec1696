"""Why an execution ended badly, in a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def why_failed(outcome: str, error: str | Mapping[str, Any] | None, cause: str | None) -> str:
    """`cause`, which is there if the handler could not say itself why it ended; else what it raised; else `outcome`.

    `error` is a stored one, as JSON text or decoded; whoever else writes to the table may have put anything there. Its
    type is left out if it is one of pgworker's own: "no such user", not "pgworker.errors.Discard: no such user".
    """
    return cause or describe_stored(error) or outcome


def describe_stored(error: str | Mapping[str, Any] | None) -> str:
    """Type and message of a stored error, on one line; nothing if it has neither."""
    stored: Any = json.loads(error) if isinstance(error, str) else error
    if not isinstance(stored, Mapping):
        return ""
    kind, message = (text if isinstance(text, str) else "" for text in (stored.get("type"), stored.get("message")))
    parts = [message] if kind.startswith("pgworker.") and message else [part for part in (kind, message) if part]
    return " ".join(": ".join(parts).split())
