"""Arrivals: rules that need no output, so they also apply to a call that raised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from ...layers.switchable_norm import SwitchableNorm
from .call import Batch, Call, Instance, count, eps_of, has_torch_forward, indices, unbatched_dim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .report import Finding


def few_elements(call: Call) -> Iterator[Finding]:
    """Means of one value, which has no variance, or of two, which always become +1 and -1."""
    layer, shape = call.layer, call.shape
    per_plane = call.of_instances
    if call.count not in (1, 2) or not (
        per_plane or isinstance(layer, (Batch, nn.GroupNorm, nn.LayerNorm))
    ):
        return
    fix = "a larger input"
    if call.of_batches:
        fix = "a batch of at least two samples, or eval()"
    elif isinstance(layer, nn.GroupNorm):
        fix = "fewer groups, or a larger input"
    elif isinstance(layer, nn.LayerNorm):
        fix = "a normalized_shape of more than one element"
    if call.uses_running and isinstance(layer, (Instance, Batch)):
        if call.count == 1 and per_plane:
            yield call.finding(
                "hint",
                "few-elements",
                f"each plane of {shape} has 1 value: evaluation with running statistics works, but "
                "train() raises",
                fix,
            )
    elif call.count == 1:
        silent = isinstance(layer, nn.LayerNorm) or (
            isinstance(layer, nn.GroupNorm) and shape[0] > 1
        )
        yield call.finding(
            "error",
            "few-elements",
            f"a variance needs more than 1 value, but in {shape} each mean has 1: the layer "
            + ("returns its bias for every input" if silent else "raises"),
            fix,
        )
    elif isinstance(layer, (Instance, Batch, nn.GroupNorm, nn.LayerNorm)):
        yield call.finding(
            "warning",
            "few-elements",
            f"each mean of {shape} has 2 values: they always become +1 and -1",
            fix,
        )


def channels(call: Call) -> Iterator[Finding]:
    """Number of channels that is not the layer's. torch's InstanceNorm often only warns."""
    layer, shape = call.layer, call.shape
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        wanted = tuple(layer.normalized_shape)
        if has_torch_forward(layer) and shape[-len(wanted) :] != wanted:
            yield call.finding(
                "error",
                "channels",
                f"normalized_shape is {wanted}, but the input is {shape}",
                f"normalized_shape={shape[-len(wanted) :]}, or an input that ends in {wanted}",
            )
        return
    axis = 1
    if isinstance(layer, Instance):
        axis = call.x.dim() - unbatched_dim(layer)
    name = "num_channels" if isinstance(layer, nn.GroupNorm) else "num_features"
    wanted = getattr(layer, name)
    if not 0 <= axis < call.x.dim() or shape[axis] == wanted:
        return
    matters = getattr(layer, "weight", None) is not None or call.running is not None
    if isinstance(layer, nn.GroupNorm) and shape[axis] % layer.num_groups:
        matters = True
    message = f"{name} is {wanted}, but the input {shape} has {shape[axis]} channels"
    if not matters:
        message += "; the layer works all the same, since it has no weight"
    fix = f"{name}={shape[axis]}"
    if isinstance(layer, Instance) and axis == 0 and unbatched_dim(layer) == 2:
        message += ". Two dimensions mean (C, L), one sample without a batch, never (N, C)"
        fix += " for one sample; LayerNorm or BatchNorm1d for a batch of vectors"
    yield call.finding("error" if matters else "warning", "channels", message, fix)


def tracking(call: Call) -> Iterator[Finding]:
    """track_running_stats that contradicts the running statistics, or none of them."""
    layer = call.layer
    if not isinstance(layer, (Instance, Batch)):
        return
    on, here = bool(layer.track_running_stats), call.running is not None
    if on and not here:
        raises = isinstance(layer, Instance)
        now = raises and not layer.training
        yield call.finding(
            "error" if now else "warning",
            "tracking",
            "track_running_stats is on, but there are no running statistics: it was switched on "
            + (
                "after construction, and evaluation raises"
                if raises
                else "after construction, or they were set to None; evaluation uses the batch's"
            ),
            "construct the layer with track_running_stats=True, or switch it off",
        )
    elif here and not on and isinstance(layer, Batch):
        yield call.finding(
            "warning",
            "tracking",
            "track_running_stats was switched off after construction: training no longer "
            "updates the running statistics, and evaluation still uses them",
            "set running_mean and running_var to None too, to use statistics of the batch; or "
            "switch it on again",
        )
    elif here and not on:
        yield call.finding(
            "hint",
            "tracking",
            "track_running_stats was switched off after construction: training still "
            "updates the running statistics, and nothing uses them",
            "construct the layer without track_running_stats",
        )
    elif call.of_batches and not here:
        yield call.finding(
            "hint" if layer.training else "warning",
            "tracking",
            "there are no running statistics, so in evaluation too a sample's output depends on "
            "the rest of its batch",
            "track_running_stats=True; or InstanceNorm or GroupNorm, which do not use the batch",
        )


def never_moved(call: Call) -> Iterator[Finding]:
    """Evaluation with running statistics that still have their initial values."""
    if not call.uses_running or call.moved:
        return
    yield call.finding(
        "warning",
        "never-moved",
        "evaluation uses the running statistics, but they still have their initial values: the "
        "layer normalizes nothing",
        "load a checkpoint that has them, or run training batches in train() first"
        + (
            "; or track_running_stats=False, the default, to use statistics of the input"
            if isinstance(call.layer, Instance)
            else ""
        ),
    )


def running_var(call: Call) -> Iterator[Finding]:
    """Running statistics that are NaN, infinite or negative, or a variance below eps."""
    if call.running is None or not call.moved:
        return
    mean, var = call.running
    wrong = ~(mean.isfinite() & var.isfinite() & (var >= 0))
    if wrong.any():
        yield call.finding(
            "error" if call.uses_running else "warning",
            "running-var",
            f"running_mean and running_var must be finite, and running_var not negative: "
            f"{count(wrong)} channels are not ({indices(wrong.flatten())})",
            "call reset_running_stats() and run training batches, or load another checkpoint; a "
            "single NaN in training stays in the running statistics",
        )
        return
    tiny = var < eps_of(call.layer, call.x.dtype)
    if tiny.any():
        times = 1 / math.sqrt(float(var.min()) + eps_of(call.layer, call.x.dtype))
        yield call.finding(
            "hint",
            "running-var",
            f"running_var is below eps in {count(tiny)} channels ({indices(tiny.flatten())}): "
            "they were constant in training, and evaluation multiplies other values by up to "
            f"{times:.3g}",
            "look at the input of these channels; prune them, or use a larger eps",
        )


def momentum(call: Call) -> Iterator[Finding]:
    """Momentum that makes the running statistics useless."""
    layer = call.layer
    if call.running is None:
        return
    if isinstance(layer, SwitchableNorm):
        share = 1 - layer.momentum if layer.using_moving_average else None
        meaning = "momentum is the share that SwitchableNorm keeps: torch's 0.1 is 0.9 here"
    elif not layer.track_running_stats:
        return
    else:
        share = layer.momentum
        meaning = "in torch momentum is the share of the new batch: TensorFlow's 0.99 is 0.01"
        if share is None and isinstance(layer, Instance):
            share = 0.0  # BatchNorm reads None as the average of all batches.
    if share is not None and not 0 < share <= 0.5:
        yield call.finding(
            "warning",
            "momentum",
            f"momentum is {layer.momentum}: "
            + (
                "the running statistics never move"
                if share == 0
                else f"the last batch makes up {share:.4g} of the running statistics, so they "
                "describe little more than one batch"
            ),
            f"momentum={0.9 if isinstance(layer, SwitchableNorm) else 0.1}; {meaning}",
        )


def batch_size(call: Call) -> Iterator[Finding]:
    """Statistics of few samples in the training of BatchNorm."""
    if not call.of_batches or not call.layer.training or call.planes is None:
        return
    samples = call.planes.shape[0]
    if samples >= 8 or call.count < 2:
        return
    alone = samples == 1
    yield call.finding(
        "warning" if alone else "hint",
        "batch-size",
        f"in training the statistics come from {samples} sample{'s' * (not alone)}: "
        + (
            "that is InstanceNorm, but evaluation uses the average of many batches"
            if alone
            else "they are rough, and evaluation uses others"
        ),
        "a larger batch, SyncBatchNorm over several devices, or GroupNorm or InstanceNorm, which "
        "do not use the batch",
    )


def zero_weight(call: Call) -> Iterator[Finding]:
    """Weight of zeros: the start of a residual branch, or a dead layer."""
    weight, bias = getattr(call.layer, "weight", None), getattr(call.layer, "bias", None)
    if weight is None or weight.any() or not weight.numel():
        return
    untouched = bias is None or not bias.any()
    yield call.finding(
        "hint" if untouched else "warning",
        "zero-weight",
        "the weight is 0 in every channel, so the output is the bias for every input"
        + (
            "; residual branches start with this on purpose (zero_init_residual, last_gamma)"
            if untouched
            else ", and the bias has been trained: the layer is dead"
        ),
        "none for a residual branch before its first step; otherwise start the weight at 1",
    )


#: Rules for every call, finished or not.
ARRIVALS: tuple[Callable[[Call], Iterator[Finding]], ...] = (
    few_elements,
    channels,
    tracking,
    never_moved,
    running_var,
    momentum,
    batch_size,
    zero_weight,
)
