"""What the blocks of a page are made of; the templates only lay it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A table's cell: what it says, a remark in small print below, and for a verdict its kind and sign."""

    text: str
    small: str = ""
    verdict: str = ""
    sign: str = ""


@dataclass(frozen=True)
class Table:
    """Heads, rows of cells, and a caption with n and how intervals were made; text columns come first, then numbers."""

    heads: list[str]
    rows: list[list[Cell]]
    caption: str
    text_columns: int = 1


@dataclass(frozen=True)
class Code:
    """Text to copy, as it stands."""

    text: str
