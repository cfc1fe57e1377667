"""Layout: the values of a step as small tables of aligned numbers."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from torch import Tensor

from .steps import Step, Worked
from .values import count_not_finite, finite_range

#: Numbers of tables, rows and columns up to which a step is shown whole.
WHOLE = (8, 8, 8)
#: Numbers of tables, rows and columns that are shown of a larger step, beside a summary.
CLIPPED = (2, 5, 6)

#: Relative rounding error of float32. Numbers that differ by less, such as 0.3 in float32 and in
#: float64, are written alike.
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
    """One matrix of the values of a step, as text. Title and headings may be empty."""

    title: str
    columns: list[str]
    row_heads: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Layout:
    """Tables of a step, and a sentence about the values that they omit, or ""."""

    tables: list[Table]
    omitted: str


def letter(index: int) -> str:
    """Letters of a label: A, B, ... Z, AA, AB ..."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(65 + rest) + name
    return name


def _decimals(values: list[float], precision: int) -> int | None:
    """Decimals that show every number exactly, up to ``precision``. None asks for exponents."""
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
    # -0.00 is written as 0.00.
    return text.lstrip("-") if not any(digit in "123456789" for digit in text) else text


def number(value: float, precision: int) -> str:
    """One number as text, without trailing zeros."""
    return _written(value, _decimals([value], precision), precision)


def worked(example: Worked, precision: int) -> str:
    """Worked example as text. "(1)^2" becomes "1^2", and "+ -3" becomes "- 3"."""
    text = example.text.format(*(number(value, precision) for value in example.numbers))
    text = re.sub(r"(?<!\w)\(([\d.]+)\)\^", r"\1^", text)
    return text.replace("+ -", "- ").replace("- -", "+ ")


def heading(step: Step) -> str:
    """Axes, shape and unit of a step, such as "(N, C) = (2, 2), in units of x"."""
    if step.shape:
        text = f"({', '.join(step.axes)}) = ({', '.join(map(str, step.shape))})"
    else:
        text = "one number"
    return f"{text}, {_UNITS[step.unit]}" if step.unit else text


def _headings(axis: str, size: int) -> list[str]:
    """Headings along an axis. An axis such as "in/ln/bn" names each of its entries."""
    if "/" in axis:
        return axis.split("/")[:size]
    word = _WORDS.get(axis)
    return [f"{word} {index}" for index in range(size)] if word else []


def layout(step: Step, precision: int) -> Layout:
    """Tables of a step. The last two axes are the rows and columns of a table."""
    values, axes = step.values, step.axes
    while values.dim() < 2:
        values, axes = values.unsqueeze(0), ("", *axes)
    *leading, height, width = values.shape
    size = math.prod(leading), height, width
    fits = all(have <= room for have, room in zip(size, WHOLE, strict=True))
    tables_shown, rows, columns = (
        size if fits else (min(pair) for pair in zip(size, CLIPPED, strict=True))
    )
    places = itertools.product(*(range(length) for length in leading))
    cells = {
        place: values[place][:rows, :columns].double().tolist()
        for place in itertools.islice(places, tables_shown)
    }
    flat = [value for table in cells.values() for row in table for value in row]
    decimals = _decimals(flat, precision)

    def written(value: float) -> str:
        return letter(int(value)) if step.letters else _written(value, decimals, precision)

    tables = []
    for place, table in cells.items():
        title = ", ".join(
            f"{_WORDS.get(axis, axis)} {index}" for axis, index in zip(axes, place, strict=False)
        )
        lines = [[*map(written, row), *["…"] * (columns < width)] for row in table]
        if rows < height:
            lines.append(["…"] * len(lines[0]))
        across, down = _headings(axes[-1], columns), _headings(axes[-2], rows)
        tables.append(Table(title, across, down, lines))
    omitted = "" if len(flat) == values.numel() else _summary(step, len(flat), precision)
    return Layout(tables, omitted)


def _summary(step: Step, shown: int, precision: int) -> str:
    """Sentence about a step of which ``shown`` values are in the tables."""
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
