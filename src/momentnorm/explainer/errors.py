"""Errors: the exceptions of the explainer."""

from __future__ import annotations

from ..support.errors import UserError


class ExplainError(UserError, ValueError):
    """An explanation that cannot be given. The message is one line that names the fix."""


class TraceMismatchError(RuntimeError):
    """The steps give another result than the layer, so they explain another computation."""
