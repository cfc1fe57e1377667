"""Norms of timm and torchvision that have a forward of their own, for ``accelerate``.

timm's layers are a norm, a dropout and an activation in one. torchvision's and timm's frozen batch
norms are no subclasses of torch's. The classes here compute the same on momentnorm's kernels, the
activation in the same pass. Neither package is imported: their classes are known by name.

timm's LayerNorm2d is not here. It normalizes the channels of each pixel, which is not a policy on
planes, and torch's ``layer_norm`` is the faster way to do that.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.fx import Proxy

from .. import functional
from ..core.context import takes_torch_functions
from ..layers import sequential
from ..layers.batch_norm import BatchNorm2d
from ..layers.group_norm import GroupNorm


class _NormAct(nn.Module):
    """The forward that these layers share."""

    #: The class in whose place this one is; ``accelerate`` makes a subclass of both.
    _before: ClassVar[type[nn.Module]]

    def forward(self, x: Tensor) -> Tensor:
        symbol: object = x
        if isinstance(symbol, Proxy) or takes_torch_functions(x) or not self._fits(x):
            theirs: Tensor = self._before.forward(self, x)
            return theirs
        if (activation := self._fused()) is not None:
            return self._normalized(x, activation=sequential.activation_of(activation))
        y = self._normalized(x)
        for name in ("drop", "act"):
            if (follower := getattr(self, name, None)) is not None:
                y = follower(y)
        return y

    def _fused(self) -> nn.Module | None:
        """The activation that can be computed in the same pass, unless something comes between."""
        activation: nn.Module | None = getattr(self, "act", None)
        undropped = type(getattr(self, "drop", None)) in (nn.Identity, type(None))
        fits = undropped and activation is not None and sequential.is_activation(activation)
        return activation if fits else None

    def _fits(self, x: Tensor) -> bool:
        """Whether ours computes what theirs does for this input."""
        return x.dim() == 4

    def _normalized(self, x: Tensor, **options: Any) -> Tensor:
        raise NotImplementedError


class _BatchNormAct(_NormAct, BatchNorm2d):  # type: ignore[misc]
    engine = BatchNorm2d

    def _normalized(self, x: Tensor, **options: Any) -> Tensor:
        y: Tensor = BatchNorm2d.forward(self, x, **options)
        return y


class _GroupNormAct(_NormAct, GroupNorm):  # type: ignore[misc]
    engine = GroupNorm

    def _fits(self, x: Tensor) -> bool:
        # timm's fast norm computes in the type of autocast.
        return not getattr(self, "_fast_norm", getattr(self, "fast_norm", False))

    def _normalized(self, x: Tensor, **options: Any) -> Tensor:
        y: Tensor = GroupNorm.forward(self, x, **options)
        return y


class _FrozenBatchNormAct(_NormAct):
    engine = BatchNorm2d
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float

    def _fits(self, x: Tensor) -> bool:
        # Theirs multiplies and adds: other types are promoted, and statistics may have gradients.
        statistics = (self.running_mean, self.running_var)
        return (
            x.dim() == 4
            and all(value.dtype == x.dtype for value in (self.weight, self.bias, *statistics))
            and not any(value.requires_grad for value in statistics)
        )

    def _normalized(self, x: Tensor, **options: Any) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps, **options
        )


#: By package and name of the class that defines the forward.
_COUNTERPARTS: dict[tuple[str, str], type[nn.Module]] = {
    ("timm", "BatchNormAct2d"): _BatchNormAct,
    ("timm", "GroupNorm"): _GroupNormAct,
    ("timm", "GroupNorm1"): _GroupNormAct,
    ("timm", "GroupNormAct"): _GroupNormAct,
    ("timm", "GroupNorm1Act"): _GroupNormAct,
    ("timm", "FrozenBatchNormAct2d"): _FrozenBatchNormAct,
    ("timm", "FrozenBatchNorm2d"): _FrozenBatchNormAct,
    ("torchvision", "FrozenBatchNorm2d"): _FrozenBatchNormAct,
}


def _key(cls: type[nn.Module]) -> tuple[str, str]:
    return cls.__module__.partition(".")[0], cls.__qualname__


def replaced(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The class of timm's or torchvision's whose forward this one has, or None."""
    owner = next(base for base in cls.__mro__ if "forward" in vars(base))
    forward = vars(owner)["forward"]
    own = getattr(forward, "__module__", None), getattr(forward, "__qualname__", None)
    untouched = own == (owner.__module__, f"{owner.__qualname__}.forward")
    return owner if untouched and _key(owner) in _COUNTERPARTS else None


def is_known(module: nn.Module) -> bool:
    """Whether this is one of these layers, theirs or ours."""
    return isinstance(module, _NormAct) or replaced(type(module)) is not None


def counterpart(theirs: type[nn.Module]) -> type[nn.Module]:
    """Our class for one that :func:`replaced` has found."""
    return _COUNTERPARTS[_key(theirs)]


def fused(module: nn.Module) -> str:
    """The activation that a swapped layer computes in the same pass, or ""."""
    activation = module._fused() if isinstance(module, _NormAct) else None
    return "" if activation is None else type(activation).__name__
