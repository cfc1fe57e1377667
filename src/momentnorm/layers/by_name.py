"""By name: the table of norms, for models and commands that take the name of a norm.

A norm of this library is a row of ``_REGISTRY``. :func:`register_norm_layer` adds others.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

#: Class or function that takes ``num_features`` by position and options by keyword.
NormLayer = Callable[..., nn.Module]


@dataclass(frozen=True)
class Norm:
    """Row of the table of norms."""

    title: str  # for headings, such as "Instance Norm"
    layers: Mapping[int, NormLayer]  # by the number of spatial dimensions of the input
    groups: str = ""  # name of the option for the number of groups, if there is one
    vectors: bool = False  # whether the layer for one dimension takes vectors (N, C)


_Layer = TypeVar("_Layer", bound=NormLayer)


def get_norm_layer(
    name: str | tuple[str, Mapping[str, Any]], *, dimensions: int = 2, **options: Any
) -> functools.partial[nn.Module]:
    r"""Find the normalization of this name, as a callable of ``num_features``.

    The callable is a :class:`functools.partial` of the layer's class. It can be pickled and wrapped
    in another ``partial``. Options of its call take precedence over those given here. Every layer
    takes feature maps (N, C, \*S).

    ====================  ==========================================================================
    "instance", "batch"   ``InstanceNorm`` (no parameters, no tracking), ``BatchNorm`` (both)
    "group"               ``GroupNorm``; ``num_groups=32``, and C has to be a multiple of it
    "layer"               ``GroupNorm`` of one group: LayerNorm over (C, \*S), weight per channel
    "switchable"          ``SwitchableNorm``; with one dimension it takes vectors (N, C)
    "batch_instance"      ``BatchInstanceNorm2d``
    "ibn"                 ``IBN``
    "contrast"            ``ContrastNorm2d``, which has no parameters
    "local_response"      ``LocalResponseNorm``; ``size=5``
    "filter_response"     ``FilterResponseNorm2d``, a norm and an activation together
    "evonorm_b0"          ``EvoNorm2dB0``, a norm and an activation together
    "evonorm_s0"          ``EvoNorm2dS0``, likewise; ``groups=32``, and C has to be a multiple of it
    "none"                ``torch.nn.Identity``, which takes and ignores every option
    ====================  ==========================================================================

    RMSNorm, and LayerNorm over the last dimensions, have no name here. They take tokens (N, L, C)
    in place of feature maps.

    Args:
        name: a name of this table or a registered one, in any case; or a pair of a name and
            options, ``("group", {"num_groups": 8})``.
        dimensions: number of spatial dimensions of the input: 1, 2 or 3.
        **options: keyword arguments of the layer's constructor. They take precedence over those of
            a pair.

    Raises:
        ValueError: an unknown name or activation; a name without a layer for these dimensions.
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
    """Register a layer of yours under a name for :func:`get_norm_layer`.

    Args:
        name: the name, in any case.
        layer: a class or function that takes ``num_features`` by position and options by keyword,
            for any number of spatial dimensions; or a mapping from numbers of dimensions to classes
            or functions. Without a layer the call returns a decorator.
        overwrite: whether to replace another layer of this name.

    Returns:
        The layer.

    Raises:
        ValueError: another layer has this name.

    >>> @register_norm_layer("scale only")
    ... class ScaleOnly(nn.Module):
    ...     def __init__(self, num_features: int, start: float = 1.0) -> None:
    ...         super().__init__()
    >>> get_norm_layer("scale only", start=0.5)(3)
    ScaleOnly()
    """
    if layer is None:
        return functools.partial(register_norm_layer, name, overwrite=overwrite)
    key, layers = name.lower(), _by_dimensions(layer)
    if key in _REGISTRY and not overwrite:
        before = _REGISTRY[key].layers
        if before == layers:
            return layer
        owners = ", ".join(dict.fromkeys(map(_name_of, before.values())))
        raise ValueError(
            f"the name {name!r} is taken, by {owners}: choose another, or pass overwrite=True"
        )
    _REGISTRY[key] = Norm(name, layers)
    return layer


def _name_of(layer: NormLayer) -> str:
    return getattr(layer, "__name__", repr(layer))


def is_registered(name: str) -> bool:
    """Whether :func:`get_norm_layer` knows this name."""
    return name.lower() in _REGISTRY


def norm_named(name: str) -> Norm:
    """Row of the table for this name, in any case.

    Raises:
        ValueError: an unknown name.
    """
    found = _REGISTRY.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), _REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no normalization is named {name!r}: {hint}The names are {', '.join(_REGISTRY)}; "
            "register_norm_layer adds yours"
        )
    return found


def check_groups(groups: int, channels: int) -> None:
    """Check a number of groups, before a layer is made.

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
    layers = norm_named(name).layers
    if dimensions not in layers:
        known = " or ".join(map(str, layers))
        raise ValueError(
            f"{name!r} has no layer for dimensions={dimensions!r}: it has one for {known}"
        )
    return layers[dimensions]


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
    """Put the keyword arguments of GroupNorm into the signature, in place of ``**options``."""
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


def _by_dimensions(layer: NormLayer | Mapping[int, NormLayer]) -> Mapping[int, NormLayer]:
    return layer if isinstance(layer, Mapping) else dict.fromkeys((1, 2, 3), layer)


#: The table of norms, in lower case, with those that are registered later.
_REGISTRY: dict[str, Norm] = {
    "instance": Norm("Instance Norm", {1: InstanceNorm1d, 2: InstanceNorm2d, 3: InstanceNorm3d}),
    "batch": Norm("Batch Norm", {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}, vectors=True),
    "layer": Norm("Layer Norm", _by_dimensions(_layer_norm)),
    "group": Norm("Group Norm", _by_dimensions(_group_norm), groups="num_groups", vectors=True),
    "switchable": Norm(
        "Switchable Norm",
        {1: SwitchableNorm1d, 2: SwitchableNorm2d, 3: SwitchableNorm3d},
        vectors=True,
    ),
    "batch_instance": Norm("Batch-Instance Norm", {2: BatchInstanceNorm2d}),
    "ibn": Norm("IBN", {2: IBN}),
    "contrast": Norm("Contrast Norm", {2: _contrast_norm}),
    "local_response": Norm("Local Response Norm", _by_dimensions(_local_response_norm)),
    "filter_response": Norm("Filter Response Norm", {2: FilterResponseNorm2d}),
    "evonorm_b0": Norm("EvoNorm B0", {2: EvoNorm2dB0}),
    "evonorm_s0": Norm("EvoNorm S0", {2: EvoNorm2dS0}, groups="groups"),
    "none": Norm("no norm", _by_dimensions(nn.Identity)),
}

#: Names of the norms of this library, without those that are registered by others.
NORMS = tuple(name for name in _REGISTRY if name != "none")
