"""Results: rules that look at the values of a finished call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import functional
from ...core.grid import statistics_dtype
from ..layouts import CHANNELS_LAST
from .call import Batch, Call, Instance, count, eps_of, has_torch_forward, indices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .report import Finding

#: Largest finite float16.
_LARGEST_FLOAT16 = 65504.0

#: Least number of values of a mean that is compared with the running statistics.
_ENOUGH_VALUES = 32

#: Error of an output from which on it is a finding, in standard deviations of the output.
_ERROR = 1e-3

#: Rounding step of an input from which on it is a finding, in standard deviations of the input.
_STEP = 0.1


def non_finite(call: Call) -> Iterator[Finding]:
    """NaN or infinity in the input, in the output, or left in the running statistics."""
    poisoned = not _keeps_buffers_finite(call)
    stays = "; in training the running statistics stay NaN from then on" if poisoned else ""
    if not call.finite:
        nan = int(call.x.isnan().sum())
        infinite = int(call.x.isinf().sum())
        yield call.finding(
            "error",
            "non-finite",
            f"{nan} NaN and {infinite} infinite of {call.x.numel()} values arrive, first seen in "
            f"{call.origin}, and every value that shares a mean with them becomes NaN{stays}",
            f"look at {call.origin}",
        )
    elif call.y is not None and not call.y.isfinite().all():
        yield call.finding(
            "error",
            "non-finite",
            "the input is finite, but the output is not: a parameter or a running statistic is "
            f"wrong, or {call.x.dtype} cannot hold the variance{stays}",
            "look at weight, bias and running_var; scale the input, or use float32",
        )
    elif poisoned:
        yield call.finding(
            "error",
            "non-finite",
            f"this call with an input of {call.shape} made the running statistics NaN or infinite",
            "skip empty batches in training; momentnorm's layers keep the statistics for them",
        )


def _keeps_buffers_finite(call: Call) -> bool:
    """Whether running statistics that were finite before this call are finite after it."""
    if (
        call.running is None
        or not call.layer.training
        or not all(bool(was.isfinite().all()) for was in call.running)
    ):
        return True
    now = (call.layer.running_mean, call.layer.running_var)
    return all(bool(statistic.isfinite().all()) for statistic in now)


def overflow(call: Call) -> Iterator[Finding]:
    """Values near the largest float16, or above it."""
    if not call.finite or not call.x.numel():
        return
    most = float(call.x.abs().max())
    if call.x.dtype is torch.float16 and most > _LARGEST_FLOAT16 / 4:
        yield call.finding(
            "warning",
            "overflow",
            f"values up to {most:.3g} arrive, and the largest float16 is {_LARGEST_FLOAT16:.0f}",
            "bfloat16, or smaller values in front of this layer, which divides by their scale",
        )
    elif call.x.dtype is torch.float32 and most > _LARGEST_FLOAT16:
        yield call.finding(
            "hint",
            "overflow",
            f"values up to {most:.3g} arrive, which are infinite in float16 (autocast, half())",
            "bfloat16 for mixed precision, or smaller values in front of this layer",
        )


def constant(call: Call) -> Iterator[Finding]:
    """Planes, groups, rows or channels whose values are all alike."""
    if not call.knows_moments or isinstance(call.layer, nn.RMSNorm):
        return
    flags = call.constant
    share = float(flags.double().mean())
    dead = flags.all(0) if call.sets in ("planes", "channels") else flags.new_zeros(0)
    if share < 0.05 and not dead.any():
        return
    message = f"{count(flags)} {call.sets} are constant"
    if not call.uses_running:
        message += ", so their output is the bias"
    if dead.any():
        message += f"; constant in every sample: channels {indices(dead)}"
    yield call.finding(
        "warning" if share >= 0.5 else "hint",
        "constant",
        message,
        "check the modules before this layer for dead units, an empty input, or a bias alone",
    )


def eps(call: Call) -> Iterator[Finding]:
    """Variances that are small beside eps, so that the output is too small."""
    if not call.knows_moments or call.uses_running:
        return
    mean, var = call.moments
    small = eps_of(call.layer, call.x.dtype)
    if isinstance(call.layer, nn.RMSNorm):
        var = var + mean.square()
    flags = (var < 4 * small) & ~call.constant
    share = float(flags.double().mean())
    if share < 0.05:
        return
    median = float(var[flags].median())
    yield call.finding(
        "warning" if share >= 0.5 else "hint",
        "eps",
        f"the variance of {count(flags)} {call.sets} is less than 4 eps (eps {small:.3g}, their "
        f"median variance {median:.3g}): there the output's deviation is "
        f"{(median / (median + small)) ** 0.5:.2g} instead of 1",
        "larger values in front of this layer, or a smaller eps",
    )


def digits(call: Call) -> Iterator[Finding]:
    """Digits lost by the dtype or by torch's kernel, since the mean is large."""
    if not call.knows_moments or isinstance(call.layer, nn.RMSNorm):
        return
    mean, var = call.moments
    ratio = mean.abs() / (var + eps_of(call.layer, call.x.dtype)).sqrt()
    step = torch.finfo(call.x.dtype).eps / 2 * ratio
    lost = (step > _STEP) & ~call.constant
    worst = float(ratio.max())
    if float(lost.double().mean()) >= 0.05:
        yield call.finding(
            "warning",
            "digits",
            f"the mean is up to {worst:.3g} deviations, so {call.x.dtype} rounds the input to "
            f"steps of {float(step[lost].max()):.2g} deviations in {count(lost)} {call.sets}: "
            "digits are lost before this layer",
            "subtract the mean earlier (a bias in front of this layer has no effect), or use "
            "float32 up to this layer",
        )
    elif worst > 10 and call.y is not None and has_torch_forward(call.layer):
        exact = _exact(call)
        unit = float(exact.std(correction=0)) or 1.0
        error = float((call.y.detach().to(exact.dtype) - exact).abs().max()) / unit
        rounding = 2 * torch.finfo(call.y.dtype).eps * float(exact.abs().max()) / unit
        if error > max(_ERROR, rounding):
            yield call.finding(
                "warning",
                "digits",
                f"the mean is up to {worst:.3g} deviations, and torch's kernel errs by up to "
                f"{error:.2g} deviations of its output (measured against float64)",
                f"momentnorm.{type(call.layer).__name__}, if there is one, computes statistics to "
                "float64 accuracy (momentnorm.accelerate swaps all layers); or subtract the mean "
                "earlier",
            )


