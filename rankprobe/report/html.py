"""A page → report.html, one file that needs nothing else, and report.md for where Markdown is read."""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path

import jinja2

from rankprobe.experiment.store import write_atomic
from rankprobe.report.cells import Cell, Code, Table
from rankprobe.report.page import Link, Page
from rankprobe.report.style import Picture, svg


def write_report(out: Path, page: Page) -> None:
    """Write report.html and report.md into a folder; the Markdown refers to the pictures in ``figures/``.

    Parameters
    ----------
    out : Path
    page : Page
        Its strings are plain text: whatever they hold is escaped.
    """
    write_atomic(out / "report.html", _environment().get_template("report.html.j2").render(page=page))
    write_atomic(out / "report.md", _environment().get_template("report.md.j2").render(page=page))


def picture_uri(picture: Picture) -> str:
    """The picture as a data: address; inside an img its ids cannot clash with another picture's."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(picture.figure)).decode("ascii")


def markdown_text(text: str) -> str:
    """Plain text so that Markdown, also inside a table, shows just that.

    >>> markdown_text("a|b <i> [x](y) *z*")
    'a\\\\|b &lt;i&gt; [x\\\\](y) \\\\*z\\\\*'
    """
    text = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\|*`])", r"\\\1", text)
    return " ".join(text.replace("](", "\\](").split())


def markdown_cell(cell: Cell) -> str:
    """A cell on one line, its small print in brackets."""
    main = f"{cell.sign} {cell.text}".strip()
    return markdown_text(main) + (f"<br><sub>{markdown_text(cell.small)}</sub>" if cell.small else "")


def unbroken(text: str) -> str:
    """Plain text whose numbers stay with their unit and their interval on one line.

    >>> unbroken("r = 8: 77.1 % [76.0, 78.2]").split(" ")
    ['r\xa0=\xa08:', '77.1\xa0%\xa0[76.0,\xa078.2]']
    """
    text = re.sub(r"\b([rkn]) = (?=[\d−])", "\\1\u00a0=\u00a0", str(text))
    text = re.sub(r"\[([^\[\], ]+), ([^\[\], ]+)\]", "[\\1,\u00a0\\2]", text)
    return re.sub(r"(?<=\d) (?=%|points\b|ms\b)|(?<=[\d%]) (?=\[)", "\u00a0", text)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rankprobe.report"),
        autoescape=lambda name: bool(name) and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"nb": unbroken, "md": markdown_text, "md_cell": markdown_cell, "uri": picture_uri}
    for name, kind in (("table", Table), ("picture", Picture), ("link", Link), ("code", Code)):
        environment.tests[name] = lambda block, kind=kind: isinstance(block, kind)
    return environment
