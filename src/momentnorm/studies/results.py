"""Results: the rows of a study's CSV, and means over the seeds with their spread."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Value of a CSV's field: a number if it reads as one, text otherwise.
Value = str | int | float

#: Row of a CSV: a value for each column's name.
Row = dict[str, Value]


class MissingError(Exception):
    """Figures that have not been measured. The message names them."""


def read_value(text: str) -> Value:
    """Value of a CSV's field.

    >>> read_value("8"), read_value("0.5"), read_value("IN")
    (8, 0.5, 'IN')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True)
class Sample:
    """Figure that was measured with two seeds or more, in the order of the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over n seeds, divided by n - 1. NaN if a training diverged."""
        finite = all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if finite else math.nan

    def __sub__(self, other: Sample) -> Sample:
        """Differences, seed by seed."""
        return Sample(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.spread:.3f}"


def is_above(high: Sample, low: Sample) -> bool:
    """Whether the first mean is above the second by more than the sum of the two spreads."""
    return high.mean - low.mean > high.spread + low.spread


def agree(one: Sample, other: Sample) -> bool:
    """Whether the means differ by at most the sum of the two spreads, or by rounding."""
    gap = abs(one.mean - other.mean)
    return gap <= one.spread + other.spread + 1e-6 * max(abs(one.mean), abs(other.mean))


@dataclass(frozen=True)
class Results:
    """Finished cells of one study.

    Args:
        rows: one for each cell: the kind of layers, the cell's keys, its seed, its figures (empty
            where a cell has no such figure), and its seconds.
    """

    rows: Sequence[Row]

    def where(self, **keys: Value) -> Results:
        """Cells with these keys."""
        return Results([row for row in self.rows if all(row.get(k) == v for k, v in keys.items())])

    def distinct(self, key: str) -> list[Value]:
        """Distinct values of a column, in the order of the rows."""
        return list(dict.fromkeys(row[key] for row in self.rows))

    def whole(self) -> Results:
        """Cells of the finished seeds, which are those with the largest number of cells."""
        counts = collections.Counter(row["seed"] for row in self.rows)
        most = max(counts.values(), default=0)
        return Results([row for row in self.rows if counts[row["seed"]] == most])

    def sample(self, metric: str, **keys: Value) -> Sample:
        """Figure of the one cell with these keys, over the seeds.

        Raises:
            MissingError: it was measured with fewer than two seeds, so it has no spread.
            ValueError: several cells have these keys.
        """
        found = [row for row in self.where(**keys).rows if row.get(metric, "") != ""]
        found.sort(key=lambda row: float(row["seed"]))
        seeds = {row["seed"] for row in found}
        if len(seeds) != len(found):
            raise ValueError(f"{metric} of {keys} is more than one cell's: name more keys")
        if len(found) < 2:
            what = " ".join(str(value) for value in keys.values())
            raise MissingError(f"{metric} of {what}: {len(found)} seeds of at least 2")
        return Sample(tuple(float(row[metric]) for row in found))
