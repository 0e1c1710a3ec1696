"""Tables of `pgworker top` fit whatever there is in them into whatever width there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some
from rich.cells import cell_len

from pgworker.top.table import Cell, Column, cut, lay_out

HOSTILE = some.text(some.sampled_from("ab \n\r\t\x1b[31m\u202e\u0301漢🙂[red]…"), max_size=60)
COLUMNS = (
    Column("NAME", least=6),
    Column("N", right=True),
    Column("WHAT", gives_way=1),
    Column("WHY", least=5, keeps_end=False),
)


@given(some.lists(some.tuples(HOSTILE, HOSTILE, HOSTILE, HOSTILE), max_size=4), some.integers(1, 200))
def test_no_line_is_wider_than_the_screen_or_moves_the_cursor(rows: list[tuple[str, ...]], width: int) -> None:
    lines = lay_out(COLUMNS, [[Cell(text) for text in row] for row in rows], width)
    assert len(lines) == len(rows) + 1
    for line in lines:
        assert line.cell_len <= width
        assert line.plain.isprintable()


@given(HOSTILE, some.integers(0, 80), some.booleans())
def test_what_is_cut_is_no_wider_than_asked_and_says_that_something_is_missing(
    text: str, width: int, keeps_end: bool
) -> None:
    shown = cut(text, width, keeps_end=keeps_end)
    assert cell_len(shown) <= width
    assert shown == text if cell_len(text) <= width else "…" in shown or width == 0


def test_names_lose_their_middle_and_sentences_their_end() -> None:
    assert cut("shop.orders.send_confirmation", 15, keeps_end=True) == "shop.or…rmation"
    assert cut("no such order", 8) == "no such…"


def test_a_column_that_matters_less_goes_before_one_that_matters_more_is_cut_below_its_least() -> None:
    row = [Cell("a-long-name-of-a-host"), Cell("7"), Cell("0123456789"), Cell("because of something")]
    wide, narrow = lay_out(COLUMNS, [row], 80)[1].plain, lay_out(COLUMNS, [row], 20)[1].plain
    assert wide.split() == ["a-long-name-of-a-host", "7", "0123456789", "because", "of", "something"]
    assert "0123456789" not in narrow
    assert " 7 " in narrow


def test_markup_of_anybody_is_text() -> None:
    [_, line] = lay_out([Column("A")], [[Cell("[red]x[/red]")]], 80)
    assert line.plain == "[red]x[/red]"
    assert line.spans == []
