"""The figures' common parts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..stylize.images import whole_file
from .layers import COLOURS, LABELS
from .results import MissingError, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@contextlib.contextmanager
def figure(path: Path, columns: int, rows: int = 1) -> Iterator[list[Axes]]:
    """Panels, row by row, saved as an SVG that is the same file for the same figures."""
    # Identifiers are random and the date is now, unless told otherwise.
    with rc_context({"svg.hashsalt": "momentnorm", "font.size": 9}):
        drawn = Figure(figsize=(3.8 * columns + 0.9, 3.2 * rows), layout="constrained")
        FigureCanvasAgg(drawn)
        panels: list[Axes] = list(drawn.subplots(rows, columns, squeeze=False).flat)
        yield panels
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        # All panels have the same series: one legend, beside them.
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside right center", frameon=False)
        with whole_file(path) as file:
            drawn.savefig(file, format="svg", metadata={"Date": None})


def lines(panel: Axes, results: Results, metric: str, along: str) -> None:
    """One line for each norm, with the spread over the seeds; a logarithmic axis of numbers."""
    ticks = sorted({float(value) for value in results.distinct(along)})
    for norm in _norms(results):
        found = results.where(norm=norm)
        points = []
        for value in sorted(found.distinct(along), key=float):
            with contextlib.suppress(MissingError):
                points.append((float(value), found.sample(metric, **{along: value})))
        panel.errorbar(
            [x for x, _ in points],
            [sample.mean for _, sample in points],
            yerr=[sample.spread for _, sample in points],
            color=COLOURS[norm],
            label=LABELS[norm],
            marker="o",
            markersize=3,
            capsize=2,
        )
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def metrics(panel: Axes, results: Results, names: Sequence[str], captions: Sequence[str]) -> None:
    """One line for each norm through several figures of the same cell."""
    for norm in _norms(results):
        found = results.where(norm=norm)
        means, spreads = [], []
        for name in names:
            try:
                sample = found.sample(name)
                means.append(sample.mean)
                spreads.append(sample.spread)
            except MissingError:
                means.append(math.nan)
                spreads.append(math.nan)
        panel.errorbar(
            range(len(names)),
            means,
            yerr=spreads,
            color=COLOURS[norm],
            label=LABELS[norm],
            marker="o",
            markersize=3,
            capsize=2,
        )
    panel.set_xticks(range(len(names)), captions)


def _norms(results: Results) -> list[str]:
    found = results.distinct("norm")
    return [norm for norm in LABELS if norm in found]
