"""Picture: a trace with a row for each step, its formula typeset, its values in tinted cells.

The tint shows how large a value is compared with the largest of its step. The number is in the
cell, so the picture can be read without colours.
"""

from __future__ import annotations

import io
import textwrap
from itertools import groupby
from typing import Any

from ..support.packages import require
from .layout import Table, heading, layout, letter
from .steps import Step
from .trace import Trace

#: Lengths in inches: the page, the column of the tables, a cell's height, a line, a gap.
_WIDTH, _LEFT, _CELL, _LINE, _GAP = 10.0, 3.7, 0.24, 0.2, 0.22
_PER_LETTER = 0.075

#: A LaTeX formula of fewer characters is a name alone, so the formula in words is shown instead.
_SHORT = 8

#: Red, green and blue of the strongest tint below and above zero.
_BELOW, _ABOVE = (0.16, 0.42, 0.75), (0.80, 0.42, 0.10)


def svg(trace: Trace, precision: int) -> bytes:
    """Content of an SVG file. Raises :class:`UserError` if matplotlib is missing."""
    return _draw(trace, "svg", precision)


def png(trace: Trace, precision: int) -> bytes:
    """Content of a PNG file. Raises :class:`UserError` if matplotlib is missing."""
    return _draw(trace, "png", precision)


def _draw(trace: Trace, form: str, precision: int) -> bytes:
    require("matplotlib", "a picture")
    import matplotlib

    with matplotlib.rc_context(
        {"svg.hashsalt": "momentnorm", "svg.fonttype": "path", "mathtext.fontset": "dejavusans"}
    ):
        return _saved(_laid_out(trace, precision), form)


def _laid_out(trace: Trace, precision: int) -> _Sheet:
    """Sheet with all steps of the trace."""
    sheet = _Sheet()
    sheet.text(0, f"{trace.layer.partition('(')[0]}, step by step", size=15, weight="bold")
    sheet.down(0.32)
    sheet.text(0, trace.summary, size=9)
    sheet.down(0.1)
    for part, steps in groupby(trace.steps, key=lambda step: step.part):
        sheet.down(0.25)
        sheet.text(0, part, size=12, weight="bold")
        sheet.down(0.27)
        for step in steps:
            _row(sheet, step, precision)
    return sheet


def _saved(sheet: _Sheet, form: str) -> bytes:
    """Content of a file in the format "svg" or "png"."""
    from matplotlib.figure import Figure

    height = sheet.y + 0.2
    figure = Figure(figsize=(sheet.right + 0.6, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.3, sheet.right + 0.3), ylim=(height - 0.1, -0.3))
    axes.set_axis_off()
    for draw_on in sheet.drawn:
        draw_on(axes)
    metadata = {"Date": None} if form == "svg" else None
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=110, metadata=metadata)
    return file.getvalue()


class _Sheet:
    """Drawing commands, collected first because the height is known only at the end."""

    def __init__(self) -> None:
        self.y = 0.0
        self.right = _WIDTH
        self.drawn: list[Any] = []

    def down(self, inches: float) -> None:
        self.y += inches

    def text(self, x: float, text: str, *, y: float | None = None, **style: Any) -> None:
        at = self.y if y is None else y
        style = {"va": "center", "size": 8.5, "color": "#1a1a1a", **style}
        # matplotlib typesets a text between dollar signs. Only formulas have them.
        self.drawn.append(lambda axes: axes.text(x, at, text, **style))

    def cell(self, x: float, y: float, width: float, tint: Any, text: str) -> None:
        from matplotlib.patches import Rectangle

        self.right = max(self.right, x + width)
        self.drawn.append(
            lambda axes: axes.add_patch(
                Rectangle((x, y), width, _CELL, facecolor=tint, edgecolor="#9a9a9a", linewidth=0.5)
            )
        )
        self.text(x + width - 0.05, text, y=y + _CELL / 2, ha="right", family="monospace", size=8)


