"""Tables: means and spreads, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .layers import LABELS
from .results import MissingError, Results, Value


class Table(NamedTuple):
    """Table of text with a heading for each column."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.heading, ["---"] * len(self.heading), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.title}:\n\n{table}\n" if self.title else f"{table}\n"


def pivot(title: str, results: Results, metric: str, along: str) -> Table:
    """Table with a row for each norm and a column for each value of the key ``along``."""
    values = sorted(results.distinct(along), key=float)
    norms = [norm for norm in LABELS if norm in results.distinct("norm")]
    rows = [
        [LABELS[norm], *(_text(results, metric, {"norm": norm, along: x}) for x in values)]
        for norm in norms
    ]
    return Table(title, [along, *map(str, values)], rows)


def overview(title: str, results: Results, metrics: dict[str, str], along: str = "norm") -> Table:
    """Table with a row for each metric, by its caption; a column for each value of ``along``."""
    values = results.distinct(along)
    rows = [
        [caption, *(_text(results, metric, {along: value}) for value in values)]
        for metric, caption in metrics.items()
    ]
    return Table(title, ["", *(LABELS.get(str(value), str(value)) for value in values)], rows)


def _text(results: Results, metric: str, keys: dict[str, Value]) -> str:
    """Mean and spread of one cell, or nothing where it was not measured."""
    try:
        return str(results.sample(metric, **keys))
    except MissingError:
        return ""
