"""Exports of the measurements: a text table, CSV, JSON and an interactive page."""

from __future__ import annotations

import csv
import io
import json
from importlib import resources

from .measure import MEASURES, Activations


def table(found: Activations) -> str:
    """Text: the first, middle and last layer, before training and after, and the loss."""
    settings = found.settings
    layers = sorted({0, settings.depth // 2, settings.depth - 1})
    steps = sorted({0, settings.steps})
    wide = max(len(course.title) for course in found.courses)
    when = ["before training" if step == 0 else f"after {step} steps" for step in steps]
    lines = [
        f"{settings.depth} layers of {settings.channels} channels, {settings.batch} images of "
        f"{settings.size} x {settings.size} pixels, {settings.steps} steps of SGD, seed "
        f"{settings.seed}",
        "",
        "loss (4 directions: guessing has ln 4 = 1.386)",
        " " * wide + "".join(f"  {text:>15}" for text in when),
    ]
    for course in found.courses:
        losses = "".join(f"  {_figure('loss', course.loss[step]):>15}" for step in steps)
        lines.append(f"{course.title:<{wide}}{losses}")
    heading = "".join(f"{f'layer {layer + 1}':>10}" for layer in layers)
    for measure, title in MEASURES.items():
        lines += ["", title, " " * wide + "".join(f"  {text:<{len(heading)}}" for text in when)]
        lines.append(" " * wide + f"  {heading}" * len(steps))
        for course in found.courses:
            figures = ""
            for step in steps:
                row = getattr(course, measure)[step]
                figures += "  " + "".join(f"{_figure(measure, row[at]):>10}" for at in layers)
            lines.append(f"{course.title:<{wide}}{figures}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _figure(measure: str, value: float) -> str:
    if measure == "dead":
        return f"{value:.0%}"
    if value and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    return f"{value:.3f}"


def rows(found: Activations) -> str:
    """CSV: one row for each norm, step and layer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["norm", "step", "layer", *MEASURES, "loss"])
    for course in found.courses:
        for step, loss in enumerate(course.loss):
            for layer in range(found.settings.depth):
                figures = [getattr(course, measure)[step][layer] for measure in MEASURES]
                writer.writerow([course.norm, step, layer + 1, *figures, loss])
    return text.getvalue()


def numbers(found: Activations) -> str:
    """JSON: the settings and all courses."""
    return json.dumps(found.to_dict(), allow_nan=False) + "\n"


def page(found: Activations) -> str:
    """HTML: one file with the numbers and the script that draws them. It needs no network."""
    data = json.dumps(found.to_dict() | {"measures": MEASURES}, allow_nan=False)
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("/*NUMBERS*/", data.replace("</", "<\\/"))
