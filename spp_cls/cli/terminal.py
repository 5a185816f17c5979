"""Tables as text: for the terminal, in Markdown and as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from spp_cls.cli.errors import UserError

# Title, header and rows of cells.
Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]


def format_as(table: Table, form: str) -> str:
    """Lay a table out for the terminal, or as markdown or csv.

    Raises:
        UserError: if the form is another.
    """
    title, header, rows = table
    if form == "terminal":
        return f"{title}\n{format_table(header, rows)}"
    if form == "markdown":
        return f"**{title}**\n\n{_lay_out(header, rows, 'pipe')}"
    if form == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([header, *map(_to_text, rows)])
        return f"# {title}\n{buffer.getvalue()}".rstrip()
    raise UserError(f"format is terminal, markdown or csv, not {form!r}")


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay rows out in columns, those without a letter to the right; floats get two decimals."""
    return _lay_out(header, rows, "simple")


def _lay_out(header: Sequence[str], rows: Sequence[Sequence[Any]], style: str) -> str:
    cells = [_to_text(row) for row in rows]
    has_letters = [any(map(str.isalpha, "".join(row[column] for row in cells))) for column in range(len(header))]
    alignment = ["left" if letters else "right" for letters in has_letters]
    # Names such as 1e3 stay as they are.
    text = tabulate(cells, header, style, disable_numparse=True, colalign=alignment)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _to_text(row: Sequence[Any]) -> list[str]:
    return [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row]
