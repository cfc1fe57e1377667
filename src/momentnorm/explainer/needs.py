"""Optional packages, asked for where they are used."""

from __future__ import annotations

import importlib.util
import sys

from .trace import ExplainError

#: The package to install, by the name that is imported.
_PACKAGES = {"PIL": "pillow"}


def has(module: str) -> bool:
    """Whether this module can be imported."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def needed(module: str, what: str) -> None:
    """Raise, and say what to install, where a module that ``what`` needs is missing."""
    if not has(module):
        raise ExplainError(
            f"{what} needs {_PACKAGES.get(module, module)}: pip install 'momentnorm[explain]'"
        )
