"""Packages: optional dependencies, asked for where they are used."""

from __future__ import annotations

import importlib.util
import sys

from .errors import UserError

#: Names to install, by the name that is imported.
_PACKAGES = {"PIL": "pillow"}


def has(module: str) -> bool:
    """Whether this module can be imported."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def require(module: str, purpose: str) -> None:
    """Raise a :class:`UserError` that names the package, where it is missing for ``purpose``."""
    if not has(module):
        raise UserError(
            f"{purpose} needs {_PACKAGES.get(module, module)}: pip install 'momentnorm[explain]'"
        )
