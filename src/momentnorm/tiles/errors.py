"""Error of this package."""

from __future__ import annotations

from ..support.errors import UserError


class TilesError(UserError, ValueError):
    """A model cannot be cut into tiles, a budget is too small, or a file cannot be used."""
