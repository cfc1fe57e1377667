"""Family: the explanations of the layers whose weights are their own parameters.

A new layer needs one function like those below:

.. code-block:: python

    @explains(MyNorm2d)
    def _my_norm(layer, x, residual):
        return Planes(x, Pooled(Pool(1, None)), weight=layer.weight, bias=layer.bias, eps=layer.eps)

A layer that is a policy on planes has a :class:`Planes`. Any other has a subclass of
:class:`Explanation` with a ``forward``. The result is checked against the output of the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import layers
from ..core.grid import statistics_dtype
from ..core.pool import BATCH, INSTANCE, Pool
from ..core.tail import parse_activation
from ..layers import batch_instance_norm, switchable_norm
from ..layers.batch_instance_norm import BatchInstanceNorm2d
from ..layers.contrast_norm import ContrastNorm2d
from ..layers.ibn import IBN
from ..layers.switchable_norm import SwitchableNorm
from . import views
from .explanation import Explanation, as_leaf
from .mixtures import Gated, Mixed
from .others import Contrast, LocalResponse, Split
from .planes import Planes
from .registry import explains, explanation_of
from .running import (
    Update,
    batch_updates,
    moments_in_evaluation,
    running_moments,
    updates_of,
)
from .statistics import Given, MeanSquare, Pooled, Statistics

#: Which planes share their statistics, in words.
_SHARING = {
    "instance": "each plane (one channel of one sample) has statistics of its own",
    "batch": "one channel of all samples shares its statistics",
    "group": "neighbouring channels of one sample share their statistics",
    "layer": "all channels of one sample share their statistics",
    "running": "no planes share: each channel is normalized with its running statistics",
}


def _tail(layer: nn.Module, residual: Tensor | None) -> dict[str, Any]:
    """Residual and activation, as arguments of :class:`Planes`. torch's layers have neither."""
    activation, slope = parse_activation(getattr(layer, "activation", None))
    return {"residual": residual, "activation": activation, "slope": slope}


@explains(nn.modules.instancenorm._InstanceNorm)
def _instance_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    view = views.unbatched(x) if x.dim() == layer._get_no_batch_dim() else views.feature_map(x)
    uses_input = layer.training or not layer.track_running_stats
    planes = view.planes(x)
    updates: tuple[Update, ...] = ()
    statistics: Statistics
    if uses_input:
        statistics = Pooled(INSTANCE)
        if layer.running_mean is not None:
            count = planes.shape[2:].numel()
            updates = updates_of(
                layer,
                lambda mean, var: (mean.mean(0), var.mean(0)),
                count,
                0.0 if layer.momentum is None else layer.momentum,
                "the batch's average of the means of its planes",
                "the batch's average of the unbiased variances, m / (m - 1) * var, of its planes",
            )
    else:
        statistics = Given(*running_moments(layer, x))
    found = Planes(
        x,
        statistics,
        view=view,
        weight=layer.weight,
        bias=layer.bias,
        eps=layer.eps,
        updates=updates,
        **_tail(layer, residual),
    )
    found.summary = _SHARING["instance" if uses_input else "running"]
    return found


@explains(nn.modules.batchnorm._BatchNorm)
def _batch_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    vectors = x.dim() == 2
    view = views.batch_of_vectors(x) if vectors else views.feature_map(x)
    pool = INSTANCE if vectors else BATCH
    uses_input = layer.training or (layer.running_mean is None and layer.running_var is None)
    found = Planes(
        x,
        Pooled(pool) if uses_input else Given(*running_moments(layer, x)),
        view=view,
        weight=layer.weight,
        bias=layer.bias,
        eps=layer.eps,
        updates=batch_updates(layer, x, pool),
        **_tail(layer, residual),
    )
    found.summary = _SHARING["batch" if uses_input else "running"]
    return found


