"""A trace as a file, in the format that the suffix says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..support.files import check_path, write_file
from . import html, text
from .layout import worked
from .trace import Trace


def _json(trace: Trace, precision: int) -> str:
    return json.dumps(to_dict(trace), allow_nan=False) + "\n"


#: What is written as text, by suffix. Pictures are drawn by matplotlib.
_WRITERS: dict[str, Callable[[Trace, int], str]] = {
    ".txt": lambda trace, precision: text.plain(trace, precision, 96),
    ".md": text.markdown,
    ".html": html.page,
    ".json": _json,
}

_PICTURES = (".svg", ".png")

SUFFIXES = (*_WRITERS, *_PICTURES)


def save(trace: Trace, path: Path, precision: int) -> Path:
    """Write the trace to ``path``; returns it."""
    suffix = path.suffix.lower()
    check_path(path, SUFFIXES)
    if suffix in _PICTURES:
        from .picture import draw

        write_file(path, draw(trace, suffix[1:], precision))
    else:
        write_file(path, _WRITERS[suffix](trace, precision))
    return path


def to_dict(trace: Trace) -> dict[str, Any]:
    """Lists and numbers alone; NaN and infinities are the strings "NaN", "inf" and "-inf"."""
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
                "values": _plain(step.values),
            }
            for step in trace.steps
        ],
        "checks": [{"text": check.text, "difference": check.difference} for check in trace.checks],
    }


def _plain(values: Tensor) -> Any:
    return _named(values.detach().cpu().tolist())


def _named(values: Any) -> Any:
    if isinstance(values, list):
        return [_named(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return "NaN" if math.isnan(values) else str(values)
    return values
