"""Call: one call of one normalization layer, with its input, output and statistics."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.checks import DTYPES
from ...core.grid import statistics_dtype
from ...core.pool import BATCH, INSTANCE, Pool
from ...layers.batch_instance_norm import BatchInstanceNorm2d
from ...layers.switchable_norm import SwitchableNorm, SwitchableNorm1d
from ...moments import Moments
from .report import Finding, Severity, some

Instance = nn.modules.instancenorm._InstanceNorm
Batch = nn.modules.batchnorm._BatchNorm

#: Classes of the layers whose calls are checked.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, SwitchableNorm)


class History(NamedTuple):
    """Running statistics before the first call, which updates them in training.

    Args:
        running: mean and variance, (C,) each, or None.
        moved: whether they differ from their initial values.
    """

    running: tuple[Tensor, Tensor] | None
    moved: bool

    @classmethod
    def of(cls, layer: nn.Module) -> History:
        """Copy of the layer's present running statistics."""
        mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        if mean is None or var is None:
            return cls(None, False)
        dtype = statistics_dtype(mean)
        mean, var = (statistic.detach().to(dtype, copy=True).flatten() for statistic in (mean, var))
        start = 0.0 if isinstance(layer, SwitchableNorm) else 1.0
        return cls((mean, var), bool((mean != 0).any() or (var != start).any()))


class Call:
    """One call of one normalization layer.

    Args:
        name: the layer's name in the model.
        layer: the layer.
        x: the input.
        history: the running statistics before the first call of the layer.
    """

    def __init__(self, name: str, layer: nn.Module, x: Tensor, history: History) -> None:
        self.name = name
        self.layer: Any = layer
        self.x = x
        self.y: Tensor | None = None
        self.running, self.moved = history
        #: Place where NaN or infinity was seen first.
        self.origin = "the model's own operations between its layers, before this one"

    def finding(self, severity: Severity, kind: str, message: str, fix: str) -> Finding:
        """Finding of this layer; the message gets the name of its class."""
        return Finding(severity, self.name, kind, f"{type(self.layer).__name__}: {message}", fix)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    @property
    def of_instances(self) -> bool:
        """Whether the layer uses statistics of single planes, alone or in a mixture."""
        return isinstance(self.layer, (Instance, BatchInstanceNorm2d)) or (
            isinstance(self.layer, SwitchableNorm) and not isinstance(self.layer, SwitchableNorm1d)
        )

    @property
    def of_batches(self) -> bool:
        """Whether the layer is a BatchNorm."""
        return isinstance(self.layer, Batch)

    @property
    def uses_running(self) -> bool:
        """Whether this call normalizes with the running statistics."""
        if self.running is None or self.layer.training:
            return False
        return not isinstance(self.layer, Instance) or bool(self.layer.track_running_stats)

    @cached_property
    def finite(self) -> bool:
        """Whether all values of the input are finite."""
        return bool(self.x.isfinite().all())

    @cached_property
    def planes(self) -> Tensor | None:
        """Input as (N, C, *S), or None for a shape or dtype that the layer does not take."""
        x, layer = self.x, self.layer
        if x.dtype not in DTYPES or not x.numel() or x.layout is not torch.strided:
            return None
        if isinstance(layer, Instance) and x.dim() == unbatched_dim(layer):
            x = x.unsqueeze(0)
        if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            shape = tuple(layer.normalized_shape)
            if not has_torch_forward(layer) or tuple(x.shape[-len(shape) :]) != shape:
                return None
            return x.reshape(-1, 1, math.prod(shape))
        if x.dim() < 2:
            return None
        if isinstance(layer, nn.GroupNorm) and x.shape[1] % layer.num_groups:
            return None
        return x.unsqueeze(2) if x.dim() == 2 else x

    @cached_property
    def pool(self) -> Pool:
        """Planes that share a mean."""
        if isinstance(self.layer, nn.GroupNorm) and self.planes is not None:
            return Pool(1, self.planes.shape[1] // self.layer.num_groups)
        return BATCH if self.of_batches else INSTANCE

    @cached_property
    def count(self) -> int:
        """Number of values of one mean; 0 if it is not known."""
        if self.planes is None:
            return 0
        samples, _, *spatial = self.planes.shape
        samples = samples if self.pool.samples is None else 1
        return samples * (self.pool.channels or 1) * math.prod(spatial)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of this input, one value for each pool, (N or 1, C or groups)."""
        assert self.planes is not None
        planes = Moments.of(self.planes)
        rows = slice(0, 1 if self.pool.samples is None else None)
        columns = slice(0, None, self.pool.channels)
        mean, var = self.pool(planes.mean, planes.var)
        return mean[rows, columns], var[rows, columns]

    @property
    def sets(self) -> str:
        """Noun for the values that share a mean."""
        if self.of_batches:
            return "channels"
        if isinstance(self.layer, nn.GroupNorm):
            return "groups"
        return "rows" if isinstance(self.layer, (nn.LayerNorm, nn.RMSNorm)) else "planes"

    @property
    def knows_moments(self) -> bool:
        """Whether :attr:`moments` are those that the layer uses, each of more than one value."""
        mixture = isinstance(self.layer, (BatchInstanceNorm2d, SwitchableNorm))
        return self.finite and self.count > 1 and not mixture

    @cached_property
    def constant(self) -> Tensor:
        """Flag for each pool: whether all its values are equal up to rounding."""
        mean, var = self.moments
        rounding = torch.finfo(self.x.dtype).eps / 2 * mean.abs()
        return var <= rounding.square()


def unbatched_dim(layer: Any) -> int:
    """Number of dimensions of an input without a batch to this InstanceNorm."""
    return int(layer._get_no_batch_dim())


def has_torch_forward(layer: nn.Module) -> bool:
    """Whether the layer has torch's own forward, not that of a subclass."""
    function = type(layer).forward
    return function.__module__.startswith("torch.nn.modules")


def eps_of(layer: Any, dtype: torch.dtype) -> float:
    """Value of a layer's eps. RMSNorm's None means the epsilon of the dtype."""
    return float(torch.finfo(dtype).eps if layer.eps is None else layer.eps)


def count(flags: Tensor) -> str:
    """Number of set flags and of all flags, as text."""
    return f"{int(flags.sum())} of {flags.numel()}"


def indices(flags: Tensor) -> str:
    """Indices of the first set flags, as text."""
    return some([str(index) for index in flags.nonzero().flatten().tolist()])