def _exact(call: Call) -> Tensor:
    """Output of the layer for this input, computed in float64."""
    layer, planes = call.layer, call.planes
    assert planes is not None
    dtype = statistics_dtype(planes)
    weight, bias = (
        None if parameter is None else parameter.detach().to(dtype)
        for parameter in (getattr(layer, "weight", None), getattr(layer, "bias", None))
    )
    if isinstance(layer, nn.LayerNorm):
        x = call.x.to(dtype)
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    x = planes.to(dtype)
    if isinstance(layer, nn.GroupNorm):
        y = functional.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    else:
        mean, var = call.running if call.uses_running and call.running else (None, None)
        function = functional.batch_norm if call.of_batches else functional.instance_norm
        y = function(x, mean, var, weight, bias, mean is None, 0.0, layer.eps)
    return y.reshape(call.x.shape)


def gap(call: Call) -> Iterator[Finding]:
    """Running statistics that are far from those of this input."""
    if not isinstance(call.layer, (Instance, Batch)) or not call.layer.track_running_stats:
        return
    if call.running is None or not call.moved or not call.knows_moments:
        return
    running_mean, running_var = call.running
    fit = running_mean.isfinite() & running_var.isfinite() & (running_var >= 0)
    if call.count < _ENOUGH_VALUES or not fit.all():
        return
    mean, var = call.moments
    small = eps_of(call.layer, call.x.dtype)
    deviation = (running_var + small).sqrt()
    offset = (mean - running_mean) / deviation
    scale = (var + small).sqrt() / deviation
    gaps = (offset.square() + (scale - 1).square()).sqrt()
    # Few samples are rarely typical of the data, so their limit is higher.
    samples = call.x.shape[0] if call.of_batches else 1
    if float(gaps.median()) <= 1 + 2 / samples**0.5:
        return
    middle = gaps.flatten().argsort()[gaps.numel() // 2]
    yield call.finding(
        "hint" if call.layer.training else "warning",
        "gap",
        f"the running statistics do not fit this data: with them the output has a mean of "
        f"{float(offset.flatten()[middle]):.2g} and a deviation of "
        f"{float(scale.flatten()[middle]):.2g} (in the median channel), where train() makes 0 "
        "and 1",
        "check that the preprocessing is that of training; or collect the statistics again: "
        "reset_running_stats(), momentum=None, and training batches in train()"
        + (
            "; or track_running_stats=False, the default"
            if isinstance(call.layer, Instance)
            else ""
        ),
    )


def layout(call: Call) -> Iterator[Finding]:
    """channels_last input with a contiguous output, as torch's InstanceNorm returns."""
    x, y = call.x, call.y
    memory_format = CHANNELS_LAST.get(x.dim())
    if memory_format is None or y is None or y.shape != x.shape or x.is_contiguous():
        return
    if x.is_contiguous(memory_format=memory_format) and not y.is_contiguous(
        memory_format=memory_format
    ):
        megabytes = x.numel() * x.element_size() / 1e6
        yield call.finding(
            "warning",
            "layout",
            "the input is channels_last and the output contiguous: the conversion moves "
            f"{2 * megabytes:.3g} MB, and the conversion back as many",
            f"momentnorm.{type(call.layer).__name__}, which keeps the layout "
            "(momentnorm.accelerate swaps all layers)",
        )


#: Rules for every finished call.
RESULTS: tuple[Callable[[Call], Iterator[Finding]], ...] = (
    non_finite,
    overflow,
    constant,
    eps,
    digits,
    gap,
    layout,
)
