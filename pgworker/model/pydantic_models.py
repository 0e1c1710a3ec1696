"""Models of pydantic among arguments and results. It is never imported here: whoever has a model has imported it."""

from __future__ import annotations

from typing import Any

import msgspec


def is_model(kind: object) -> bool:
    """Whether `kind` is a subclass of pydantic's BaseModel, version 2. Its dataclasses need no help: msgspec's do."""
    return isinstance(kind, type) and hasattr(kind, "model_validate_json") and hasattr(kind, "__pydantic_validator__")


def dump(model: Any) -> Any:
    """The model as JSON values that `load` reads."""
    return model.model_dump(mode="json", by_alias=True, round_trip=True)


def load(kind: Any, value: object) -> Any:
    """A model of these JSON values; pydantic's ValidationError, a ValueError, if they don't fit.

    From JSON, not from the values: a strict model takes a date from a string of JSON only.
    """
    return kind.model_validate_json(msgspec.json.encode(value))
