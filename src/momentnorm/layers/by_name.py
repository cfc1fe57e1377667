"""Layers by name, for models that are told how to normalize by an argument.

A registered name is one line: ``register_norm_layer("ibn", {2: IBN})``.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from ..core.tail import parse_activation
from .batch_instance_norm import BatchInstanceNorm2d
from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .contrast_norm import ContrastNorm2d
from .evo_norm import EvoNorm2dB0, EvoNorm2dS0
from .filter_response_norm import FilterResponseNorm2d
from .group_norm import GroupNorm
from .ibn import IBN
from .instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .switchable_norm import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d

__all__ = ["get_norm_layer", "register_norm_layer"]

#: What makes a layer of ``num_features`` channels, given by position, and options, by keyword.
NormLayer = Callable[..., nn.Module]

#: Under each name one for any number of spatial dimensions, or one for each of some.
_REGISTRY: dict[str, NormLayer | Mapping[int, NormLayer]] = {}

_Layer = TypeVar("_Layer", bound=NormLayer)


def get_norm_layer(
    name: str | tuple[str, Mapping[str, Any]], *, dimensions: int = 2, **options: Any
) -> functools.partial[nn.Module]:
    r"""What makes the normalization of this name: a callable of ``num_features``.

    It is a :class:`functools.partial` of the layer's class, so it can be pickled, it goes through
    another ``partial``, and what is given when it is called stands over the options here. Every
    layer takes feature maps (N, C, \*S).

    ====================  ==========================================================================
    "instance", "batch"   ``InstanceNorm`` (no parameters, no tracking), ``BatchNorm`` (both)
    "group"               ``GroupNorm``; ``num_groups=32``, and C has to be a multiple of it
    "layer"               the same with one group: LayerNorm over (C, \*S), a weight per channel
    "switchable"          ``SwitchableNorm``; with one dimension it takes vectors (N, C)
    "batch_instance"      ``BatchInstanceNorm2d``
    "ibn"                 ``IBN``
    "contrast"            ``ContrastNorm2d``, which has no parameters
    "local_response"      ``LocalResponseNorm``; ``size=5``
    "filter_response"     ``FilterResponseNorm2d``, which is an activation too, as the next two are
    "evonorm_b0"          ``EvoNorm2dB0``
    "evonorm_s0"          ``EvoNorm2dS0``; ``groups=32``, and C has to be a multiple of it
    "none"                ``torch.nn.Identity``, which takes and ignores every option
    ====================  ==========================================================================

    RMSNorm, and LayerNorm over the last dimensions, are for tokens (N, L, C), so they would not
    stand where the others do: they have no name here.

    Args:
        name: one of these, or of those that you registered, in any case; or a pair of a name and
            its options, ``("group", {"num_groups": 8})``.
        dimensions: how many spatial dimensions the layer's inputs have: 1, 2 or 3.
        **options: of the layer: the keyword arguments of its constructor. They stand over those of
            a pair.

    Raises:
        ValueError: an unknown name or activation; a layer that there is not for so many dimensions.
        TypeError: an option that the layer does not have.

    >>> norm_layer = get_norm_layer("instance", affine=True)
    >>> norm_layer(16)(torch.randn(1, 16, 8, 8)).shape
    torch.Size([1, 16, 8, 8])
    >>> get_norm_layer(("group", {"num_groups": 8}), dimensions=3)(16).num_groups
    8
    """
    if not isinstance(name, str):
        name, options = _pair(name, options)
    layer = _layer(name, dimensions)
    _check_options(name, layer, options)
    return functools.partial(layer, **options)


def register_norm_layer(
    name: str,
    layer: _Layer | Mapping[int, NormLayer] | None = None,
    *,
    overwrite: bool = False,
) -> Any:
    """Give a layer of yours a name for :func:`get_norm_layer`. Without a layer, a decorator.

    Args:
        name: case does not matter.
        layer: a class or function that takes ``num_features`` by position and options by keyword,
            for any number of spatial dimensions; or a mapping of numbers of dimensions to such.
        overwrite: replace what has this name.

    Returns:
        The layer.

    Raises:
        ValueError: the name is taken by another layer.

    >>> @register_norm_layer("scale only")
    ... class ScaleOnly(nn.Module):
    ...     def __init__(self, num_features: int, start: float = 1.0) -> None:
    ...         super().__init__()
    >>> get_norm_layer("scale only", start=0.5)(3)
    ScaleOnly()
    """
    if layer is None:
        return functools.partial(register_norm_layer, name, overwrite=overwrite)
    key = name.lower()
    before = _REGISTRY.get(key, layer)
    if before != layer and not overwrite:
        raise ValueError(
            f"the name {name!r} is taken, by {before}: choose another, or pass overwrite=True"
        )
    _REGISTRY[key] = layer
    return layer


def is_registered(name: str) -> bool:
    """Whether :func:`get_norm_layer` knows this name."""
    return name.lower() in _REGISTRY


def check_groups(groups: int, channels: int) -> None:
    """Check a number of groups before a layer is made.

    Raises:
        ValueError: ``groups`` does not divide ``channels``.
    """
    if groups < 1 or channels % groups:
        divisors = [str(count) for count in range(1, channels + 1) if channels % count == 0]
        raise ValueError(
            f"{groups} groups do not divide {channels} channels: choose one of "
            f"{', '.join(divisors)}"
        )


def _pair(name: Any, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    match name:
        case [str(), Mapping()]:
            return name[0], {**name[1], **options}
    raise TypeError(
        f"expected a name, or a pair of a name and its options, got {name!r}: write "
        '"instance", or ("group", {"num_groups": 8})'
    )


def _layer(name: str, dimensions: int) -> NormLayer:
    found = _REGISTRY.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), _REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no normalization is named {name!r}: {hint}The names are {', '.join(_REGISTRY)}; "
            "register_norm_layer adds yours"
        )
    by_dimensions = found if isinstance(found, Mapping) else dict.fromkeys((1, 2, 3), found)
    if dimensions not in by_dimensions:
        known = " or ".join(map(str, by_dimensions))
        raise ValueError(
            f"{name!r} has no layer for dimensions={dimensions!r}: it has one for {known}"
        )
    return by_dimensions[dimensions]


def _check_options(name: str, layer: NormLayer, options: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(layer).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    accepted = [parameter.name for parameter in parameters[1:]]
    for option in options:
        if option not in accepted:
            raise TypeError(
                f"{name!r} has no option {option!r}: its options are "
                f"{', '.join(accepted) or 'none'}"
            )
    parse_activation(options.get("activation"))


def _with_options_of_group_norm(function: _Layer) -> _Layer:
    """Its signature, with what GroupNorm takes by keyword in place of ``**options``."""
    own = list(inspect.signature(function).parameters.values())[:-1]
    theirs = list(inspect.signature(GroupNorm).parameters.values())[2:]
    function.__signature__ = inspect.Signature([*own, *theirs])  # type: ignore[attr-defined]
    return function


@_with_options_of_group_norm
def _group_norm(num_features: int, num_groups: int = 32, **options: Any) -> nn.Module:
    layer: nn.Module = GroupNorm(num_groups, num_features, **options)
    return layer


@_with_options_of_group_norm
def _layer_norm(num_features: int, **options: Any) -> nn.Module:
    return _group_norm(num_features, 1, **options)


def _contrast_norm(num_features: int, eps: float = 0.0) -> nn.Module:
    return ContrastNorm2d(eps)


def _local_response_norm(
    num_features: int, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> nn.Module:
    return nn.LocalResponseNorm(size, alpha, beta, k)


register_norm_layer("instance", {1: InstanceNorm1d, 2: InstanceNorm2d, 3: InstanceNorm3d})
register_norm_layer("batch", {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d})
register_norm_layer("layer", _layer_norm)
register_norm_layer("group", _group_norm)
register_norm_layer(
    "switchable",
    {
        1: SwitchableNorm1d,
        2: SwitchableNorm2d,
        3: SwitchableNorm3d,
    },
)
register_norm_layer("batch_instance", {2: BatchInstanceNorm2d})
register_norm_layer("ibn", {2: IBN})
register_norm_layer("contrast", {2: _contrast_norm})
register_norm_layer("local_response", _local_response_norm)
register_norm_layer("filter_response", {2: FilterResponseNorm2d})
register_norm_layer("evonorm_b0", {2: EvoNorm2dB0})
register_norm_layer("evonorm_s0", {2: EvoNorm2dS0})
register_norm_layer("none", nn.Identity)

#: Names of the norms of this library, without those that are registered by others.
NORMS = tuple(name for name in _REGISTRY if name != "none")
