"""The ledger notices a page that is wrong, and writes one that is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from .ledger import Ledger

EMPTY = (
    "Words.\n\n<!-- table: t -->\n\n| kind | a | b |\n| --- | --- | --- |\n\n<!-- end -->\nMore.\n"
)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(EMPTY, encoding="utf-8")
    return path


def test_what_was_written_is_right_and_nothing_else(page: Path) -> None:
    book = Ledger(page, write=True)
    book.ran("t", "one", "a")
    book.refused("t", "one", "b", "too late")
    book.save()
    assert page.read_text(encoding="utf-8") == EMPTY.replace(
        "--- |\n\n<", "--- |\n| one | yes | refused: too late |\n\n<"
    )
    again = Ledger(page, write=False)
    again.ran("t", "one", "a")
    again.refused("t", "one", "b", "too late")
    with pytest.raises(AssertionError, match="'yes', found 'no'; run LORABAKE_DOCS=write pytest"):
        Ledger(page, write=False).ran("t", "one", "a", "no")
    with pytest.raises(AssertionError, match="the page says '', found 'yes'"):
        again.ran("t", "two", "a")


def test_a_partial_run_keeps_the_other_rows_and_the_order(page: Path) -> None:
    for rows in (("one", "three"), ("one", "two"), ("new", "three")):
        book = Ledger(page, write=True)
        for row in rows:
            book.ran("t", row, "a", f"yes, {row}")
        book.save()
    text = page.read_text(encoding="utf-8")
    order = [line.split(" | ")[0][2:] for line in text.splitlines() if "yes" in line]
    assert order == ["new", "one", "two", "three"]


def test_a_new_column_and_an_empty_table(page: Path) -> None:
    page.write_text("<!-- table: u -->\n<!-- end -->\n", encoding="utf-8")
    book = Ledger(page, write=True)
    book.ran("u", "one", "c")
    book.save()
    assert "| u | c |\n| --- | --- |\n| one | yes |" in page.read_text(encoding="utf-8")


def test_two_verdicts_on_one_cell_and_a_table_that_is_not_there(page: Path) -> None:
    book = Ledger(page, write=True)
    book.ran("t", "one", "a")
    with pytest.raises(AssertionError, match="two tests found 'yes' and 'no'"):
        book.ran("t", "one", "a", "no")
    with pytest.raises(AssertionError, match="has no table x"):
        book.ran("x", "one", "a")
