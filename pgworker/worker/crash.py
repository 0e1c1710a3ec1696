"""The end of a worker that can't go on: at once, with one line that says why. It is replaced, and its jobs go back."""

from __future__ import annotations

import logging
import os
from typing import Final, NoReturn

from pgworker.errors import EXIT_BUG
from pgworker.observe.logs import fields

A_BUG: Final = "this is a bug in pgworker; the worker ends and is replaced"


def crash(log: logging.Logger, why: str, *, with_traceback: bool = False) -> NoReturn:
    """`why` is the line; the traceback is of the error that is being handled, and takes memory to print."""
    try:
        log.error("%s", why, exc_info=with_traceback, extra=fields("worker_crashed"))
    finally:
        os._exit(EXIT_BUG)
