"""How values are laid out for reading: as small tables of aligned numbers, and never too many."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from torch import Tensor

from .trace import Step, Worked, count_not_finite, finite_range

#: A step within these is shown whole: so many tables, rows and columns.
WHOLE = (8, 8, 8)
#: Of any other step, so much is shown, and a summary.
CLIPPED = (2, 5, 6)

#: Half a rounding of float32: what 0.3 may be off by where it is one.
_FLOAT32 = 6e-8

_WORDS = {"N": "sample", "C": "channel", "D": "slice"}

_UNITS = {
    "x": "in units of x",
    "x^2": "in units of x squared",
    "std": "in standard deviations",
    "1/x": "per unit of x",
    "1/x^2": "per unit of x squared",
}


@dataclass(frozen=True)
class Table:
    """One matrix of a step's values, as text. Headings may be empty."""

    title: str
    columns: list[str]
    row_heads: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Layout:
    """The tables of a step, and a sentence about what they leave out, if anything."""

    tables: list[Table]
    omitted: str


def letter(index: int) -> str:
    """A, B, ... Z, AA, AB ..."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(65 + rest) + name
    return name


def _decimals(values: list[float], precision: int) -> int | None:
    """So many that every number is exact, at most ``precision``; None for powers of ten."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if sizes and (max(sizes) >= 1e7 or max(sizes) < 10.0**-precision):
        return None
    for decimals in range(precision):
        if all(abs(size - round(size, decimals)) <= _FLOAT32 * size for size in sizes):
            return decimals
    return precision


def _written(value: float, decimals: int | None, precision: int) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if decimals is None:
        return f"{value:.{precision}e}"
    text = f"{value:.{decimals}f}"
    # A zero with a sign says less than one without.
    return text.lstrip("-") if not any(digit in "123456789" for digit in text) else text


def number(value: float, precision: int) -> str:
    """One number by itself, without zeros that say nothing."""
    return _written(value, _decimals([value], precision), precision)


def worked(example: Worked, precision: int) -> str:
    """The formula with its numbers, and no sign or parenthesis that says nothing."""
    text = example.text.format(*(number(value, precision) for value in example.numbers))
    text = re.sub(r"(?<!\w)\(([\d.]+)\)\^", r"\1^", text)
    return text.replace("+ -", "- ").replace("- -", "+ ")


def heading(step: Step) -> str:
    """Such as "(N, C) = (2, 2), in units of x"."""
    if step.shape:
        text = f"({', '.join(step.axes)}) = ({', '.join(map(str, step.shape))})"
    else:
        text = "one number"
    return f"{text}, {_UNITS[step.unit]}" if step.unit else text


def _headings(axis: str, size: int) -> list[str]:
    if "/" in axis:
        return axis.split("/")[:size]
    word = _WORDS.get(axis)
    return [f"{word} {index}" for index in range(size)] if word else []


def layout(step: Step, precision: int) -> Layout:
    """The values of a step as tables: the last two axes are rows and columns of one."""
    values = step.values
    axes = step.axes if values.dim() else ("",)
    values = values.reshape(1) if not values.dim() else values
    while values.dim() < 2:
        values, axes = values.unsqueeze(0), ("", *axes)
    *leading, height, width = values.shape
    size = math.prod(leading), height, width
    fits = all(have <= room for have, room in zip(size, WHOLE, strict=True))
    tables_shown, rows, columns = (
        size if fits else (min(pair) for pair in zip(size, CLIPPED, strict=True))
    )
    places = itertools.product(*(range(length) for length in leading))
    shown = list(itertools.islice(places, tables_shown))
    cells = {place: values[place][:rows, :columns].double().tolist() for place in shown}
    flat = [value for table in cells.values() for row in table for value in row]
    decimals = _decimals(flat, precision)
    tables = []
    for place in shown:
        title = ", ".join(
            f"{_WORDS.get(axis, axis)} {index}" for axis, index in zip(axes, place, strict=False)
        )
        if step.letters:
            lines = [[letter(int(value)) for value in row] for row in cells[place]]
        else:
            lines = [
                [_written(value, decimals, precision) for value in row] for row in cells[place]
            ]
        if columns < width:
            lines = [[*line, "…"] for line in lines]
        if rows < height:
            lines.append(["…"] * len(lines[0]))
        across, down = _headings(axes[-1], columns), _headings(axes[-2], rows)
        tables.append(Table(title, across, down, lines))
    omitted = "" if len(flat) == values.numel() else _summary(step, len(flat), precision)
    return Layout(tables, omitted)


def _summary(step: Step, shown: int, precision: int) -> str:
    values: Tensor = step.values
    text = f"{shown} of {values.numel()} values are shown"
    found = None if step.letters else finite_range(values)
    if found is None:
        return text
    least, largest, mean, deviation = (number(value, precision) for value in found)
    strange = count_not_finite(values)
    return (
        f"{text}; of all{', but for ' + strange if strange else ''}: least {least}, "
        f"largest {largest}, mean {mean}, standard deviation {deviation}"
    )
