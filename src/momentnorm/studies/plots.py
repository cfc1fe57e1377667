"""Plots: figures with panels, and lines with error bars for each norm."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..support.files import write_file
from .layers import COLOURS, LABELS
from .results import MissingError, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@contextlib.contextmanager
def figure(path: Path, columns: int, rows: int = 1) -> Iterator[list[Axes]]:
    """Give panels, row by row, and save them as an SVG. Equal plots give equal files."""
    # A fixed salt and no date: by default the identifiers are random and the date is now.
    with rc_context({"svg.hashsalt": "momentnorm", "font.size": 9}):
        drawn = Figure(figsize=(3.8 * columns + 0.9, 3.2 * rows), layout="constrained")
        FigureCanvasAgg(drawn)
        panels: list[Axes] = list(drawn.subplots(rows, columns, squeeze=False).flat)
        yield panels
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        # All panels show the same series, so one legend beside them is enough.
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside right center", frameon=False)
        content = io.BytesIO()
        drawn.savefig(content, format="svg", metadata={"Date": None})
        write_file(path, content.getvalue())


def lines(panel: Axes, results: Results, metric: str, along: str) -> None:
    """Draw a metric against a numeric key on a logarithmic axis, with a line for each norm."""
    ticks = sorted({float(value) for value in results.distinct(along)})
    for norm in _norms(results):
        found = results.where(norm=norm)
        points = []
        for value in sorted(found.distinct(along), key=float):
            with contextlib.suppress(MissingError):
                sample = found.sample(metric, **{along: value})
                points.append((float(value), sample.mean, sample.spread))
        _line(panel, norm, points)
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def metrics(panel: Axes, results: Results, names: Sequence[str], captions: Sequence[str]) -> None:
    """Draw several metrics of one cell side by side, joined by a line for each norm."""
    for norm in _norms(results):
        found = results.where(norm=norm)
        points = []
        for place, name in enumerate(names):
            try:
                sample = found.sample(name)
                points.append((place, sample.mean, sample.spread))
            except MissingError:
                points.append((place, math.nan, math.nan))  # leaves a gap in the line
        _line(panel, norm, points)
    panel.set_xticks(range(len(names)), captions)


def _line(panel: Axes, norm: str, points: Iterable[tuple[float, float, float]]) -> None:
    """Draw the line of a norm through points (place, mean, spread)."""
    places, means, spreads = zip(*points, strict=True) if points else ((), (), ())
    panel.errorbar(
        places,
        means,
        yerr=spreads,
        color=COLOURS[norm],
        label=LABELS[norm],
        marker="o",
        markersize=3,
        capsize=2,
    )


def _norms(results: Results) -> list[str]:
    """Norms of the results, in the order of the labels."""
    found = results.distinct("norm")
    return [norm for norm in LABELS if norm in found]
