"""The rules that need no output: they are asked of every call, and where the layer raised too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from ...layers.switchable_norm import SwitchableNorm
from .call import Batch, Call, Instance, count, eps_of, indices, is_torchs, unbatched_dim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .report import Finding


def few_elements(call: Call) -> Iterator[Finding]:
    """One value has no variance; two are always +1 and -1."""
    layer, shape = call.layer, call.shape
    per_plane = call.of_instances  # alone, or in a mixture
    if call.count not in (1, 2) or not (
        per_plane or isinstance(layer, (Batch, nn.GroupNorm, nn.LayerNorm))
    ):
        return
    fix = "a larger input"
    if call.of_batches:
        fix = "a batch of two samples at least, or eval()"
    elif isinstance(layer, nn.GroupNorm):
        fix = "fewer groups, or a larger input"
    elif isinstance(layer, nn.LayerNorm):
        fix = "a normalized_shape of more than one element"
    if call.uses_running and isinstance(layer, (Instance, Batch)):
        if call.count == 1 and per_plane:
            yield call.finding(
                "hint",
                "few-elements",
                f"planes of 1 value, in {shape}: with running statistics that works, but train() "
                "raises",
                fix,
            )
    elif call.count == 1:
        silent = isinstance(layer, nn.LayerNorm) or (
            isinstance(layer, nn.GroupNorm) and shape[0] > 1
        )
        yield call.finding(
            "error",
            "few-elements",
            f"a variance needs more than 1 value, and in {shape} a mean is of 1: the layer "
            + ("returns its bias, whatever arrives" if silent else "raises"),
            fix,
        )
    elif isinstance(layer, (Instance, Batch, nn.GroupNorm, nn.LayerNorm)):
        yield call.finding(
            "warning",
            "few-elements",
            f"a mean of 2 values, in {shape}: whatever they are, they become +1 and -1",
            fix,
        )


def channels(call: Call) -> Iterator[Finding]:
    """torch's InstanceNorm without affine only warns."""
    layer, shape = call.layer, call.shape
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        wanted = tuple(layer.normalized_shape)
        if is_torchs(layer) and shape[-len(wanted) :] != wanted:
            yield call.finding(
                "error",
                "channels",
                f"normalized_shape is {wanted}, and the input {shape} does not end so",
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
    message = f"{name} is {wanted}, and {shape} has {shape[axis]} channels"
    if not matters:
        message += "; without a weight nothing depends on it, so the layer works"
    fix = f"{name}={shape[axis]}"
    if isinstance(layer, Instance) and axis == 0 and unbatched_dim(layer) == 2:
        message += ". Two dimensions are (C, L), one sample without a batch, never (N, C)"
        fix += ", if that is meant; a batch of vectors is for LayerNorm or BatchNorm1d"
    yield call.finding("error" if matters else "warning", "channels", message, fix)


def tracking(call: Call) -> Iterator[Finding]:
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
            "track_running_stats is on and there are no running statistics: it was switched on "
            + (
                "after construction, and evaluation raises"
                if raises
                else "after construction, or they were set to None; evaluation is with the batch's"
            ),
            "construct the layer with track_running_stats=True, or switch it off",
        )
    elif here and not on and isinstance(layer, Batch):
        yield call.finding(
            "warning",
            "tracking",
            "track_running_stats was switched off after construction: training no longer moves the "
            "running statistics, and evaluation still uses them",
            "set running_mean and running_var to None as well, for statistics of the batch; or "
            "switch it on again",
        )
    elif here and not on:
        yield call.finding(
            "hint",
            "tracking",
            "track_running_stats was switched off after construction: training still moves the "
            "running statistics, and nothing uses them",
            "construct the layer without track_running_stats",
        )
    elif call.of_batches and not here:
        yield call.finding(
            "hint" if layer.training else "warning",
            "tracking",
            "there are no running statistics, so in evaluation too a sample's output depends on "
            "the rest of its batch",
            "track_running_stats=True; or InstanceNorm or GroupNorm, which know no batch",
        )


def never_moved(call: Call) -> Iterator[Finding]:
    if not call.uses_running or call.moved:
        return
    yield call.finding(
        "warning",
        "never-moved",
        "evaluation is with the running statistics, and those are still as they were made: the "
        "layer normalizes nothing",
        "load a checkpoint that has them, or run training batches in train() first"
        + (
            "; or track_running_stats=False, the default, for statistics of the input"
            if isinstance(call.layer, Instance)
            else ""
        ),
    )


def running_var(call: Call) -> Iterator[Finding]:
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
            "reset_running_stats() and run training batches, or load another checkpoint; NaN that "
            "has once arrived in training stays in them",
        )
        return
    tiny = var < eps_of(call.layer, call.x.dtype)
    if tiny.any():
        times = 1 / math.sqrt(float(var.min()) + eps_of(call.layer, call.x.dtype))
        yield call.finding(
            "hint",
            "running-var",
            f"running_var is below eps in {count(tiny)} channels ({indices(tiny.flatten())}): "
            f"they were dead in training, and in evaluation whatever arrives there is multiplied "
            f"by up to {times:.3g}",
            "look at what these channels are; prune them, or a larger eps",
        )


def momentum(call: Call) -> Iterator[Finding]:
    layer = call.layer
    if call.running is None:
        return
    if isinstance(layer, SwitchableNorm):
        share = 1 - layer.momentum if layer.using_moving_average else None
        theirs = "here momentum is the share that is kept: torch's 0.1 is 0.9"
    elif not layer.track_running_stats:
        return
    else:
        share = layer.momentum
        theirs = "in torch momentum is the share of the new batch: TensorFlow's 0.99 is 0.01"
        if share is None and isinstance(layer, Instance):
            share = 0.0  # to BatchNorm it is the average of all batches
    if share is not None and not 0 < share <= 0.5:
        yield call.finding(
            "warning",
            "momentum",
            f"momentum is {layer.momentum}: "
            + (
                "the running statistics never move"
                if share == 0
                else f"the running statistics are {share:.4g} of the last batch, and so hardly "
                "more than one batch's"
            ),
            f"momentum={0.9 if isinstance(layer, SwitchableNorm) else 0.1}; {theirs}",
        )


def batch_size(call: Call) -> Iterator[Finding]:
    if not call.of_batches or not call.layer.training or call.planes is None:
        return
    samples = call.planes.shape[0]
    if samples >= 8 or call.count < 2:
        return
    alone = samples == 1
    yield call.finding(
        "warning" if alone else "hint",
        "batch-size",
        f"in training the statistics are of {samples} sample{'s' * (not alone)}"
        + (
            ": that is InstanceNorm, where evaluation is with the average of many"
            if alone
            else ", which are rough, and in evaluation others are used"
        ),
        "a larger batch, SyncBatchNorm over several devices, or GroupNorm or InstanceNorm, which "
        "know no batch",
    )


def zero_weight(call: Call) -> Iterator[Finding]:
    weight, bias = getattr(call.layer, "weight", None), getattr(call.layer, "bias", None)
    if weight is None or weight.any() or not weight.numel():
        return
    untouched = bias is None or not bias.any()
    yield call.finding(
        "hint" if untouched else "warning",
        "zero-weight",
        "the weight is 0 in every channel, so the output is the bias whatever arrives"
        + (
            "; so a residual branch starts on purpose (zero_init_residual, last_gamma)"
            if untouched
            else ", which has been trained: the layer is dead"
        ),
        "nothing, before the first step of a residual branch; else start the weight at 1",
    )


#: Asked of every call, finished or not.
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
