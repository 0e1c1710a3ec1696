"""The fields of a log line, as `pgworker.observe` reads them: the master may not import that."""

from __future__ import annotations


def fields(event: str, /, **values: object) -> dict[str, dict[str, object]]:
    """The `extra` of a log call. Every name is in `pgworker.observe.vocabulary`."""
    return {"fields": {"event": event, **values}}
