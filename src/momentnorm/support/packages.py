"""Packages: checks for optional dependencies."""

from __future__ import annotations

import importlib.util
import sys

from .errors import UserError

#: Name of the package on PyPI, by the name of the module, where they differ.
_PACKAGES = {"PIL": "pillow"}


def has(module: str) -> bool:
    """Whether this module can be imported."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def require(module: str, purpose: str) -> None:
    """Check that a module can be imported.

    Args:
        module: its name.
        purpose: the feature that needs it, for the message.

    Raises:
        UserError: it is missing. The message names the package to install.
    """
    if not has(module):
        raise UserError(
            f"{purpose} needs {_PACKAGES.get(module, module)}: pip install 'momentnorm[explain]'"
        )
