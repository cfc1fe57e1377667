"""Study: cells to compute, claims to judge, tables and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from .results import MissingError, Results, Value
from .tables import Table

Settings = TypeVar("Settings")

#: Keys of one cell. A cell is one training, which depends on its keys, the settings, the kind of
#: layers and the seed.
Cell = dict[str, Value]

#: Verdicts on a claim.
REPRODUCED, NOT_REPRODUCED, NOT_MEASURED = VERDICTS = (
    "reproduced",
    "not reproduced at this scale",
    "not measured",
)


class Judgement(NamedTuple):
    """Outcome of a claim: whether it holds for these results, and the figures that decide."""

    holds: bool
    figures: str


@dataclass(frozen=True)
class Claim:
    """Claim about norms, and its criterion.

    Args:
        text: the claim, one sentence.
        criterion: the condition under which it counts as reproduced, in words and numbers.
        judge: the criterion as a function. It may raise :class:`MissingError`.
    """

    text: str
    criterion: str
    judge: Callable[[Results], Judgement]

    def verdict(self, results: Results) -> tuple[str, str]:
        """Verdict of :data:`VERDICTS`, and the figures that decide."""
        try:
            holds, figures = self.judge(results)
        except MissingError as missing:
            return NOT_MEASURED, str(missing)
        return REPRODUCED if holds else NOT_REPRODUCED, figures


@dataclass(frozen=True)
class Study(Generic[Settings]):
    """Experiment on a question about norms.

    Args:
        name: on the command line, and of its files.
        title: heading of its section on the page.
        question: one line for ``--list``.
        minutes: minutes of one core for the quick and the full setting, with the default seeds.
        text: description in Markdown, with the papers.
        quick, full: the two settings, dataclasses of numbers, texts and tuples of them.
        kinds: kinds of layers with which it can be run.
        cells: cells to compute with each seed, from the settings and the kind of layers.
        compute: figures of one cell by name, from the settings, the cell, the kind of layers, the
            seed and the folder for pictures.
        metric: figure by which momentnorm's layers and torch's are compared.
        claims: claims, from the results, since some are made for each of several data sets.
        tables: tables, from the results.
        draw: function that draws the plot as ``NAME.svg`` in a folder.
    """

    name: str
    title: str
    question: str
    minutes: tuple[int, int]
    text: str
    quick: Settings
    full: Settings
    kinds: tuple[str, ...]
    cells: Callable[[Settings, str], list[Cell]]
    compute: Callable[[Settings, Cell, str, int, Path], dict[str, float]]
    metric: str
    claims: Callable[[Results], Sequence[Claim]]
    tables: Callable[[Results], Sequence[Table]]
    draw: Callable[[Results, Path], None]


AnyStudy = Study[Any]
