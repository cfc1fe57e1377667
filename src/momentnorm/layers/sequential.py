"""Sequential: torch's container, with norm and activation in one pass over memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules import module as _module

from ..core.tail import Activation
from .base import Layer
from .drop_in import DropIn

__all__ = ["Sequential"]

#: Activations that a norm can compute, with their names in its ``activation=``.
_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


class Sequential(Layer, nn.Sequential):
    """:class:`torch.nn.Sequential` that computes a norm and the activation after it in one pass.

    A pair is an InstanceNorm, BatchNorm or GroupNorm of this library without an activation of its
    own, followed by ReLU, LeakyReLU, SiLU, exact GELU, Tanh or Sigmoid. The modules do not change.
    Only the forward of the sequence joins them, and each gives its usual result when it is called
    alone. So taking the norm's output from ``model[1]``, sharing an activation, converting the norm
    to SyncBatchNorm and replacing a module work as with torch's class. If one module of a pair has
    a hook, the two are called one after the other, since the hook would see the difference.

    >>> from momentnorm import InstanceNorm2d
    >>> model = Sequential(nn.Conv2d(3, 8, 3), InstanceNorm2d(8), nn.ReLU())
    >>> model(torch.randn(1, 3, 8, 8)).min().item()
    0.0
    """

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _run(list(self), input)
        return output


def _run(modules: list[nn.Module], input: Any) -> Any:
    done = False
    for module, follower in zip(modules, [*modules[1:], None], strict=True):
        if done:
            done = False
        elif follower is not None and takes(module, follower) and not isinstance(input, Proxy):
            input = module(input, activation=activation_of(follower))
            done = True
        else:
            input = module(input)
    return input


def takes(norm: nn.Module, follower: nn.Module) -> bool:
    """Whether ``norm`` can compute the activation ``follower`` without a visible difference."""
    return (
        is_activation(follower)
        and isinstance(norm, DropIn)
        and type(norm).forward is DropIn.forward
        and not (norm.activation or norm.inplace)
        and not _is_watched(norm)
    )


def is_activation(follower: nn.Module) -> bool:
    """Whether a norm can compute this activation without a visible difference."""
    return (
        type(follower) in _ACTIVATIONS
        and getattr(follower, "approximate", "none") == "none"  # of GELU
        and not (_is_watched(follower) or _module._has_any_global_hook())  # type: ignore[no-untyped-call]
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of the module runs more than the forward of its class."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def activation_of(follower: nn.Module) -> Activation:
    """``activation=`` of a norm that computes this activation."""
    name = _ACTIVATIONS[type(follower)]
    return (name, follower.negative_slope) if isinstance(follower, nn.LeakyReLU) else name
