"""Markdown: a trace as a page, with formulas in the form that GitHub shows."""

from __future__ import annotations

from itertools import groupby

from .layout import heading, layout, worked
from .steps import Step
from .text import WIDTH, side_by_side
from .trace import Trace


def page(trace: Trace, precision: int) -> str:
    """Markdown page of a trace."""
    found = [f"# {trace.layer}", "", trace.summary, ""]
    for note in trace.notes:
        found += [f"> {note}", ""]
    for part, steps in groupby(trace.steps, key=lambda step: step.part):
        found += [f"## {part}", ""]
        for step in steps:
            found += _step(step, precision)
    found += ["## Checked", ""]
    found += [f"- {check.text}" for check in trace.checks]
    return "\n".join(found) + "\n"


def _step(step: Step, precision: int) -> list[str]:
    """Lines of one step: heading, formula, then a block with the worked example and the values."""
    shown = layout(step, precision)
    body = [f"first: {worked(step.worked, precision)}", ""] if step.worked else []
    body += [text.rstrip() for text, _ in side_by_side(shown.tables, WIDTH)]
    found = [f"### `{step.name}`", "", f"{heading(step)}. {step.formula}", ""]
    found += ["$$", step.latex, "$$", ""]
    found += ["```text", *body, "```", ""]
    for note in filter(None, (step.note, shown.omitted)):
        found += [note, ""]
    return found
