"""The calls of a model's normalization layers, and the known ways to export them wrongly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..core.pool import Pool

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH, _INSTANCE = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm
_CLASSES = (_BATCH, _INSTANCE, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

#: A function of the layer's input, in float64.
Formula = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a normalization layer.

    Args:
        name: the layer's name in the model.
        layer: a copy of the layer, as it was before the call.
        exact: a copy in float64.
        input: what the layer was called with.
        output: what it returned.
    """

    name: str
    layer: Any
    exact: Any
    input: Tensor
    output: Tensor

    def truth(self, x: Tensor) -> Tensor:
        """The layer's output in float64; in train mode its running statistics stay."""
        layer = copy.deepcopy(self.exact) if self.exact.training else self.exact
        y: Tensor = layer(x)
        return y

    @property
    def frozen(self) -> bool:
        """True where the layer uses running statistics rather than those of its input."""
        return uses_running_statistics(self.layer)

    def sigma(self, x: Tensor) -> float:
        """The smallest sqrt(var + eps) by which the layer divides such an input."""
        layer = self.exact
        if self.frozen:
            var = layer.running_var
        elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            var = x.flatten(-len(layer.normalized_shape)).var(-1, correction=0)
        else:
            var = _pool(layer)(*_moments(x))[1]
        return float((var + layer.eps).clamp(min=0).sqrt().min())


def record(model: nn.Module, example: tuple[Any, ...]) -> tuple[list[Call], list[str], Any]:
    """Run the model once, and return its normalization layers' calls and its outputs.

    Names of layers that are called with a residual, a mask or lengths are returned apart: such
    calls are not compared. The model keeps its mode, its buffers and the random numbers' state.
    """
    layers: dict[nn.Module, str] = {
        layer: name for name, layer in model.named_modules() if isinstance(layer, _CLASSES)
    }
    copies: dict[nn.Module, Any] = {layer: copy.deepcopy(layer).cpu() for layer in layers}
    calls: list[Call] = []
    skipped: list[str] = []

    def hook(layer: nn.Module, inputs: tuple[Any, ...], kwargs: Any, output: Tensor) -> None:
        name, before = layers[layer], copies[layer]
        if len(inputs) != 1 or kwargs:
            skipped.append(name)
            return
        exact = copy.deepcopy(before).double()
        if exact.eps is None:  # that of the dtype
            exact.eps = torch.finfo(inputs[0].dtype).eps
        x, y = (values.detach().cpu().clone() for values in (inputs[0], output))
        calls.append(Call(name, before, exact, x, y))

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
    return calls, skipped, outputs


def uses_running_statistics(layer: Any) -> bool:
    """Tell whether the layer normalizes with running statistics."""
    if not isinstance(layer, (_BATCH, _INSTANCE)) or layer.training:
        return False
    return layer.running_mean is not None and (
        isinstance(layer, _BATCH) or layer.track_running_stats
    )


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


def hypotheses(layer: Any, facts: Facts, channels: int) -> Iterator[Hypothesis]:
    """Yield the known ways to export this layer wrongly, the likely ones first."""
    eps = layer.eps
    for value in facts.eps:
        if abs(value - eps) > 1e-3 * eps:
            yield Hypothesis(
                "eps",
                f"the layer has eps {eps:g}, the file {value:g}",
                f"set the operator's epsilon to {eps:g}, or export again without changing it",
                _changed(layer, eps=value),
            )
    if getattr(layer, "activation", None):
        yield Hypothesis(
            "activation",
            f"the layer ends with {_activation(layer)[0]}, the file without it",
            "export the layer with its activation, or add the operator behind it",
            _changed(layer, activation=None),
        )
    yield from _groups(layer, facts, channels)
    yield from _statistics(layer, facts)
    yield from _affine(layer)


