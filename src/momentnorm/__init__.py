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
    from .explainer import explain

__version__ = _version("momentnorm")

__all__ = [
    "Moments",
    "Pool",
    "__version__",
    "accelerate",
    "check",
    "explain",
    "functional",
    "load_legacy",
    "patch",
    "restore",
    "use_backend",
]
__all__ += layers.__all__


def __getattr__(name: str) -> _Any:
    # The explainer is an application, which is imported at its first use.
    if name == "explain":
        return _importlib.import_module(".explainer", __name__).explain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
