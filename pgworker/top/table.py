"""Tables that fit a width: columns that matter less go first, then those that may are cut. Pure.

Widths are in cells of a terminal, of which a wide character takes two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from pgworker.model.display import printable

HEADING = "reverse"

_GAP = 1
_WIDE_GAP = 2
_WIDE = 120  # from this width on there is room for more air


@dataclass(frozen=True, slots=True)
class Column:
    """`least`: how far it may be cut; 0: not at all. `gives_way`: columns with a higher number go first, 0 never.

    `keeps_end`: a cut takes the middle, as names differ at their ends; else the end.
    """

    title: str
    least: int = 0
    right: bool = False
    gives_way: int = 0
    keeps_end: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of anybody, and rich's style for it."""

    text: str
    style: str = ""


def lay_out(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> list[Text]:
    """A heading as wide as the screen, and a line for each row."""
    titles = [Cell(column.title) for column in columns]
    safe = [[Cell(printable(cell.text), cell.style) for cell in row] for row in (titles, *rows)]
    gap = _WIDE_GAP if width >= _WIDE else _GAP
    chosen = _choose(columns, safe, width, gap)
    heading, *lines = (_line(row, columns, chosen, gap, width) for row in safe)
    heading.pad_right(width - heading.cell_len)
    heading.stylize(HEADING)
    return [heading, *lines]


def _choose(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int, gap: int) -> dict[int, int]:
    """The places of the columns that stay, and their widths."""
    natural = [max(cell_len(cell.text) for cell in cells) for cells in zip(*rows, strict=True)]
    least = [
        min(wide, max(column.least, cell_len(column.title))) if column.least else wide
        for column, wide in zip(columns, natural, strict=True)
    ]
    stay = list(range(len(columns)))
    while sum(least[place] for place in stay) + gap * (len(stay) - 1) > width:
        optional = [place for place in stay if columns[place].gives_way]
        if not optional:
            break
        stay.remove(max(optional, key=lambda place: columns[place].gives_way))
    widths = {place: natural[place] for place in stay}
    while sum(widths.values()) + gap * (len(stay) - 1) > width:
        cuttable = [place for place in stay if widths[place] > least[place]]
        if not cuttable:
            break
        widest = max(cuttable, key=widths.__getitem__)
        excess = sum(widths.values()) + gap * (len(stay) - 1) - width
        others = [widths[place] for place in cuttable if place != widest]
        step = widths[widest] - max([least[widest], *(other for other in others if other < widths[widest])])
        widths[widest] -= max(1, min(excess, step))
    return widths


def _line(row: Sequence[Cell], columns: Sequence[Column], widths: dict[int, int], gap: int, width: int) -> Text:
    line = Text(no_wrap=True, overflow="crop", end="")
    for number, (place, wide) in enumerate(widths.items()):
        cell, column = row[place], columns[place]
        text = cut(cell.text, wide, keeps_end=column.keeps_end)
        blanks = " " * (wide - cell_len(text))
        line.append(" " * gap if number else "")
        line.append(f"{blanks}{text}" if column.right else f"{text}{blanks}", cell.style)
    line.truncate(width)
    return line


def cut(text: str, width: int, *, keeps_end: bool = False) -> str:
    """`text` in at most so many cells, with `…` where something is missing: at the end, or in the middle."""
    if cell_len(text) <= width:
        return text
    if width < 1:
        return ""
    tail = (width - 1) // 2 if keeps_end and width > 2 else 0
    ending = _last_cells(text, tail)
    return f"{set_cell_size(text, width - 1 - cell_len(ending)).rstrip()}…{ending}"


def _last_cells(text: str, width: int) -> str:
    """The end of `text`, in at most so many cells."""
    if not width:
        return ""
    begin = len(text)
    while begin and cell_len(text[begin - 1 :]) <= width:
        begin -= 1
    return text[begin:]
