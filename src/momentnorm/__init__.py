"""Instance Normalization and its family for PyTorch: drop-in layers, accurate for any mean."""

import importlib as _importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import functional
from ._dispatch import use_backend
from .checkup import check
from .conditional import SPADE, AdaIN, AdaptiveInstanceNorm2d, ConditionalInstanceNorm2d
from .convert import accelerate, restore
from .factory import get_norm_layer, register_norm_layer
from .layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    LocalResponseNorm,
    RMSNorm,
)
from .legacy import load_legacy
from .moments import Moments
from .norm_activation import EvoNorm2dB0, EvoNorm2dS0, FilterResponseNorm2d
from .patching import patch
from .pool import Pool
from .relatives import (
    IBN,
    BatchInstanceNorm2d,
    ContrastNorm2d,
    SwitchableNorm1d,
    SwitchableNorm2d,
    SwitchableNorm3d,
)
from .sequential import Sequential

if _TYPE_CHECKING:
    from .explain import explain
    from .tiles import tiled

__version__ = _version("momentnorm")

__all__ = [
    "IBN",
    "SPADE",
    "AdaIN",
    "AdaptiveInstanceNorm2d",
    "BatchInstanceNorm2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConditionalInstanceNorm2d",
    "ContrastNorm2d",
    "EvoNorm2dB0",
    "EvoNorm2dS0",
    "FilterResponseNorm2d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LocalResponseNorm",
    "Moments",
    "Pool",
    "RMSNorm",
    "Sequential",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
    "__version__",
    "accelerate",
    "check",
    "explain",
    "functional",
    "get_norm_layer",
    "load_legacy",
    "patch",
    "register_norm_layer",
    "restore",
    "tiled",
    "use_backend",
]


def __getattr__(name: str) -> _Any:
    # Applications are imported when they are asked for. The package explain is the function.
    if name == "explain":
        return _importlib.import_module(".explain", __name__)
    if name == "tiled":
        return _importlib.import_module(".tiles", __name__).tiled
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
