"""Model rules: findings about the model as a whole, after a forward that did not raise."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ...layers.sequential import Sequential
from .call import Batch, Instance
from .report import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .watch import Watch

_BIASED = (nn.Linear, nn.modules.conv._ConvNd)


def unused(watch: Watch) -> Iterator[Finding]:
    """Normalization layers that the forward did not call."""
    for module, name in watch.names_of_norms.items():
        if module not in watch.calls:
            yield Finding(
                "hint",
                name,
                "unused",
                f"{type(module).__name__}: this forward does not call the layer",
                "none if another input or mode calls it; otherwise remove it",
            )


def wasted_biases(model: nn.Module, watch: Watch) -> Iterator[Finding]:
    """Biases that a norm right behind removes.

    Only sequences are searched, since there no other module reads the layer's output.
    """
    for container in model.modules():
        plain = type(container).forward in (nn.Sequential.forward, Sequential.forward)
        if not plain or not isinstance(container, nn.Sequential):
            continue
        for layer, norm in itertools.pairwise(container):
            if (
                isinstance(layer, _BIASED)
                and layer.bias is not None
                and _removes_bias(layer, norm, watch.calls.get(norm, []))
            ):
                yield Finding(
                    "hint",
                    watch.names[layer],
                    "wasted-bias",
                    f"{type(layer).__name__}: its bias, {layer.bias.numel()} parameters, has no "
                    f"effect, since {watch.names[norm]!r} behind it subtracts the mean",
                    "bias=False",
                )


def _removes_bias(layer: nn.Module, norm: nn.Module, dimensions: list[int]) -> bool:
    """Whether each mean of the norm is that of one output channel of the layer.

    Args:
        layer: a convolution or a Linear.
        norm: the module behind it.
        dimensions: the number of dimensions of the norm's input, for each of its calls.
    """
    if isinstance(norm, Instance):
        return bool(dimensions) and not isinstance(layer, nn.Linear)
    one_channel = isinstance(norm, Batch) or (
        isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
    )
    # The channels of (N, L, C) are the last dimension for a Linear, but the second for a norm.
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return one_channel and bool(dimensions) and set(dimensions) == {weight.dim()}
