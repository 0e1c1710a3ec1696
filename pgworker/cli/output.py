"""What commands print: tables that fit the terminal, JSON lines, and no control character of anybody's."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from shutil import get_terminal_size
from typing import Any

from pgworker.model.display import printable, size
from pgworker.model.durations import duration

__all__ = ["Column", "duration", "hint", "print_json", "print_table", "printable", "size"]

_GAP = 2
_SHORTEST = 6
"""Characters that a cut cell keeps at least."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. One that `shrinks` loses the middle of its cells where the terminal is too narrow."""

    title: str
    shrinks: bool = False
    right: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)
    """rich's styles for some of its cells."""


def hint(sentence: str) -> None:
    """Advice for a person, on stderr: nobody else is to be bothered with it."""
    if sys.stdout.isatty() and sys.stderr.isatty():
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
    """Aligned columns within the width of the terminal (80 when there is none), styled if rich is there to do it."""
    safe = [[printable(cell) for cell in row] for row in rows]
    widths = _fit(columns, safe, get_terminal_size((80, 24)).columns)
    cut = [[_cut(cell, width) for cell, width in zip(row, widths, strict=True)] for row in safe]
    if sys.stdout.isatty() and find_spec("rich") is not None:
        _print_styled(columns, widths, cut)
    else:
        _print_plain(columns, widths, cut)


def _fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The widths of the columns: the widest that shrinks gives first, and none below its title."""
    widths = [max(len(text) for text in (column.title, *cells)) for column, *cells in zip(columns, *rows, strict=True)]
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


def _print_plain(columns: Sequence[Column], widths: Sequence[int], rows: Sequence[Sequence[str]]) -> None:
    for row in ([column.title for column in columns], *rows):
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for column, width, cell in zip(columns, widths, row, strict=True)
        ]
        print((" " * _GAP).join(cells).rstrip())


def _print_styled(columns: Sequence[Column], widths: Sequence[int], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column.title, width=width, no_wrap=True, justify="right" if column.right else "left")
    for row in rows:
        table.add_row(*(Text(cell, column.styles.get(cell, "")) for column, cell in zip(columns, row, strict=True)))
    Console().print(table)
