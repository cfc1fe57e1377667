"""Pictures of the measurements: by layer before training and after, and an animation."""

from __future__ import annotations

import io
import math
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .measure import MEASURES, Activations, Course

#: Colour, marker and line style of each norm. Colour or marker alone tells the norms apart.
_LOOKS: dict[str, dict[str, Any]] = {
    "none": {"color": "#000000", "marker": "x", "linestyle": "-"},
    "batch": {"color": "#0072b2", "marker": "s", "linestyle": "--"},
    "layer": {"color": "#d55e00", "marker": "^", "linestyle": "-."},
    "instance": {"color": "#009e73", "marker": "o", "linestyle": "-"},
    "group": {"color": "#cc79a7", "marker": "D", "linestyle": ":"},
    "switchable": {"color": "#8a6d00", "marker": "v", "linestyle": "--"},
}

#: Measures that are drawn on a logarithmic axis.
_LOGARITHMIC = ("var", "gradient")

#: Smallest value on a logarithmic axis, the square of float64's rounding. Smaller ones, and zero,
#: are drawn there.
_FLOOR = 1e-32


def draw(found: Activations, form: str) -> bytes:
    """Draw each measure by layer, before training and after, and the loss by step.

    Args:
        form: "svg" or "png".
    """
    with rc_context({"svg.hashsalt": "momentnorm", "font.size": 9}):
        figure = Figure(figsize=(10, 14), facecolor="white", layout="constrained")
        grid = figure.add_gridspec(5, 2)
        for row, (measure, title) in enumerate(MEASURES.items()):
            low, high = _limits(found, measure)
            for column, step in enumerate((0, found.settings.steps)):
                axes = figure.add_subplot(grid[row, column])
                _by_layer(axes, found, measure, step, (low, high))
                when = "before training" if step == 0 else f"after {step} steps"
                axes.set_title(f"{title}\n{when}", fontsize=9)
        axes = figure.add_subplot(grid[4, :])
        _losses(axes, found, found.settings.steps)
        figure.legend(*_legend(figure), loc="outside upper center", ncols=3, frameon=False)
        metadata = {"Date": None} if form == "svg" else None
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=90, metadata=metadata)
    return file.getvalue()


def animate(found: Activations) -> bytes:
    """GIF with a frame for each step of training. The last frame stays longer."""
    frames = []
    with rc_context({"font.size": 9}):
        limits = {measure: _limits(found, measure) for measure in MEASURES}
        for step in range(found.settings.steps + 1):
            with io.BytesIO() as file:
                _frame(found, step, limits).savefig(file, dpi=64, format="png")
                frame = Image.open(file).convert("RGB")
            frames.append(frame.quantize(64, method=Image.Quantize.MEDIANCUT))
    pause = [250] * found.settings.steps + [3000]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=pause, loop=0)
    return file.getvalue()


def _frame(found: Activations, step: int, limits: dict[str, tuple[float, float]]) -> Figure:
    figure = Figure(figsize=(10, 8), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(3, 2)
    for index, (measure, title) in enumerate(MEASURES.items()):
        axes = figure.add_subplot(grid[index // 2, index % 2])
        _by_layer(axes, found, measure, step, limits[measure])
        axes.set_title(title, fontsize=9)
    _losses(figure.add_subplot(grid[2, :]), found, step)
    figure.suptitle(f"step {step} of {found.settings.steps}", fontsize=11)
    figure.legend(*_legend(figure), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _legend(figure: Figure) -> tuple[list[Any], list[str]]:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    return handles, [str(label) for label in labels]


def _shown(measure: str, values: list[float]) -> list[float]:
    """Values as they are drawn; NaN leaves a gap."""
    if measure in _LOGARITHMIC:
        return [max(value, _FLOOR) if math.isfinite(value) else math.nan for value in values]
    return values


def _limits(found: Activations, measure: str) -> tuple[float, float]:
    """Limits of the axis over all norms and steps, so that it stays still in the animation."""
    if measure == "dead":
        return -0.03, 1.03
    every = [
        value
        for course in found.courses
        for row in getattr(course, measure)
        for value in _shown(measure, row)
        if math.isfinite(value)
    ]
    low, high = min(every, default=0.0), max(every, default=1.0)
    if measure in _LOGARITHMIC:
        return low / 3, high * 3
    room = 0.05 * (high - low or 1.0)
    return low - room, high + room


def _by_layer(
    axes: Axes, found: Activations, measure: str, step: int, limits: tuple[float, float]
) -> None:
    layers = range(1, found.settings.depth + 1)
    for course in found.courses:
        values = _shown(measure, getattr(course, measure)[step])
        axes.plot(layers, values, **_look(course))
    axes.set(xlim=(0.5, found.settings.depth + 0.5), ylim=limits, xlabel="layer")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    if measure in _LOGARITHMIC:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _losses(axes: Axes, found: Activations, step: int) -> None:
    for course in found.courses:
        axes.plot(range(step + 1), course.loss[: step + 1], **_look(course))
    guessing = math.log(4)
    losses = [loss for course in found.courses for loss in course.loss if math.isfinite(loss)]
    low, high = min([guessing, *losses]), max([guessing, *losses])
    room = 0.05 * (high - low or 1.0)
    axes.axhline(guessing, color="#777777", linewidth=0.8)
    axes.text(found.settings.steps, guessing, " guessing", va="bottom", ha="right", color="#555555")
    axes.set(xlim=(-0.2, found.settings.steps + 0.2), ylim=(low - room, high + room), xlabel="step")
    axes.set_title("loss", fontsize=9)
    axes.grid(alpha=0.3)


def _look(course: Course) -> dict[str, Any]:
    return {"label": course.title, "linewidth": 1.2, "markersize": 4, **_LOOKS[course.norm]}
