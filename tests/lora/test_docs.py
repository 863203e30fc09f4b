"""docs/loras.md has what the tests read, and every family."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lorabake.lora import dialects, families

from .layouts import LAYOUTS

PAGE = Path(__file__).parents[2] / "docs" / "loras.md"
_TABLE = re.compile(r"(<!-- table: layouts -->\n\n)(.*?)(\n*<!-- end -->)", re.DOTALL)


def table() -> str:
    """Dialects × families; the number of layouts in each cell."""
    names = [family.name for family in families.MEMBERS]
    lines = [["", *names], ["---"] * (1 + len(names))]
    for dialect in dialects.MEMBERS:
        found = [
            sum((x.dialect, x.family) == (dialect.name, name) for x in LAYOUTS.values())
            for name in names
        ]
        lines.append([dialect.name, *(str(count or "") for count in found)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_the_page_shows_the_layouts() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("LORABAKE_DOCS") == "write":
        PAGE.write_text(_TABLE.sub(rf"\g<1>{table()}\n\n<!-- end -->", text), encoding="utf-8")
        text = PAGE.read_text(encoding="utf-8")
    found = _TABLE.search(text)
    assert found is not None
    assert found[2] == table(), "run LORABAKE_DOCS=write pytest tests/lora/test_docs.py"


def test_the_page_shows_the_families() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for family in families.MEMBERS:
        hub = f"`{family.hub_id}`" if family.hub_id else ""
        row = f"| `{family.name}` | {family.title} | {hub}".rstrip()
        assert row in text
