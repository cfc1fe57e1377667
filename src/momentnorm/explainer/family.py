"""Which explanation each layer has. To add one, write a function like those below.

    @explains(MyNorm2d)
    def _my_norm(layer, x, residual):
        return Planes(x, Pooled(Pool(1, None)), weight=layer.weight, bias=layer.bias, eps=layer.eps)

A layer that is a policy on planes is a :class:`Planes`; any other is a subclass of
:class:`Explanation` with a ``forward``. The result is checked against the layer's own output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import layers
from ..core.grid import statistics_dtype
from ..core.pool import BATCH, INSTANCE, Policy, Pool
from ..core.tail import parse_activation
from ..layers import batch_instance_norm, switchable_norm
from ..layers.batch_instance_norm import BatchInstanceNorm2d
from ..layers.contrast_norm import ContrastNorm2d
from ..layers.ibn import IBN
from ..layers.switchable_norm import SwitchableNorm
from . import views
from .explanation import Explanation
from .mixtures import Gated, Mixed
from .others import Contrast, LocalResponse, Split
from .planes import Planes
from .running import Update
from .statistics import Given, MeanSquare, Pooled, Statistics
from .trace import ExplainError

#: From a layer, its input, the residual, if any, and what else its call takes, to what the layer
#: does with them.
Explainer = Callable[..., Explanation]

_EXPLAINERS: dict[type[nn.Module], Explainer] = {}

_Function = TypeVar("_Function", bound=Explainer)


def explains(*classes: type[nn.Module]) -> Callable[[_Function], _Function]:
    """Register the function below as the explanation of these classes and their subclasses.

    It is called with the layer, the input, the residual (or None) and what else the layer's call
    takes by position, and returns an :class:`Explanation`. It reads the layer and never changes it.

    >>> import momentnorm
    >>> from momentnorm.explainer import Planes, Pooled, explains
    >>> class ByHeight(torch.nn.Module):  # all channels of a sample share
    ...     def forward(self, x):
    ...         return momentnorm.functional.pooled_norm(x, pool=momentnorm.Pool(1, None))
    >>> @explains(ByHeight)
    ... def _by_height(layer, x, residual):
    ...     return Planes(x, Pooled(momentnorm.Pool(1, None)))
    >>> momentnorm.explain(ByHeight(), torch.rand(2, 3, 4)).checks[0].difference
    0.0
    """

    def register(function: _Function) -> _Function:
        for one in classes:
            _EXPLAINERS[one] = function
        return function

    return register


def explanation_of(
    layer: nn.Module, x: Tensor, residual: Tensor | None, *operands: Any
) -> Explanation:
    """What this layer does to this input.

    Raises:
        ExplainError: no explanation is registered for this class.
    """
    for one in type(layer).__mro__:
        if one in _EXPLAINERS:
            return _EXPLAINERS[one](layer, x, residual, *operands)
    known = ", ".join(sorted({one.__name__.lstrip("_") for one in _EXPLAINERS}))
    raise ExplainError(
        f"no explanation is known for {type(layer).__name__}: explained are {known} and their "
        "subclasses; register another with momentnorm.explain.explains"
    )


#: What ``momentnorm.Pool`` means, in words.
_SHARING = {
    "instance": "each plane (one channel of one sample) has statistics of its own",
    "batch": "one channel of all samples shares its statistics",
    "group": "neighbouring channels of one sample share their statistics",
    "layer": "all channels of one sample share their statistics",
    "running": "nothing is shared: the running statistics of each channel are used as they are",
}


def _tail(layer: nn.Module, residual: Tensor | None) -> dict[str, Any]:
    """What follows the normalization; torch's own layers have nothing."""
    activation, slope = parse_activation(getattr(layer, "activation", None))
    return {"residual": residual, "activation": activation, "slope": slope}


