"""Somebody's words in Markdown."""

from __future__ import annotations

import re


def plain(words: str) -> str:
    """Somebody's words as Markdown that shows just these, in one line."""
    return re.sub(r"([\\`*_\[\]<>&|~#$!{}])", r"\\\1", one_line(words))


def code(words: str) -> str:
    """Somebody's words as a Markdown code span, in one line."""
    line = one_line(words)
    runs = re.findall("`+", line)
    fence, gap = "`" * (max(map(len, runs), default=0) + 1), " " if runs else ""
    return f"{fence}{gap}{line}{gap}{fence}"


def one_line(words: str) -> str:
    """Somebody's words without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())
