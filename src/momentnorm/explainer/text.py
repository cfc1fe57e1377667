"""Text: a trace as lines, plain or with colours for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from .layout import Table, heading, layout, worked
from .steps import Step
from .trace import Trace

if TYPE_CHECKING:
    from rich.text import Text

#: A line and its kind, which is a key of ``_STYLES`` or "".
Line = tuple[str, str]

WIDTH = 96

#: Style of each kind of line. Colours repeat what the words say.
_STYLES = {
    "title": "bold",
    "part": "bold cyan",
    "name": "bold",
    "formula": "italic",
    "worked": "green",
    "note": "yellow",
    "head": "dim",
    "check": "green",
}


def plain(trace: Trace, precision: int, width: int = WIDTH) -> str:
    """Plain text of a trace, in lines of at most ``width`` characters."""
    return "\n".join(text.rstrip() for text, _ in lines(trace, precision, width)) + "\n"


def rich_lines(trace: Trace, precision: int, width: int) -> Iterator[Text]:
    """Lines of a trace with the styles of the package rich."""
    from rich.text import Text

    for text, kind in lines(trace, precision, width):
        yield Text(text, style=_STYLES.get(kind, ""), no_wrap=True, overflow="ignore")


def lines(trace: Trace, precision: int, width: int) -> Iterator[Line]:
    """Lines of a trace, from top to bottom."""
    width = max(width, 40)
    yield from _wrapped(trace.layer, "title", width)
    yield from _wrapped(trace.summary, "", width)
    for note in trace.notes:
        yield from _wrapped(f"note: {note}", "note", width)
    for part, steps in groupby(trace.steps, key=lambda step: step.part):
        yield "", ""
        yield f"── {part} ".ljust(width, "─"), "part"
        for step in steps:
            yield "", ""
            yield from _step(step, precision, width)
    yield "", ""
    yield "── Checked ".ljust(width, "─"), "part"
    yield "", ""
    for check in trace.checks:
        yield from _wrapped(check.text, "check", width, "  ok  ", "      ")


def _wrapped(
    text: str, kind: str, width: int, first: str = "", later: str | None = None
) -> Iterator[Line]:
    """Text in lines of one kind. The first line and the later lines have an indent each."""
    later = " " * len(first) if later is None else later
    for line in textwrap.wrap(text, width, initial_indent=first, subsequent_indent=later):
        yield line, kind


def _step(step: Step, precision: int, width: int) -> Iterator[Line]:
    yield from _wrapped(f"{step.name}   {heading(step)}", "name", width, "", "  ")
    yield from _wrapped(step.formula, "formula", width, "  ")
    if step.worked is not None:
        yield from _wrapped(worked(step.worked, precision), "worked", width, "  first: ")
    if step.note:
        yield from _wrapped(step.note, "note", width, "  ")
    found = layout(step, precision)
    yield from side_by_side(found.tables, width)
    if found.omitted:
        yield from _wrapped(found.omitted, "note", width, "  ")


def _table(table: Table) -> list[Line]:
    """Table as lines of equal length, with its title first."""
    heads = max((len(head) for head in table.row_heads), default=0)
    cells = [table.columns, *table.rows] if table.columns else table.rows
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(len(table.rows[0]))]
    drawn: list[Line] = [(table.title, "head")] if table.title else []

    def line(head: str, row: list[str]) -> str:
        fields = [head.ljust(heads)] if heads else []
        return "  ".join([*fields, *(cell.rjust(w) for cell, w in zip(row, widths, strict=False))])

    if table.columns:
        drawn.append((line("", table.columns), "head"))
    for index, row in enumerate(table.rows):
        head = table.row_heads[index] if index < len(table.row_heads) else ""
        drawn.append((line(head, row), ""))
    longest = max(len(text) for text, _ in drawn)
    return [(text.ljust(longest), kind) for text, kind in drawn]


def side_by_side(tables: list[Table], width: int) -> Iterator[Line]:
    """Lines of several tables, with as many tables in a row as ``width`` holds."""
    gap, indent = "     ", "    "
    rest = [_table(table) for table in tables]
    while rest:
        row, used = [rest.pop(0)], 0
        used = len(indent) + len(row[0][0][0])
        while rest and used + len(gap) + len(rest[0][0][0]) <= width:
            used += len(gap) + len(rest[0][0][0])
            row.append(rest.pop(0))
        for parts in zip(*row, strict=True):
            yield indent + gap.join(text for text, _ in parts), parts[0][1]
        if rest:
            yield "", ""
