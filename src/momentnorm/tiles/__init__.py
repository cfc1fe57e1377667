"""Images and volumes larger than memory: models computed tile by tile, exactly.

:func:`momentnorm.tiled` is the way in; ``docs/tiles.md`` is the guide.
"""

from __future__ import annotations

try:
    import numpy as _numpy  # noqa: F401
except ImportError as error:
    raise ImportError("momentnorm.tiled needs NumPy: pip install 'momentnorm[tiles]'") from error

from .errors import TilesError
from .files import File
from .plan import PassPlan, Plan
from .runner import Tiled, tiled

__all__ = ["File", "PassPlan", "Plan", "Tiled", "TilesError", "tiled"]
