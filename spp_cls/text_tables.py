"""Tables as text: for the terminal, in Markdown and as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from spp_cls.errors import UserError

# Title, header and rows of cells.
Table = tuple[str, Sequence[str], list[list[str]]]


def as_text(table: Table, form: str) -> str:
    """Lay a table out for the terminal, or as markdown or csv.

    Raises:
        UserError: another form.
    """
    title, header, rows = table
    if form == "terminal":
        return f"{title}\n{terminal_table(header, rows)}"
    if form == "markdown":
        lines = [header, ["---" if column == 0 else "---:" for column in range(len(header))], *rows]
        return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if form == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
        return f"# {title}\n{buffer.getvalue()}".rstrip()
    raise UserError(f"format is terminal, markdown or csv, not {form!r}")


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay rows out in columns; those of numbers stand to the right."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [all(_is_number(row[column]) for row in cells[1:]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("+-").replace(".", "", 1).isdigit()
