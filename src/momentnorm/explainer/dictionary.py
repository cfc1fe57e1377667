"""Dictionary: a trace as lists and numbers, and as JSON."""

from __future__ import annotations

import json
import math
from typing import Any

from torch import Tensor

from .layout import worked
from .trace import Trace


def to_json(trace: Trace, precision: int) -> str:
    """JSON of a trace, with every value in full. ``precision`` is ignored."""
    return json.dumps(to_dict(trace), allow_nan=False) + "\n"


def to_dict(trace: Trace) -> dict[str, Any]:
    """Dictionary of lists and numbers. NaN and infinities are the strings "NaN", "inf", "-inf"."""
    return {
        "layer": trace.layer,
        "summary": trace.summary,
        "notes": trace.notes,
        "steps": [
            {
                "name": step.name,
                "part": step.part,
                "formula": step.formula,
                "latex": step.latex,
                "worked": None if step.worked is None else worked(step.worked, 6),
                "note": step.note,
                "unit": step.unit,
                "axes": list(step.axes),
                "shape": list(step.shape),
                "dtype": str(step.values.dtype).removeprefix("torch."),
                "values": _lists(step.values),
            }
            for step in trace.steps
        ],
        "checks": [{"text": check.text, "difference": check.difference} for check in trace.checks],
    }


def _lists(values: Tensor) -> Any:
    return _with_strings(values.detach().cpu().tolist())


def _with_strings(values: Any) -> Any:
    """Nested lists in which NaN and infinities are strings, since JSON has none."""
    if isinstance(values, list):
        return [_with_strings(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return "NaN" if math.isnan(values) else str(values)
    return values