def _given(layer: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The running moments, where a mixture takes them in place of the batch's."""
    if layer.training or layer.running_mean is None:
        return None
    running = _running(layer, x)
    return running.mean, running.var


def _running(layer: Any, x: Tensor) -> Given:
    dtype = statistics_dtype(x)
    return Given(
        layer.running_mean.detach().to(dtype).flatten(),
        layer.running_var.detach().to(dtype).flatten(),
    )


def _updates(
    layer: Any, pool: Policy, count: int, share: float | None, mean_rule: str, var_rule: str
) -> tuple[Update, ...]:
    """Of what the layer has of running_mean and running_var, which is made unbiased.

    Args:
        count: the elements of which a variance is made.
    """

    def mean_of(mean: Tensor, var: Tensor) -> Tensor:
        return pool(mean, var)[0].flatten()

    def var_of(mean: Tensor, var: Tensor) -> Tensor:
        return pool(mean, var)[1].flatten() * (count / (count - 1))

    return tuple(
        Update(name, getattr(layer, name).detach().clone(), of_batch, rule, share)
        for name, of_batch, rule in (
            ("running_mean", mean_of, mean_rule),
            ("running_var", var_of, var_rule),
        )
        if hasattr(layer, name)
    )


def batch_updates(layer: Any, x: Tensor, pool: Pool) -> tuple[Update, ...]:
    """Of a layer that keeps the batch's moments of each channel; ``pool`` is that of a channel."""
    tracks = getattr(layer, "track_running_stats", True) and layer.running_var is not None
    if not (layer.training and tracks):
        return ()

    def of_channel(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        pooled_mean, pooled_var = pool(mean, var)
        return pooled_mean[0], pooled_var[0]

    share = layer.momentum
    if share is None:  # the average of all batches
        share = 1.0 / (int(layer.num_batches_tracked) + 1)
    return _updates(
        layer,
        of_channel,
        x.shape[0] * x.shape[2:].numel(),
        share,
        "the batch's mean of each channel",
        "the batch's unbiased variance of each channel, n / (n - 1) * var of n elements",
    )


@explains(nn.modules.instancenorm._InstanceNorm)
def _instance_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    view = views.unbatched(x) if x.dim() == layer._get_no_batch_dim() else views.feature_map(x)
    of_input = layer.training or not layer.track_running_stats
    planes = view.planes(x)
    updates: tuple[Update, ...] = ()
    statistics: Statistics
    if of_input:
        statistics = Pooled(INSTANCE)
        if layer.running_mean is not None:
            count = planes.shape[2:].numel()
            updates = _updates(
                layer,
                lambda mean, var: (mean.mean(0), var.mean(0)),
                count,
                0.0 if layer.momentum is None else layer.momentum,
                "the batch's average of the means of its planes",
                "the batch's average of the unbiased variances, m / (m - 1) * var, of its planes",
            )
    else:
        statistics = _running(layer, x)
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
    found.summary = _SHARING["instance" if of_input else "running"]
    return found


@explains(nn.modules.batchnorm._BatchNorm)
def _batch_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    vectors = x.dim() == 2
    view = views.batch_of_vectors(x) if vectors else views.feature_map(x)
    pool = INSTANCE if vectors else BATCH
    of_input = layer.training or (layer.running_mean is None and layer.running_var is None)
    found = Planes(
        x,
        Pooled(pool) if of_input else _running(layer, x),
        view=view,
        weight=layer.weight,
        bias=layer.bias,
        eps=layer.eps,
        updates=batch_updates(layer, x, pool),
        **_tail(layer, residual),
    )
    found.summary = _SHARING["batch" if of_input else "running"]
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
    view = views.points(x) if x.dim() == 2 else views.feature_map(x)
    size = x.shape[2:].numel()
    given = _given(layer, x)
    dtype = statistics_dtype(x)
    parameters = {
        name: getattr(layer, name).detach().to(dtype, copy=True).requires_grad_()
        for name in ("mean_weight", "var_weight")
    }
    policy = switchable_norm.Mixture(
        size, parameters["mean_weight"], parameters["var_weight"], layer.using_bn, given
    )

    kinds: tuple[str, ...] = layer._kinds()

    def moments_of(kind: str, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return policy.kinds(mean, var)[kinds.index(kind)]

    updates: tuple[Update, ...] = ()
    if layer.training and layer.using_bn:
        share = 1 - layer.momentum if layer.using_moving_average else None
        what = "the batch's mean of each channel", "the batch's variance of each channel"
        if share is None:
            what = what[0], "the batch's variance + mean^2 of each channel"

        def of_batch(mean: Tensor, var: Tensor) -> Tensor:
            batch_mean, batch_var = policy.of_batch(mean, var)
            return batch_var if share is not None else batch_var + batch_mean.square()

        updates = (
            Update(
                "running_mean",
                layer.running_mean.detach().clone(),
                lambda mean, var: policy.of_batch(mean, var)[0],
                what[0],
                share,
            ),
            Update("running_var", layer.running_var.detach().clone(), of_batch, what[1], share),
        )
    found = Planes(
        x,
        Mixed(policy, kinds, moments_of, given is not None, size > 1, parameters),
        view=view,
        weight=layer.weight.flatten(),
        bias=layer.bias.flatten(),
        eps=layer.eps,
        updates=updates,
    )
    found.summary = "a learned mixture of the plane's, the sample's and the batch's statistics"
    if layer.training and layer.using_bn and layer.using_moving_average:
        found.notes.append(
            f"This layer's momentum, {layer.momentum:g}, is what the running statistics keep: "
            f"momentum below is torch's, {1 - layer.momentum:g}."
        )
    return found


@explains(BatchInstanceNorm2d)
def _batch_instance_norm(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    given = _given(layer, x)
    gate = layer.gate.detach().to(statistics_dtype(x), copy=True)
    if layer.training:
        gate.clamp_(0, 1)  # as the layer does first
    gate.requires_grad_()

    def of_batch(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return BATCH(mean, var) if given is None else given

    def policy(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return batch_instance_norm.Gated(gate.clamp(0, 1), layer.eps, given)(mean, var)

    found = Planes(
        x,
        Gated(policy, of_batch, given is not None, layer.eps, {"gate": gate}),
        weight=layer.weight,
        bias=layer.bias,
        eps=0.0,
        updates=batch_updates(layer, x, BATCH),
    )
    found.summary = "per channel, a gate's share of batch and the rest of instance normalization"
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
    """A layer of torch's own as momentnorm's class of the same name; others as they are.

    Changes the layer: give it a copy.
    """
    ours = getattr(layers, type(layer).__name__, None)
    if ours is not None and type(layer).__module__.startswith("torch.nn"):
        layer.__class__ = ours
    return layer
