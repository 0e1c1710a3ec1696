"""How far a running job is, as it says itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgworker.errors import InvalidPayload
from pgworker.model.payload import MAX_RESULT_BYTES, encode_result

MAX_MESSAGE = 1000


@dataclass(frozen=True, slots=True)
class Progress:
    """What a job said last. `fraction` is from 0 to 1; `checkpoint` is what the next execution begins from, if any."""

    execution: int
    fraction: float
    message: str
    checkpoint: Any
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Said:
    """The same on its way to the database; `checkpoint` is JSON text, None leaves the one before."""

    fraction: float
    message: str
    checkpoint: str | None


def say(fraction: object, message: object, checkpoint: object, before: Said | None) -> Said:
    """Check what a handler says; `before` is what it said last. ValueError or InvalidPayload for what can't be."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise ValueError(f"progress takes a fraction from 0 to 1, such as 0.4, not {fraction!r:.40}")
    if not isinstance(message, str) or len(message) > MAX_MESSAGE:
        raise ValueError(f"the message of a progress must be a string of at most {MAX_MESSAGE} characters")
    text = message.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if checkpoint is None:
        return Said(fraction, text, before.checkpoint if before else None)
    if not isinstance(checkpoint, Mapping):
        raise InvalidPayload(f"a checkpoint must be a mapping, such as {{'page': 7}}, not {type(checkpoint).__name__}")
    encoded = encode_result(dict(checkpoint))
    if encoded.json is None:
        raise InvalidPayload(
            f"the checkpoint can't be stored: {encoded.problem}; at most {MAX_RESULT_BYTES >> 10} KiB of JSON"
        )
    return Said(fraction, text, encoded.json.decode())
