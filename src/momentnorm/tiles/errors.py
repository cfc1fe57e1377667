"""The error of this package."""

from __future__ import annotations


class TilesError(ValueError):
    """A model that cannot be cut into tiles, a budget too small, or a damaged file; one line says."""
