"""Formats: the functions that turn a trace into text, pictures and files, imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..support.files import check_path, write_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .trace import Trace

#: Function that makes the content of a file from a trace and a precision, by suffix.
_WRITERS = {
    ".txt": "text.plain",
    ".md": "markdown.page",
    ".html": "html.page",
    ".json": "dictionary.to_json",
    ".svg": "picture.svg",
    ".png": "picture.png",
}

SUFFIXES = tuple(_WRITERS)


def function(name: str) -> Callable[..., Any]:
    """Function of this package, by the name "module.function".

    The modules of the formats import :class:`Trace`, so it cannot import them at its top.
    """
    module, _, attribute = name.partition(".")
    found: Callable[..., Any] = getattr(
        importlib.import_module(f".{module}", __package__), attribute
    )
    return found


def save(trace: Trace, path: Path, precision: int) -> Path:
    """Write the trace to ``path`` in the format of its suffix. Returns the path."""
    check_path(path, SUFFIXES)
    write_file(path, function(_WRITERS[path.suffix.lower()])(trace, precision))
    return path
