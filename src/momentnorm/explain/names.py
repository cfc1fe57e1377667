"""Layers by name, made for one input: what ``explain("instance", x)`` and the command explain."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import momentnorm

from .trace import ExplainError


def _made(kind: Callable[..., nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    """A layer of this class; what it does not take is said with what it does."""
    takes = [name for name in inspect.signature(kind).parameters if name not in _NOT_OPTIONS]
    for name in options:
        if name not in takes:
            raise ExplainError(
                f"{kind.__name__} takes no {name!r}: it takes {', '.join(takes) or 'no options'}"
            )
    return kind(*arguments, **options)


#: Arguments that follow from the input, or do not change what is computed.
_NOT_OPTIONS = ("num_features", "num_channels", "device", "dtype", "args", "kwargs", "self")


def _dimensional(family: str, x: Tensor, *, vectors: bool = False) -> Callable[..., nn.Module]:
    """The class of a family for so many spatial dimensions."""
    spatial = x.dim() - 2
    if spatial == 0 and vectors:
        spatial = 1
    found = getattr(momentnorm, f"{family}{spatial}d", None)
    if found is None:
        kinds = [kind for kind in momentnorm.__all__ if kind.startswith(family)]
        raise ExplainError(
            f"no {family} takes an input of shape {tuple(x.shape)}: there are {', '.join(kinds)}"
        )
    made: Callable[..., nn.Module] = found
    return made


def _instance(x: Tensor, **options: Any) -> nn.Module:
    return _made(_dimensional("InstanceNorm", x), x.shape[1], **options)


def _batch(x: Tensor, **options: Any) -> nn.Module:
    return _made(_dimensional("BatchNorm", x, vectors=True), x.shape[1], **options)


def _group(x: Tensor, num_groups: int = 2, **options: Any) -> nn.Module:
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        divisors = [str(count) for count in range(1, channels + 1) if channels % count == 0]
        raise ExplainError(
            f"{num_groups} groups do not divide {channels} channels: choose one of "
            f"{', '.join(divisors)}"
        )
    return _made(momentnorm.GroupNorm, num_groups, channels, **options)


def _layer(x: Tensor, **options: Any) -> nn.Module:
    return _made(momentnorm.LayerNorm, **{"normalized_shape": x.shape[1:], **options})


def _rms(x: Tensor, **options: Any) -> nn.Module:
    return _made(momentnorm.RMSNorm, **{"normalized_shape": x.shape[1:], **options})


def _local_response(x: Tensor, size: int = 5, **options: Any) -> nn.Module:
    return _made(momentnorm.LocalResponseNorm, size, **options)


def _switchable(x: Tensor, **options: Any) -> nn.Module:
    if x.dim() == 2:
        return _made(momentnorm.SwitchableNorm1d, x.shape[1], **options)
    return _made(_dimensional("SwitchableNorm", x), x.shape[1], **options)


def _batch_instance(x: Tensor, **options: Any) -> nn.Module:
    return _made(momentnorm.BatchInstanceNorm2d, x.shape[1], **options)


def _ibn(x: Tensor, **options: Any) -> nn.Module:
    return _made(momentnorm.IBN, x.shape[1], **options)


def _contrast(x: Tensor, **options: Any) -> nn.Module:
    return _made(momentnorm.ContrastNorm2d, **options)


def _filter_response(x: Tensor, **options: Any) -> nn.Module:
    return _made(momentnorm.FilterResponseNorm2d, x.shape[1], **options)


def _evonorm_b0(x: Tensor, **options: Any) -> nn.Module:
    return _made(momentnorm.EvoNorm2dB0, x.shape[1], **options)


def _evonorm_s0(x: Tensor, num_groups: int = 2, **options: Any) -> nn.Module:
    return _made(momentnorm.EvoNorm2dS0, x.shape[1], groups=num_groups, **options)


_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "instance": _instance,
    "batch": _batch,
    "group": _group,
    "layer": _layer,
    "rms": _rms,
    "local_response": _local_response,
    "switchable": _switchable,
    "batch_instance": _batch_instance,
    "ibn": _ibn,
    "contrast": _contrast,
    "filter_response": _filter_response,
    "evonorm_b0": _evonorm_b0,
    "evonorm_s0": _evonorm_s0,
}


def names() -> list[str]:
    """The names that :func:`momentnorm.explain` takes in place of a layer."""
    return list(_MAKERS)


def build(name: str, x: Tensor, options: dict[str, Any]) -> nn.Module:
    """The layer of this name for this input.

    Options that are parameters or buffers of the layer are its values; ``training`` is its mode;
    the others go to its constructor.

    Raises:
        ExplainError: an unknown name or option; values of another size.
    """
    maker = _MAKERS.get(name)
    if maker is None:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), _MAKERS, 1, 0.5)
        nearest = f"; did you mean {near[0]!r}?" if near else ""
        raise ExplainError(f"no layer is named {name!r}{nearest} Known are {', '.join(_MAKERS)}")
    options = dict(options)
    training = bool(options.pop("training", True))
    values = {key: options.pop(key) for key in _VALUES if options.get(key) is not None}
    if name in ("instance", "group") and {"weight", "bias"} & values.keys():
        options["affine"] = True
    if name == "instance" and {"running_mean", "running_var"} & values.keys():
        options["track_running_stats"] = True
    try:
        layer = maker(x, **options)
    except (TypeError, ValueError) as error:
        if isinstance(error, ExplainError):
            raise
        raise ExplainError(f"{name}: {error}") from None
    if x.is_floating_point():
        layer = layer.to(x.dtype)
    _fill(name, layer, values)
    return layer.train(training)


#: Options that are values of parameters and buffers, not arguments of a constructor.
_VALUES = (
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "mean_weight",
    "var_weight",
    "gate",
    "tau",
    "v",
)


@torch.no_grad()
def _fill(name: str, layer: nn.Module, values: dict[str, Any]) -> None:
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
