"""What a study is: cells to compute, claims to judge, a figure to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from .results import MissingError, Results, Value
from .tables import Table

Settings = TypeVar("Settings")

#: What one computation depends on, beside the settings, the layers and the seed.
Cell = dict[str, Value]


VERDICTS = ("reproduces", "does not at this scale", "not measured")


class Judgement(NamedTuple):
    """Whether a claim holds here, and the figures that say so."""

    holds: bool
    figures: str


@dataclass(frozen=True)
class Claim:
    """A sentence, when it counts as reproduced, and the function that decides.

    Args:
        criterion: the condition in words, with its numbers; ``judge`` is the same in code.
        judge: may raise :class:`MissingError`.
    """

    text: str
    criterion: str
    judge: Callable[[Results], Judgement]

    def verdict(self, results: Results) -> tuple[str, str]:
        """The verdict in words, and its figures."""
        try:
            holds, figures = self.judge(results)
        except MissingError as missing:
            return VERDICTS[2], str(missing)
        return VERDICTS[0 if holds else 1], figures


@dataclass(frozen=True)
class Study(Generic[Settings]):
    """One question, and how to answer it.

    Args:
        name: on the command line, and of its files.
        title: of its section.
        text: what is done and why, in Markdown, with the papers.
        quick, full: the two settings, dataclasses of numbers, texts and tuples of them.
        kinds: of layers with which it can be run.
        cells: what there is to compute with each seed, given the settings and the layers.
        compute: one cell: the settings, the cell, the layers, the seed, and the folder for
            pictures; its figures by name.
        metric: the figure by which momentnorm's layers and torch's are compared.
        claims: given the results, since some are made for each of several data sets.
        tables: likewise.
        draw: the plot, as an SVG of the study's name in the folder.
    """

    name: str
    title: str
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