def _statistics(layer: Any, facts: Facts) -> Iterator[Hypothesis]:
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return
    names = {
        Pool(1, 1): "each channel of each sample",
        Pool(None, 1): "each channel of the batch",
        Pool(1, None): "each sample",
    }
    if uses_running_statistics(layer):
        for pool, name in names.items():
            train = facts.training or (pool == Pool(None, 1) and isinstance(layer, _BATCH))
            fix = "call model.eval() before the export"
            if not train:
                fix = "export with the running statistics: BatchNormalization has inputs for them"
            yield Hypothesis(
                "train" if train else "statistics",
                f"the layer uses its running statistics, the file those of {name}"
                + (" (it was exported in train mode)" if train else ""),
                fix,
                _pooled(layer, pool),
            )
        return
    if getattr(layer, "running_mean", None) is not None:
        yield Hypothesis(
            "statistics",
            "the layer uses the statistics of its input, the file the running ones",
            "export the model in the mode in which it is used, or without track_running_stats",
            copy.deepcopy(layer).eval(),
        )
    own = _pool(layer)
    for pool, name in names.items():
        if pool != own:
            yield Hypothesis(
                "statistics",
                f"the file takes its statistics over {name}, the layer does not",
                "export the layer's own operator: InstanceNormalization, GroupNormalization, or "
                "BatchNormalization",
                _pooled(layer, pool),
            )
    yield Hypothesis(
        "variance",
        "the file divides by the unbiased variance, the layer by the biased one",
        "take the mean of the squared deviations: divide by n, not n - 1",
        _pooled(layer, own, unbiased=True),
    )


def _groups(layer: Any, facts: Facts, channels: int) -> Iterator[Hypothesis]:
    if not isinstance(layer, nn.GroupNorm):
        return
    groups = layer.num_groups
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
            _changed(layer, weight=weight, bias=shift),
        )
    for other in range(1, channels + 1):
        if channels % other == 0 and other != groups:
            yield Hypothesis(
                "groups",
                f"the layer has {groups} groups, the file {other}",
                f"set num_groups to {groups}",
                _changed(layer, num_groups=other),
            )


def _affine(layer: Any) -> Iterator[Hypothesis]:
    present = [name for name in ("weight", "bias") if getattr(layer, name, None) is not None]
    choices = [[name] for name in present] + ([present] if len(present) == 2 else [])
    for names in choices:
        text = " and ".join(names)
        yield Hypothesis(
            "affine",
            f"the layer has a {text}, the file leaves {'them' if len(names) > 1 else 'it'} out",
            f"export the {text} with the layer: scale and bias of the operator",
            _changed(layer, **dict.fromkeys(names)),
        )


def _changed(layer: Any, **attributes: Any) -> Formula:
    changed = copy.deepcopy(layer)
    for name, value in attributes.items():
        setattr(changed, name, value)
    formula: Formula = changed
    return formula


def _pool(layer: Any) -> Pool:
    if isinstance(layer, nn.GroupNorm):
        return Pool(1, layer.num_channels // layer.num_groups)
    return Pool(None, 1) if isinstance(layer, _BATCH) else Pool(1, 1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return functional.plane_moments(x if x.dim() > 2 else x.unsqueeze(2))


def _pooled(layer: Any, pool: Pool, unbiased: bool = False) -> Formula:
    """Return the layer with the statistics of these pools."""

    def formula(x: Tensor) -> Tensor:
        planes = x if x.dim() > 2 else x.unsqueeze(2)

        def moments(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            samples, channels = pool.sizes(*mean.shape)
            count = samples * channels * planes.shape[2:].numel()
            mean, var = pool(mean, var)
            return mean, var * (count / max(count - 1, 1) if unbiased else 1)

        y = functional.pooled_norm(planes, layer.weight, layer.bias, pool=moments, eps=layer.eps)
        return _activated(layer, y.reshape(x.shape))

    return formula


def _activation(layer: Any) -> tuple[str, float]:
    """Return the layer's activation and its slope."""
    activation = getattr(layer, "activation", None) or ""
    if isinstance(activation, str):
        return activation, float(getattr(layer, "negative_slope", 0.01))
    return activation[0], float(activation[1])


def _activated(layer: Any, y: Tensor) -> Tensor:
    name, slope = _activation(layer)
    if name == "leaky_relu":
        return F.leaky_relu(y, slope)
    known: dict[str, Formula] = {
        "": lambda z: z,
        "relu": F.relu,
        "silu": F.silu,
        "gelu": F.gelu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    return known[name](y)
