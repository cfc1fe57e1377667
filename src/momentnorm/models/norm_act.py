"""NormAct: counterparts of timm's and torchvision's norms that define their own forward.

A timm layer is a norm, a dropout and an activation in one. The frozen batch norms of both packages
are not subclasses of torch's. The classes here compute these layers on momentnorm's kernels, with
the activation in the same pass. Neither package is imported: their classes are found by name.

timm's LayerNorm2d has no counterpart. It normalizes the channels of each pixel, so its statistics
are not those of planes (one channel of one sample), and torch's ``layer_norm`` is faster for it.
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
    """Forward of all counterparts."""

    #: The class that the layer had. ``accelerate`` sets it on the subclass of both that it makes.
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
        """Activation to compute in the same pass, or None. A dropout before it rules this out."""
        activation: nn.Module | None = getattr(self, "act", None)
        undropped = type(getattr(self, "drop", None)) in (nn.Identity, type(None))
        fits = undropped and activation is not None and sequential.is_activation(activation)
        return activation if fits else None

    def _fits(self, x: Tensor) -> bool:
        """Whether the counterpart gives the results of the original for this input."""
        return x.dim() == 4

    def _normalized(self, x: Tensor, **options: Any) -> Tensor:
        """x (N, C, H, W) normalized; ``options`` may have an ``activation``."""
        raise NotImplementedError


class _BatchNormAct(_NormAct, BatchNorm2d):  # type: ignore[misc]
    engine = BatchNorm2d

    def _normalized(self, x: Tensor, **options: Any) -> Tensor:
        y: Tensor = BatchNorm2d.forward(self, x, **options)
        return y


class _GroupNormAct(_NormAct, GroupNorm):  # type: ignore[misc]
    engine = GroupNorm

    def _fits(self, x: Tensor) -> bool:
        # timm's fast norm computes in the dtype of autocast.
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
        # The originals multiply and add. That promotes other dtypes, and gives gradients to the
        # statistics. The kernels do neither.
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


#: Counterparts, by package and name of the class that defines the forward.
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
    """Class of timm's or torchvision's whose forward ``cls`` has unchanged, or None."""
    owner = next(base for base in cls.__mro__ if "forward" in vars(base))
    forward = vars(owner)["forward"]
    own = getattr(forward, "__module__", None), getattr(forward, "__qualname__", None)
    untouched = own == (owner.__module__, f"{owner.__qualname__}.forward")
    return owner if untouched and _key(owner) in _COUNTERPARTS else None


def is_known(module: nn.Module) -> bool:
    """Whether this is a layer of timm or torchvision with a counterpart, or the counterpart."""
    return isinstance(module, _NormAct) or replaced(type(module)) is not None


def counterpart(theirs: type[nn.Module]) -> type[nn.Module]:
    """Counterpart of a class that :func:`replaced` has found."""
    return _COUNTERPARTS[_key(theirs)]


def fused(module: nn.Module) -> str:
    """Name of the activation that a swapped layer computes in the same pass, or ""."""
    activation = module._fused() if isinstance(module, _NormAct) else None
    return "" if activation is None else type(activation).__name__
