"""``torch.nn.Sequential``, in which a norm does the activation behind it too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules import module as _module

from .layers import GroupNorm, _BatchNorm, _InstanceNorm

__all__ = ["Sequential"]

#: The activations that our layers do, by the names that they have there.
_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}

#: The forwards that take an activation: those of layers which inherit them do too.
_FORWARDS = (_InstanceNorm.forward, _BatchNorm.forward, GroupNorm.forward)


class Sequential(nn.Sequential):
    """:class:`torch.nn.Sequential` that computes a norm and the activation behind it in one pass.

    A pair is an InstanceNorm, BatchNorm or GroupNorm of ours that does nothing else, followed by
    ReLU, LeakyReLU, SiLU, exact GELU, Tanh or Sigmoid. What the modules are, and what they do when
    they are called by themselves, does not change: only the forward of the sequence knows. So
    whoever takes the norm's output from ``model[1]``, shares an activation, converts the norm to
    SyncBatchNorm or puts another module in its place gets what he would get from torch's. A pair
    with a hook on one of the two is called apart, since the hook would see the difference.

    >>> from momentnorm import InstanceNorm2d
    >>> model = Sequential(nn.Conv2d(3, 8, 3), InstanceNorm2d(8), nn.ReLU())
    >>> model(torch.randn(1, 3, 8, 8)).min().item()
    0.0
    """

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            output: Tensor = _run(list(self), input)
            return output
        for module in self:
            input = module(input)
        return input


def _run(modules: list[nn.Module], input: Any) -> Any:
    done = False
    for module, follower in zip(modules, [*modules[1:], None], strict=True):
        if done:
            done = False
        elif follower is not None and takes(module, follower) and not isinstance(input, Proxy):
            input = module(input, **options_of(follower))
            done = True
        else:
            input = module(input)
    return input


def takes(norm: nn.Module, follower: nn.Module) -> bool:
    """Whether ``norm`` can do the activation ``follower`` too, and nobody sees that it did."""
    return (
        is_activation(follower)
        and type(norm).forward in _FORWARDS
        and not (norm.activation or norm.inplace)
        and not _is_watched(norm)
    )


def is_activation(follower: nn.Module) -> bool:
    """Whether our norms know this activation, and nobody sees that it is not called."""
    return (
        type(follower) in _ACTIVATIONS
        and getattr(follower, "approximate", "none") == "none"  # of GELU
        and not (_is_watched(follower) or _module._has_any_global_hook())  # type: ignore[no-untyped-call]
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether something besides its own forward runs when the module is called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def options_of(follower: nn.Module) -> dict[str, Any]:
    """What a norm is called with to do this activation too."""
    options: dict[str, Any] = {"activation": _ACTIVATIONS[type(follower)]}
    if isinstance(follower, nn.LeakyReLU):
        options["negative_slope"] = follower.negative_slope
    return options
