"""The error of this package."""

from __future__ import annotations


class TilesError(ValueError):
    """A model cannot be cut into tiles, a budget is too small, or a file cannot be used."""
