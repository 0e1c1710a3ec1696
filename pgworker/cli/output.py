"""What commands print: tables that fit the terminal, JSON lines, and no control character of anybody's."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from shutil import get_terminal_size
from typing import Any

from pgworker.model.display import printable, size
from pgworker.model.durations import duration

__all__ = ["Column", "duration", "hint", "is_watched", "print_json", "print_table", "printable", "size"]

_GAP = 2
_INDENT = 4
_SHORTEST = 6
"""Characters that a cut cell keeps at least."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Where the terminal is too narrow, one that `shrinks` loses the middle of its cells, and
    that of the last one `goes_below`: each cell on a line of its own, under its row."""

    title: str
    shrinks: bool = False
    goes_below: bool = False
    right: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)
    """rich's styles for some of its cells."""


def is_watched() -> bool:
    """Whether a person sees what is printed, at a terminal."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def hint(sentence: str) -> None:
    """Advice for a person, on stderr: nobody else is to be bothered with it."""
    if is_watched():
        print(sentence, file=sys.stderr)


def print_json(value: Any) -> None:
    """One line of JSON. A msgspec.Raw inside is JSON already."""
    import msgspec

    text = msgspec.json.encode(value).decode()
    print("".join(sign if sign.isprintable() else _json_escape(sign) for sign in text))


def _json_escape(sign: str) -> str:
    """Outside of strings JSON has nothing unprintable but white space, and here not even that."""
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns within the width of the terminal, styled if rich is there to do it.

    In a pipe or a file nothing is cut, unless COLUMNS says how wide it is.
    """
    safe = [[printable(cell) for cell in row] for row in rows]
    room, below = _room(), []
    if columns[-1].goes_below and sum(_needed(columns, safe)) + _GAP * (len(columns) - 1) > room:
        columns, safe, below = columns[:-1], [row[:-1] for row in safe], [row[-1] for row in safe]
    widths = _fit(columns, safe, room)
    cut = [[_cut(cell, width) for cell, width in zip(row, widths, strict=True)] for row in safe]
    if sys.stdout.isatty() and find_spec("rich") is not None:
        lines = _styled(columns, widths, cut)
    else:
        lines = _plain(columns, widths, cut)
    print(lines[0])
    for place, line in enumerate(lines[1:]):
        print(line)
        if below:
            print(f"{' ' * _INDENT}{_clip(below[place], room - _INDENT)}")


def _room() -> int:
    """The width of the terminal, or what COLUMNS says; no limit where there is neither."""
    if sys.stdout.isatty():
        return get_terminal_size((80, 24)).columns
    told = os.environ.get("COLUMNS", "")
    return int(told) if told.isdecimal() and int(told) else sys.maxsize


def _needed(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(text) for text in (column.title, *cells)) for column, *cells in zip(columns, *rows, strict=True)]


def _fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The widths of the columns: the widest that shrinks gives first, and none below its title."""
    widths = _needed(columns, rows)
    least = [max(len(column.title), _SHORTEST) for column in columns]
    while sum(widths) + _GAP * (len(widths) - 1) > room:
        wide = [place for place, column in enumerate(columns) if column.shrinks and widths[place] > least[place]]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _cut(cell: str, width: int) -> str:
    """Without its middle: names differ at their ends."""
    if len(cell) <= width:
        return cell
    head = (width - 1) // 2
    return f"{cell[:head]}…{cell[len(cell) - (width - 1 - head) :]}"


def _clip(text: str, width: int) -> str:
    """Without its end, for a sentence."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _plain(columns: Sequence[Column], widths: Sequence[int], rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for the titles, and one for each row."""
    lines = []
    for row in ([column.title for column in columns], *rows):
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for column, width, cell in zip(columns, widths, row, strict=True)
        ]
        lines.append((" " * _GAP).join(cells).rstrip())
    return lines


def _styled(columns: Sequence[Column], widths: Sequence[int], rows: Sequence[Sequence[str]]) -> list[str]:
    """As `_plain`, with colours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column.title, width=width, no_wrap=True, justify="right" if column.right else "left")
    for row in rows:
        table.add_row(*(Text(cell, column.styles.get(cell, "")) for column, cell in zip(columns, row, strict=True)))
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()
