"""Instance Normalization and its family for PyTorch: drop-in layers, accurate for any mean."""

import importlib as _importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import functional, layers
from .core.dispatch import use_backend
from .core.pool import Pool
from .layers import *  # noqa: F403 - the names in layers.__all__
from .models.accelerate import accelerate, restore
from .models.checkup import check
from .models.legacy import load_legacy
from .models.patch import patch
from .moments import Moments

if _TYPE_CHECKING:
    from .deployment import export_check
    from .explainer import explain
    from .tiles import tiled

__version__ = _version("momentnorm")

__all__ = [
    "Moments",
    "Pool",
    "__version__",
    "accelerate",
    "check",
    "explain",
    "export_check",
    "functional",
    "load_legacy",
    "patch",
    "restore",
    "tiled",
    "use_backend",
]
__all__ += layers.__all__


#: Functions of applications, by the package that is imported when one is asked for.
_APPLICATIONS = {"explain": "explainer", "export_check": "deployment", "tiled": "tiles"}


def __getattr__(name: str) -> _Any:
    if name in _APPLICATIONS:
        return getattr(_importlib.import_module(f".{_APPLICATIONS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
