"""Where an error comes from in the user's own code: what an operator is told of an app that doesn't start."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

_PACKAGE = Path(__file__).parents[1]


def told(error: BaseException) -> str:
    """`KeyError: 'secret' (/srv/shop/tasks.py:2)`: one line, however many the error has."""
    return f"{type(error).__qualname__}: {' '.join(str(error).split())} ({_own_line(error)})"


def _own_line(error: BaseException) -> str:
    """`file:line` of the innermost frame in the user's own files, or in an app that is installed like a library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in _frames(error.__traceback__) if Path(frame.filename).is_absolute()]
    frame = ([frame for frame in frames if _is_own(frame)] or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _frames(trace: TracebackType | None) -> traceback.StackSummary:
    return traceback.StackSummary.extract(traceback.walk_tb(trace), lookup_lines=False)


def _is_own(frame: traceback.FrameSummary) -> bool:
    path = Path(frame.filename)
    libraries = [str(_PACKAGE), *(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))]
    return not any(path.is_relative_to(library) for library in libraries)
