"""Known ways to export a normalization layer wrongly, each with its formula and its fix."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from ..core.pool import Pool
from ..core.tail import parse_activation
from .calls import BATCH_NORM, MIXTURES, Call, Formula, pool_of, uses_running_statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Facts(NamedTuple):
    """Numbers of the file: possible values of eps, and an operator's scale, bias and mode."""

    eps: tuple[float, ...] = ()
    scale: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None
    training: bool = False


class Hypothesis(NamedTuple):
    """One way in which a file may be wrong."""

    kind: str
    message: str
    fix: str
    formula: Formula


#: Pools that a file may use in place of the layer's, and their names in messages.
_POOLS = {
    Pool(1, 1): "each channel of each sample",
    Pool(None, 1): "each channel of the batch",
    Pool(1, None): "each sample",
}


def hypotheses(call: Call, facts: Facts) -> Iterator[Hypothesis]:
    """Yield the known ways to export this call wrongly, the likely ones first."""
    layer = call.exact
    eps = layer.eps
    for value in facts.eps:
        if abs(value - eps) > 1e-3 * eps:
            yield Hypothesis(
                "eps",
                f"the layer has eps {eps:g}, the file {value:g}",
                f"set the operator's epsilon to {eps:g}, or export again without changing it",
                _changed(call, eps=value),
            )
    yield from _operands(call)
    yield from _groups(call, facts)
    if isinstance(layer, MIXTURES):
        yield from _mode(call)
    elif not call.options.keys() <= {"residual", "activation"}:
        pass  # pooled_norm takes no mask
    elif uses_running_statistics(layer):
        yield from _running_statistics_dropped(call, facts)
    elif not isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        yield from _statistics(call)
    yield from _affine(call)


def _operands(call: Call) -> Iterator[Hypothesis]:
    """The activation, the residual or the mask is left out."""
    name, _ = parse_activation(getattr(call.exact, "activation", None))
    if name:
        yield Hypothesis(
            "activation",
            f"the layer ends with {name}, the file without it",
            "export the layer with its activation, or add the operator behind it",
            _changed(call, activation=None),
        )
    for option in call.options:
        others = {key: value for key, value in call.options.items() if key != option}
        yield Hypothesis(
            "operand",
            f"the layer is called with {option}=, the file computes it without",
            "export the module that calls the layer, not the layer alone",
            _changed(replace(call, options=others)),
        )


def _mode(call: Call) -> Iterator[Hypothesis]:
    """A mixture in the other mode: its batch statistics are the running ones, or the reverse."""
    training = call.exact.training
    uses, other = ("the batch's statistics", "the running ones")[:: 1 if training else -1]
    yield Hypothesis(
        "statistics" if training else "train",
        f"the layer uses {uses}, the file {other}",
        "export the model in the mode in which it is used"
        if training
        else "call model.eval() before the export",
        _changed(call, training=not training),
    )


def _running_statistics_dropped(call: Call, facts: Facts) -> Iterator[Hypothesis]:
    for pool, name in _POOLS.items():
        train = facts.training or (pool == Pool(None, 1) and isinstance(call.exact, BATCH_NORM))
        fix = "call model.eval() before the export"
        if not train:
            fix = "export with the running statistics: BatchNormalization has inputs for them"
        yield Hypothesis(
            "train" if train else "statistics",
            f"the layer uses its running statistics, the file those of {name}"
            + (" (it was exported in train mode)" if train else ""),
            fix,
            _pooled(call, pool),
        )


def _statistics(call: Call) -> Iterator[Hypothesis]:
    if getattr(call.exact, "running_mean", None) is not None:
        yield Hypothesis(
            "statistics",
            "the layer uses the statistics of its input, the file the running ones",
            "export the model in the mode in which it is used, or without track_running_stats",
            _changed(call, training=False),
        )
    own = pool_of(call.exact)
    for pool, name in _POOLS.items():
        if pool != own:
            yield Hypothesis(
                "statistics",
                f"the file takes its statistics over {name}, the layer does not",
                "export the layer's own operator: InstanceNormalization, GroupNormalization, or "
                "BatchNormalization",
                _pooled(call, pool),
            )
    yield Hypothesis(
        "variance",
        "the file divides by the unbiased variance, the layer by the biased one",
        "take the mean of the squared deviations: divide by n, not n - 1",
        _pooled(call, own, unbiased=True),
    )


def _groups(call: Call, facts: Facts) -> Iterator[Hypothesis]:
    if not isinstance(call.exact, nn.GroupNorm):
        return
    groups, channels = call.exact.num_groups, call.exact.num_channels
    scale, bias = facts.scale, facts.bias
    if scale is not None and bias is not None and channels % scale.size == 0:
        repeat = channels // scale.size
        weight, shift = (
            nn.Parameter(torch.tensor(v).double().flatten().repeat_interleave(repeat))
            for v in (scale, bias)
            if v is not None
        )
        yield Hypothesis(
            "scale",
            f"the file has a scale for each of the {scale.size} groups, as GroupNormalization has "
            f"in opset 18; the layer has one for each of its {channels} channels",
            "export with opset 21 or later, whose GroupNormalization has a scale for each channel",
            _changed(call, weight=weight, bias=shift),
        )
    for other in range(1, channels + 1):
        if channels % other == 0 and other != groups:
            yield Hypothesis(
                "groups",
                f"the layer has {groups} groups, the file {other}",
                f"set num_groups to {groups}",
                _changed(call, num_groups=other),
            )


def _affine(call: Call) -> Iterator[Hypothesis]:
    neutral = {
        name: nn.Parameter(make(values))
        for name, make in (("weight", torch.ones_like), ("bias", torch.zeros_like))
        if (values := getattr(call.exact, name, None)) is not None
    }
    choices = [[name] for name in neutral] + ([[*neutral]] if len(neutral) == 2 else [])
    for names in choices:
        text = " and ".join(names)
        yield Hypothesis(
            "affine",
            f"the layer has a {text}, the file leaves {'them' if len(names) > 1 else 'it'} out",
            f"export the {text} with the layer: scale and bias of the operator",
            _changed(call, **{name: neutral[name] for name in names}),
        )


def _changed(call: Call, **attributes: Any) -> Formula:
    """Return the call of a layer with these attributes."""

    def formula(x: Tensor) -> Tensor:
        layer = copy.deepcopy(call.exact)  # running statistics move in train mode
        for name, value in attributes.items():
            setattr(layer, name, value)
        return call.apply(layer, x)

    return formula


def _pooled(call: Call, pool: Pool, unbiased: bool = False) -> Formula:
    """Return the call of the layer with the statistics of these pools."""

    def formula(x: Tensor) -> Tensor:
        planes = x if x.dim() > 2 else x.unsqueeze(2)

        def moments(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            samples, channels = pool.sizes(*mean.shape)
            count = samples * channels * planes.shape[2:].numel()
            mean, var = pool(mean, var)
            return mean, var * (count / max(count - 1, 1) if unbiased else 1)

        def normalize(values: Tensor, **options: Any) -> Tensor:
            layer = call.exact
            options = {"activation": getattr(layer, "activation", None), **options}
            y = functional.pooled_norm(
                values, layer.weight, layer.bias, pool=moments, eps=layer.eps, **options
            )
            return y.reshape(x.shape)

        return call.apply(normalize, planes)

    return formula
