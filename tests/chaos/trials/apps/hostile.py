"""The app whose handlers return, raise and say what nobody should: what it is, is in the dice that the job names."""

from __future__ import annotations

import random
from typing import Any

from pgworker import App, Backoff, Context, Discard, Retry, Snooze
from tests.chaos.trials.apps import hostile_values as hostile

app = App()
_AT_ONCE = Backoff(base=0, cap=0)

TYPED = (TypeError, ValueError)
"""What a handler that says nonsense is told with; InvalidPayload is a ValueError."""


def _misbehave(ctx: Context, door: str, seed: str) -> Any:
    """In its first execution only, but for what it raises."""
    dice = random.Random(seed)
    if door == "raise":
        raise hostile.error(dice)[1]
    if ctx.job.execution > 1:
        return None
    kind, value = hostile.value(dice)
    if door == "return":
        return value
    if door == "discard":
        raise Discard(value)
    if door == "retry":
        raise Retry(value, after=hostile.value(dice)[1])
    if door == "snooze":
        raise Snooze(value)
    said: dict[str, Any] = {"fraction": 0.5, "message": "", "checkpoint": None}
    said[dice.choice(list(said))] = value
    try:
        ctx.progress(said["fraction"], said["message"], checkpoint=said["checkpoint"])
    except TYPED:
        return f"refused: {kind}"
    return "said"


@app.task(name="swallow", max_attempts=2, backoff=_AT_ONCE)
def swallow(value: Any) -> Any:
    """Give back what came."""
    return value


@app.task(name="narrow", max_attempts=2, backoff=_AT_ONCE)
def narrow(number: int, words: list[str], ratio: float = 0.5) -> None:
    """Take only what its annotations say."""


@app.task(name="misbehave", max_attempts=2, backoff=_AT_ONCE)
def misbehave(ctx: Context, door: str, seed: str) -> Any:
    """In a thread."""
    return _misbehave(ctx, door, seed)


@app.task(name="misbehave_async", max_attempts=2, backoff=_AT_ONCE)
async def misbehave_async(ctx: Context, door: str, seed: str) -> Any:
    """On the event loop."""
    return _misbehave(ctx, door, seed)
