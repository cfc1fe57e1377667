"""Calls of a model's normalization layers, recorded while the model runs once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..core.pool import Pool
from ..layers.batch_instance_norm import BatchInstanceNorm2d
from ..layers.evo_norm import EvoNorm2dB0, EvoNorm2dS0
from ..layers.filter_response_norm import FilterResponseNorm2d
from ..layers.switchable_norm import SwitchableNorm

BATCH_NORM = nn.modules.batchnorm._BatchNorm
_INSTANCE_NORM = nn.modules.instancenorm._InstanceNorm

#: Layers that combine several statistics or an activation, and have no operator in ONNX.
MIXTURES = (SwitchableNorm, BatchInstanceNorm2d, FilterResponseNorm2d, EvoNorm2dB0, EvoNorm2dS0)

_COMPARED = (BATCH_NORM, _INSTANCE_NORM, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, *MIXTURES)

#: A function of the layer's input.
Formula = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a normalization layer.

    Args:
        name: the layer's name in the model.
        layer: a copy of the layer before the call.
        exact: a copy in float64.
        input: the layer's input.
        output: the layer's output.
        options: the other arguments of the call by name, such as ``residual``. A residual that is
            the input is the same object as ``input``.
    """

    name: str
    layer: Any
    exact: Any
    input: Tensor
    output: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """Call a variant of the layer on another input, with the call's options."""
        y: Tensor = layer(x, **{name: self._option(name, x) for name in self.options})
        return y

    def _option(self, name: str, x: Tensor) -> Any:
        value = self.options[name]
        if value is self.input:
            return x
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(x.dtype)
        return value

    def truth(self, x: Tensor) -> Tensor:
        """The layer's output in float64. Running statistics do not change in train mode."""
        return self.apply(copy.deepcopy(self.exact) if self.exact.training else self.exact, x)

    @property
    def frozen(self) -> bool:
        """True where the layer uses running statistics alone, not those of its input."""
        return uses_running_statistics(self.layer)

    def sigma(self, x: Tensor) -> float:
        """The smallest sqrt(var + eps) by which the layer may divide this input."""
        layer = self.exact
        if self.frozen:
            var = layer.running_var
        elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            var = x.flatten(-len(layer.normalized_shape)).var(-1, correction=0)
        else:
            var = pool_of(layer)(*plane_moments(x))[1]
        running = getattr(layer, "running_var", None)
        if isinstance(layer, MIXTURES) and running is not None:  # a share of the mixture
            var = torch.cat((var.flatten(), running.flatten()))
        return float((var + layer.eps).clamp(min=0).sqrt().min())


def record(model: nn.Module, example: tuple[Any, ...]) -> tuple[list[Call], Any]:
    """Run the model once; return the calls of its normalization layers and its outputs.

    The mode and the buffers of the model and the state of the random number generators are kept.
    """
    layers: dict[nn.Module, str] = {
        layer: name for name, layer in model.named_modules() if isinstance(layer, _COMPARED)
    }
    copies: dict[nn.Module, Any] = {layer: copy.deepcopy(layer).cpu() for layer in layers}
    calls: list[Call] = []

    def hook(layer: nn.Module, inputs: tuple[Any, ...], kwargs: Any, output: Tensor) -> None:
        calls.append(_call(layers[layer], copies[layer], layer, (inputs, kwargs), output))

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            outputs = model(*example)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return calls, outputs


def _call(
    name: str, before: Any, layer: nn.Module, arguments: tuple[Any, Any], output: Tensor
) -> Call:
    inputs, kwargs = arguments
    given = inspect.signature(layer.forward).bind(*inputs, **kwargs).arguments
    first, *others = given.items()
    x = _kept(first[1])
    options = {}
    for key, value in others:
        if value is None or key == "out":
            continue
        options[key] = x if value is first[1] else _kept(value)
    exact = copy.deepcopy(before).double()
    if exact.eps is None:  # that of the dtype
        exact.eps = torch.finfo(x.dtype).eps
    return Call(name, before, exact, x, _kept(output), options)


def _kept(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def uses_running_statistics(layer: Any) -> bool:
    """Tell whether the layer normalizes with running statistics alone."""
    if not isinstance(layer, (BATCH_NORM, _INSTANCE_NORM)) or layer.training:
        return False
    return layer.running_mean is not None and (
        isinstance(layer, BATCH_NORM) or layer.track_running_stats
    )


def pool_of(layer: Any) -> Pool:
    """Return the pool of the layer's statistics: planes for a mixture."""
    if isinstance(layer, nn.GroupNorm):
        return Pool(1, layer.num_channels // layer.num_groups)
    return Pool(None, 1) if isinstance(layer, BATCH_NORM) else Pool(1, 1)


def plane_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each plane; vectors (N, C) are planes of one element."""
    return functional.plane_moments(x if x.dim() > 2 else x.unsqueeze(2))