def _row(sheet: _Sheet, step: Step, precision: int) -> None:
    top = sheet.y
    sheet.drawn.append(lambda axes: axes.plot([0, _WIDTH], [top, top], color="#d0d0d0", lw=0.7))
    sheet.text(0, step.name, y=top + 0.15, weight="bold", family="monospace", size=9)
    sheet.text(0, heading(step), y=top + 0.34, size=7.5, color="#555555")
    if step.letters or len(step.latex) < _SHORT:  # words say more than a letter
        words = textwrap.fill(step.formula, 62)
        sheet.text(0.1, words, y=top + 0.64, size=7.5)
    else:
        sheet.text(0.1, f"${step.latex}$", y=top + 0.66, size=10)
    bottom = top + 0.95
    x, y, tallest = _LEFT, top + 0.1, 0.0
    shown = layout(step, precision)
    largest = max((abs(value) for value in _finite(step)), default=0.0)
    for table in shown.tables:
        width, height = _size(table)
        if x > _LEFT and x + width > _WIDTH:
            x, y, tallest = _LEFT, y + tallest + 0.08, 0.0
        _table(sheet, step, table, x, y, largest)
        x, tallest = x + width + _GAP, max(tallest, height)
    y += tallest + 0.08
    if shown.omitted:
        sheet.text(_LEFT, shown.omitted, y=y + 0.05, size=7, color="#555555")
        y += 0.2
    sheet.y = max(bottom, y)


def _finite(step: Step) -> list[float]:
    values = step.values.detach().double().flatten()
    return [float(value) for value in values[values.isfinite()].tolist()]


def _widths(table: Table) -> tuple[float, float]:
    """Widths of the row headings and of one cell."""
    longest = max(len(cell) for row in [table.columns, *table.rows] for cell in row)
    heads = max((len(head) for head in table.row_heads), default=0)
    return heads * 0.07 + 0.06 * bool(heads), max(0.3, longest * _PER_LETTER + 0.1)


def _size(table: Table) -> tuple[float, float]:
    heads, cell = _widths(table)
    lines = len(table.rows) * _CELL + _LINE * (bool(table.title) + bool(table.columns))
    return max(heads + cell * len(table.rows[0]), len(table.title) * 0.06), lines


def _table(sheet: _Sheet, step: Step, table: Table, x: float, y: float, largest: float) -> None:
    heads, width = _widths(table)
    if table.title:
        sheet.text(x, table.title, y=y + _LINE / 2, size=7.5, color="#555555")
        y += _LINE
    if table.columns:
        for index, head in enumerate(table.columns):
            at = x + heads + (index + 1) * width - 0.05
            sheet.text(at, head, y=y + _LINE / 2, size=7.5, ha="right", color="#555555")
        y += _LINE
    for index, row in enumerate(table.rows):
        if index < len(table.row_heads):
            sheet.text(x, table.row_heads[index], y=y + _CELL / 2, size=7.5, color="#555555")
        for column, cell in enumerate(row):
            tint = _tint(step, cell, largest)
            sheet.cell(x + heads + column * width, y, width, tint, cell)
        y += _CELL


def _tint(step: Step, cell: str, largest: float) -> tuple[float, float, float]:
    """Colour of a cell: white for zero, more orange the further above it, more blue below."""
    if step.letters:
        grey = 0.97 - 0.09 * (_index(cell) % 5) if cell != "…" else 1.0
        return grey, grey, grey
    try:
        value = float(cell)
    except ValueError:
        return 1.0, 1.0, 1.0
    if value != value or not largest:
        return 1.0, 1.0, 1.0
    share = min(abs(value) / largest, 1.0) * 0.5
    end = _ABOVE if value > 0 else _BELOW
    red, green, blue = (1 - share + share * channel for channel in end)
    return red, green, blue


def _index(name: str) -> int:
    return next(index for index in range(10_000) if letter(index) == name)
