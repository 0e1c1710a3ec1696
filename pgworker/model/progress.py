"""How far a running job is, as it says itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from pgworker.model import exact
from pgworker.model.payload import encode_checkpoint

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
class ProgressUpdate:
    """The same on its way to the database; `checkpoint` is JSON text, None leaves the one before."""

    job_id: UUID
    fraction: float
    message: str
    checkpoint: str | None

    def after(self, before: ProgressUpdate | None) -> ProgressUpdate:
        """With the checkpoint of what was said before and is not stored yet, unless there is a newer one."""
        if before is None or self.checkpoint is not None:
            return self
        return replace(self, checkpoint=before.checkpoint)


def check_progress(job_id: UUID, fraction: object, message: object, checkpoint: object) -> ProgressUpdate:
    """What a handler says, checked. ValueError or InvalidPayload, a ValueError too, for what can't be stored."""
    share, given = exact.number(fraction), exact.text(message)
    if share is None or not 0 <= share <= 1:
        raise ValueError(f"progress takes a fraction from 0 to 1, such as 0.4, not {_shown(fraction)}")
    text = "" if given is None else given.encode("utf-8", "replace").decode()
    if given is None or len(text) > MAX_MESSAGE:
        raise ValueError(f"the message of a progress must be a string of at most {MAX_MESSAGE} characters")
    encoded = None if checkpoint is None else encode_checkpoint(checkpoint).decode()
    return ProgressUpdate(job_id, round(float(share), 6), text.replace("\0", "\ufffd"), encoded)


def _shown(fraction: object) -> str:
    number = exact.number(fraction)
    if number is not None and (isinstance(number, float) or abs(number) < 10**6):
        return f"{number:g}"
    return f"something of type {exact.type_name(fraction)}"
