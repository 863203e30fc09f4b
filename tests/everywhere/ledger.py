"""What the tests found out, held against the tables of docs/replay.md or written into them."""

from __future__ import annotations

import re
from pathlib import Path

ADVICE = "run LORABAKE_DOCS=write pytest tests/everywhere"

Table = dict[str, dict[str, str]]
"""Row → column → cell, in the order of the page."""


class Ledger:
    """The tables of a page, between `<!-- table: NAME -->` and `<!-- end -->`.

    Args:
        page: The Markdown file.
        write: Take down what ran, for `save`, instead of comparing it.
    """

    def __init__(self, page: Path, *, write: bool) -> None:
        self._page, self._write = page, write
        self._corners: dict[str, str] = {}
        self._columns: dict[str, list[str]] = {}
        self._tables: dict[str, Table] = {}
        self._seen: dict[tuple[str, str, str], str] = {}
        self._last: dict[str, str] = {}
        for name, body in _blocks(page.read_text(encoding="utf-8")):
            self._parse(name, body)

    def ran(self, table: str, row: str, column: str, text: str = "yes") -> None:
        """This works, with what must be said of it."""
        self._record(table, row, column, text)

    def refused(self, table: str, row: str, column: str, text: str) -> None:
        """This is refused by an error that says so."""
        self._record(table, row, column, f"refused: {text}")

    def save(self) -> None:
        """Write the tables into the page; rows that did not run stay as they are."""
        touched = {table for table, _, _ in self._seen}
        if self._write and touched:
            text = self._page.read_text(encoding="utf-8")
            for name, body in _blocks(text):
                if name in touched:
                    text = text.replace(_block(name, body), _block(name, self._show(name)))
            self._page.write_text(text, encoding="utf-8")

    def _record(self, table: str, row: str, column: str, text: str) -> None:
        place = f"{self._page.name}, table {table}, {row} × {column}"
        assert table in self._tables, f"{self._page.name} has no table {table}"
        assert not set("|\n") & set(row + column + text), f"{place}: no bars, no line breaks"
        before = self._seen.setdefault((table, row, column), text)
        assert before == text, f"{place}: two tests found {before!r} and {text!r}"
        if self._write:
            self._take(table, row, column, text)
        else:
            says = self._tables[table].get(row, {}).get(column, "")
            assert says == text, f"{place}: the page says {says!r}, found {text!r}; {ADVICE}"

    def _take(self, table: str, row: str, column: str, text: str) -> None:
        """Enter a cell; a new row goes below the one that was recorded before it."""
        rows = self._tables[table]
        if row not in rows:
            order = list(rows)
            last = self._last.get(table)
            place = order.index(last) + 1 if last is not None else 0
            order.insert(place, row)
            self._tables[table] = rows = {name: rows.get(name, {}) for name in order}
        if column not in self._columns[table]:
            self._columns[table].append(column)
        rows[row][column] = text
        self._last[table] = row

    def _parse(self, name: str, body: str) -> None:
        lines = [[c.strip() for c in line.strip("|").split("|")] for line in body.splitlines()]
        self._corners[name], *self._columns[name] = lines[0] if lines else [name]
        self._tables[name] = {
            row: dict(zip(self._columns[name], cells, strict=True)) for row, *cells in lines[2:]
        }

    def _show(self, name: str) -> str:
        columns, rows = self._columns[name], self._tables[name]
        lines = [[self._corners[name], *columns], ["---"] * (1 + len(columns))]
        lines += [[row, *(cells.get(c, "") for c in columns)] for row, cells in rows.items()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _block(name: str, body: str) -> str:
    inner = f"\n{body}\n\n" if body else ""
    return f"<!-- table: {name} -->\n{inner}<!-- end -->"


def _blocks(text: str) -> list[tuple[str, str]]:
    pattern = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)
    return [(m[1], m[2].strip("\n")) for m in pattern.finditer(text)]
