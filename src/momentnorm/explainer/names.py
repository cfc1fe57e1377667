"""Names: layers by name, made for one input."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import by_name
from ..support.printable import one_line
from .errors import ExplainError

#: torch's layers with a weight for each element, which normalize over all axes but the first.
#: "layer" takes the place of the layer of this name in ``by_name``.
_OF_ELEMENTS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}

_NAMES = (*by_name.NORMS, "rms")

#: Layers that take vectors (N, C).
_OF_VECTORS = ("batch", "group", "switchable")

#: Options that fill a parameter or a buffer. The others are arguments of the constructor.
_VALUES = (
    *("weight", "bias", "running_mean", "running_var"),
    *("mean_weight", "var_weight", "gate", "tau", "v"),
)


def names() -> list[str]:
    """Names that :func:`momentnorm.explain` takes in place of a layer."""
    return list(_NAMES)


def build(name: str, x: Tensor, options: dict[str, Any]) -> nn.Module:
    """Make the layer of this name for this input.

    Options that name a parameter or a buffer of the layer fill it. ``training`` is the mode of the
    layer. The other options are arguments of its constructor.

    Raises:
        ExplainError: an unknown name or option, or values of another size.
    """
    if name not in _OF_ELEMENTS and not by_name.is_registered(name):
        near = difflib.get_close_matches(name.lower().replace("-", "_"), _NAMES, 1, 0.5)
        nearest = f"; did you mean {near[0]!r}?" if near else ":"
        raise ExplainError(f"no layer is named {name!r}{nearest} Known are {', '.join(_NAMES)}")
    options = dict(options)
    training = bool(options.pop("training", True))
    values = {key: options.pop(key) for key in _VALUES if options.get(key) is not None}
    if name in ("instance", "group") and {"weight", "bias"} & values.keys():
        options["affine"] = True
    if name == "instance" and {"running_mean", "running_var"} & values.keys():
        options["track_running_stats"] = True
    try:
        layer = _make(name, x, options)
    except (TypeError, ValueError) as error:
        raise ExplainError(one_line(error)) from None
    if x.is_floating_point():
        layer = layer.to(x.dtype)
    _fill(name, layer, values)
    return layer.train(training)


def _make(name: str, x: Tensor, options: dict[str, Any]) -> nn.Module:
    if name in _OF_ELEMENTS:
        return _OF_ELEMENTS[name](**{"normalized_shape": x.shape[1:], **options})
    channels, spatial = x.shape[1], x.dim() - 2
    if spatial == 0:
        if name not in _OF_VECTORS:
            raise ExplainError(
                f"{name} takes planes (N, C, *S), not vectors of shape {tuple(x.shape)}: "
                "add the missing dimensions"
            )
        spatial = 1
    if name in ("group", "evonorm_s0"):
        groups = options.pop("num_groups", 2)
        by_name.check_groups(groups, channels)
        options["num_groups" if name == "group" else "groups"] = groups
    return by_name.get_norm_layer(name, dimensions=spatial, **options)(channels)


@torch.no_grad()
def _fill(name: str, layer: nn.Module, values: dict[str, Any]) -> None:
    """Fill parameters and buffers of a layer in place. One number fills all of a tensor."""
    own = dict(layer.named_parameters()) | dict(layer.named_buffers())
    for key, given in values.items():
        if key not in own:
            raise ExplainError(
                f"{name} has no {key}: it has {', '.join(own) or 'neither parameters nor buffers'}"
            )
        target = own[key]
        source = torch.as_tensor(given, dtype=target.dtype).flatten()
        if source.numel() not in (1, target.numel()):
            raise ExplainError(
                f"{key} has {target.numel()} values for this input, one for each, not "
                f"{source.numel()}"
            )
        target.copy_(source.expand(target.numel()).reshape(target.shape))
