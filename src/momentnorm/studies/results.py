"""The rows of a study's CSV, and what they say together: means over seeds, with their spread."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: A value of a CSV: text stays text, whatever reads as a number is one.
Value = str | int | float
Row = dict[str, Value]


class MissingError(Exception):
    """These figures have not been measured; the message says which."""


def read_value(text: str) -> Value:
    """What a CSV's field says.

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
    """One figure, measured once with each of two seeds or more, in their order."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds, of n - 1; of a training that diverged, nan."""
        finite = all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if finite else math.nan

    def __sub__(self, other: Sample) -> Sample:
        """The differences seed by seed."""
        return Sample(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.spread:.3f}"


def is_above(high: Sample, low: Sample) -> bool:
    """Whether the means differ, in this direction, by more than the two spreads together."""
    return high.mean - low.mean > high.spread + low.spread


def agree(one: Sample, other: Sample) -> bool:
    """Whether the means differ by no more than the two spreads together (or by rounding)."""
    gap = abs(one.mean - other.mean)
    return gap <= one.spread + other.spread + 1e-6 * max(abs(one.mean), abs(other.mean))


@dataclass(frozen=True)
class Results:
    """Finished cells of one study.

    Args:
        rows: one for each cell: the kind of layers, the cell's keys, its seed, what was measured
            (empty where a cell has no such figure), and the seconds it took.
    """

    rows: Sequence[Row]

    def where(self, **keys: Value) -> Results:
        """The cells with these keys."""
        return Results([row for row in self.rows if all(row.get(k) == v for k, v in keys.items())])

    def distinct(self, key: str) -> list[Value]:
        """The values of a column, each once, in the order of the rows."""
        return list(dict.fromkeys(row[key] for row in self.rows))

    def whole(self) -> Results:
        """The cells of the seeds that are finished: no seed has more cells than these."""
        counts = collections.Counter(row["seed"] for row in self.rows)
        most = max(counts.values(), default=0)
        return Results([row for row in self.rows if counts[row["seed"]] == most])

    def sample(self, metric: str, **keys: Value) -> Sample:
        """A figure of the one cell with these keys, over the seeds.

        Raises:
            MissingError: not measured, or with one seed only, which tells nothing of the spread.
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