@explains(nn.GroupNorm)
def _group_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    view = views.points(x) if x.dim() == 2 else views.feature_map(x)
    found = Planes(
        x,
        Pooled(Pool(1, max(1, x.shape[1] // layer.num_groups))),
        view=view,
        weight=layer.weight,
        bias=layer.bias,
        eps=layer.eps,
        **_tail(layer, residual),
    )
    kind = "layer" if layer.num_groups == 1 else "group"
    found.summary = _SHARING["instance" if layer.num_groups == x.shape[1] else kind]
    return found


@explains(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    dimensions = len(layer.normalized_shape)
    rms = isinstance(layer, nn.RMSNorm)
    view = views.rows(x, dimensions)
    found = Planes(
        x,
        MeanSquare() if rms else Pooled(INSTANCE),
        view=view,
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        per_element=True,
        eps=layer.eps,
    )
    found.exact = False
    row = ", ".join(view.axes[-dimensions:])
    found.summary = f"the elements over ({row}) share their statistics; weights are per element"
    return found


@explains(nn.LocalResponseNorm)
def _local_response_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    return LocalResponse(x, layer.size, layer.alpha, layer.beta, layer.k)


@explains(SwitchableNorm)
def _switchable_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    size = x.shape[2:].numel()
    given = moments_in_evaluation(layer, x)
    parameters = {name: as_leaf(getattr(layer, name), x) for name in ("mean_weight", "var_weight")}
    policy = switchable_norm.Mixture(
        size, parameters["mean_weight"], parameters["var_weight"], layer.using_bn, given
    )
    kinds = tuple(layer.mixture()["mean"])

    def moments_of(kind: str, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return policy.kinds(mean, var)[kinds.index(kind)]

    found = Planes(
        x,
        Mixed(policy, parameters, given is not None, kinds, moments_of, size > 1),
        view=views.points(x) if x.dim() == 2 else views.feature_map(x),
        weight=layer.weight.flatten(),
        bias=layer.bias.flatten(),
        eps=layer.eps,
        updates=_switchable_updates(layer, policy),
    )
    found.summary = "a learned mixture of the plane's, the sample's and the batch's statistics"
    if layer.training and layer.using_bn and layer.using_moving_average:
        found.notes.append(
            f"This layer's momentum, {layer.momentum:g}, is the share that the running statistics "
            f"keep: momentum below is torch's, {1 - layer.momentum:g}."
        )
    return found


def _switchable_updates(layer: Any, policy: switchable_norm.Mixture) -> tuple[Update, ...]:
    """Updates of SwitchableNorm: moving averages, or sums of mean and of variance + mean^2."""
    if not (layer.training and layer.using_bn):
        return ()
    share = 1 - layer.momentum if layer.using_moving_average else None
    plus = "" if layer.using_moving_average else " + mean^2"

    def mean_of(mean: Tensor, var: Tensor) -> Tensor:
        return policy.of_batch(mean, var)[0]

    def var_of(mean: Tensor, var: Tensor) -> Tensor:
        batch_mean, batch_var = policy.of_batch(mean, var)
        return batch_var + batch_mean.square() if plus else batch_var

    return tuple(
        Update(name, getattr(layer, name).detach().clone(), of_batch, rule, share)
        for name, of_batch, rule in (
            ("running_mean", mean_of, "the batch's mean of each channel"),
            ("running_var", var_of, f"the batch's variance{plus} of each channel"),
        )
    )


@explains(BatchInstanceNorm2d)
def _batch_instance_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    given = moments_in_evaluation(layer, x)
    gate = layer.gate.detach().to(statistics_dtype(x), copy=True)
    if layer.training:
        gate.clamp_(0, 1)  # the layer clamps its gate in training
    gate.requires_grad_()

    def of_batch(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return BATCH(mean, var) if given is None else given

    def policy(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return batch_instance_norm.Gated(gate.clamp(0, 1), layer.eps, given)(mean, var)

    found = Planes(
        x,
        Gated(policy, {"gate": gate}, given is not None, of_batch, layer.eps),
        weight=layer.weight,
        bias=layer.bias,
        eps=0.0,
        updates=batch_updates(layer, x, BATCH),
    )
    found.summary = "each channel mixes batch and instance normalization by its gate"
    return found


@explains(ContrastNorm2d)
def _contrast_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    return Contrast(x, layer.eps)


@explains(IBN)
def _ibn(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    first = layer.instance_channels
    sizes = [first, layer.num_features - first]
    parts = torch.split(x, sizes, 1)
    return Split(
        x,
        {
            name: (explanation_of(getattr(layer, name), part, None), size)
            for name, part, size in zip(("IN", "BN"), parts, sizes, strict=True)
        },
    )


def with_our_arithmetic(layer: nn.Module) -> nn.Module:
    """Turn one of torch's own layers into momentnorm's class of this name, in place.

    Other layers stay unchanged. Returns the layer.
    """
    ours = getattr(layers, type(layer).__name__, None)
    if ours is not None and type(layer).__module__.startswith("torch.nn"):
        layer.__class__ = ours
    return layer
