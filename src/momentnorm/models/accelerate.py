"""accelerate: swap torch's normalization layers in a model for momentnorm's; restore: swap back."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..layers import sequential
from . import eligibility, layouts, norm_act, verification
from .classes import (
    MARK,
    Change,
    become_ours,
    become_theirs,
    class_before,
    class_name,
    conflict,
)
from .report import Report, Row, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .replay import Replay
    from .verification import Verification

__all__ = ["Report", "Row", "VerificationError", "accelerate", "restore"]

_UNCHANGED = "the model is unchanged"


def accelerate(
    model: nn.Module, *, fuse: bool = True, keep_layout: bool = True, verify: Any = None
) -> Report:
    """Swap torch's normalization layers in a model for momentnorm's, in place.

    InstanceNorm, BatchNorm, GroupNorm and their lazy forms change their class and nothing else.
    Parameters and buffers stay the same objects, so optimizers keep working. Shared modules, hooks,
    names, ``state_dict``, flags and attributes stay too. A subclass that inherits torch's forward
    becomes a subclass of itself and of momentnorm's class. timm's norms with an activation are
    swapped, and so are timm's and torchvision's frozen batch norms. Layers on the meta device are
    swapped, since they are materialized elsewhere.

    Every other layer is kept, and the report gives the reason: a subclass with its own forward,
    SyncBatchNorm, LayerNorm and RMSNorm (momentnorm uses torch's own), a device or dtype without
    kernels, a TorchScript layer.

    With ``fuse``, an ``nn.Sequential`` in which an activation directly follows a norm becomes a
    :class:`momentnorm.Sequential`, which computes both in one pass. Both modules stay in place and
    work as before wherever else they are called. A norm and an activation that a ``forward`` calls
    one after the other are not fused.

    A second call changes nothing more.

    Args:
        model: any module, also a compiled one, DataParallel or DistributedDataParallel.
        fuse: whether sequences compute activations in the same pass. timm's norms always do.
        keep_layout: False lets InstanceNorm return contiguous memory for every input layout, as
            torch's InstanceNorm does. Models that call ``view`` on its output need this.
            BatchNorm and GroupNorm keep the layout in torch and in momentnorm.
        verify: inputs for a comparison: a tensor, a tuple of arguments, or a dict of keyword
            arguments. The model runs before and after the swap, in its present mode. Each layer
            also runs alone, as torch's and as momentnorm's, on its input in the model. Outputs,
            and in training mode gradients, have to agree; times are measured. All runs use the
            same random numbers, with dropout layers off. Buffers, ``.grad`` and torch's generators
            are put back. Hooks run with the model.

    Returns:
        A :class:`Report`, with a row for each normalization layer.

    Raises:
        VerificationError: the results disagree, or the model raises because a layer keeps the
            layout. The model is unchanged.
        ValueError: ``verify`` with lazy layers, which have no parameters yet, or with parameters on
            the meta device.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())
    >>> print(accelerate(model))
    layer  from                     to                         fused  why not
    1      torch.nn.InstanceNorm2d  momentnorm.InstanceNorm2d  ReLU
    1 of 1 layers swapped, 1 fused with an activation
    """
    if verify is not None:
        _check_that_it_runs(model)
    changes: list[Change] = []
    try:
        found = _swap(model, fuse, keep_layout, changes)
        if verify is None:
            return Report(tuple(layer.row() for layer in found), warnings=_warnings(model, changes))
        return _verified(verification.Trial(model, verify), found, changes)
    except BaseException:
        for change in changes:
            become_theirs(change.module, change.before)
        raise


def restore(model: nn.Module) -> Report:
    """Undo :func:`accelerate`: give every swapped layer the class that it had.

    This works on a deep copy and on an unpickled model too. Layers built as momentnorm's stay. A
    part of a model can be restored alone: ``restore(model.head)``.

    Returns:
        A :class:`Report`, with a row for each layer that :func:`accelerate` had swapped.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())
    >>> _ = accelerate(model)
    >>> print(restore(model))
    layer  from                       to                       fused  why not
    1      momentnorm.InstanceNorm2d  torch.nn.InstanceNorm2d
    1 of 1 layers swapped, 0 fused with an activation
    """
    rows = []
    for name, module in model.named_modules():
        if MARK not in module.__dict__:
            continue
        before, why_not = type(module), ""
        theirs = class_before(module)
        if theirs is not None:
            become_theirs(module, theirs)
        else:
            why_not = (
                "its class was changed after accelerate, for example by a parametrization: undo "
                "that change first"
            )
        if eligibility.is_norm(module):
            rows.append(Row(name, class_name(before), class_name(type(module)), why_not=why_not))
    return Report(tuple(rows))


def _check_that_it_runs(model: nn.Module) -> None:
    """Raise a ValueError for a model that ``verify`` cannot run."""
    tensors = (*model.parameters(), *model.buffers())
    if any(map(is_lazy, tensors)):
        raise ValueError(
            "verify= cannot run a model with lazy layers twice from the same start: call the model "
            "once before, or leave verify= out"
        )
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError(
            "verify= cannot compare anything on the meta device, which has no values: materialize "
            "the model first (to_empty and load_state_dict), or leave verify= out"
        )


@dataclass
class _Layer:
    """Normalization layer that is being swapped.

    Args:
        name: its first name in the model.
        module: the layer.
        before: its class before the swap.
        why_not: the reason why it is kept, or "".
        followers: the activations behind it that sequences compute in the same pass.
    """

    name: str
    module: nn.Module
    before: type[nn.Module]
    why_not: str
    followers: list[nn.Module]

    def row(self, replay: Replay | None = None) -> Row:
        before, after = (class_name(cls, self.module) for cls in (self.before, type(self.module)))
        fused = ", ".join(dict.fromkeys(type(follower).__name__ for follower in self.followers))
        fused = fused or norm_act.fused(self.module)
        return Row(self.name, before, after, fused, self.why_not, replay)


def _swap(model: nn.Module, fuse: bool, keep_layout: bool, changes: list[Change]) -> list[_Layer]:
    """Swap every layer that can be swapped, append each change, and return all layers found."""
    found: dict[nn.Module, _Layer] = {}
    usual = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for name, module in model.named_modules():
        if eligibility.is_norm(module):
            before = type(module)
            why_not = eligibility.why_not(module, usual)
            why_not = why_not or become_ours(module, changes, keep_layout)
            found[module] = _Layer(name, module, before, why_not, [])
    for module in list(model.modules()) if fuse else ():
        if isinstance(module, nn.Sequential):
            pairs = [pair for pair in itertools.pairwise(module) if sequential.takes(*pair)]
            if pairs and _becomes_fusing(module, changes):
                for norm, follower in pairs:
                    found[norm].followers.append(follower)
    return list(found.values())


def _becomes_fusing(module: nn.Sequential, changes: list[Change]) -> bool:
    """Swap a sequence, unless it fuses already. Returns whether it fuses now."""
    if isinstance(module, sequential.Sequential):
        return type(module).forward is sequential.Sequential.forward
    return not (conflict(module) or become_ours(module, changes))


def _verified(trial: verification.Trial, found: list[_Layer], changes: list[Change]) -> Report:
    """Compare the model and each layer before and after; return the report with the figures.

    Raises:
        VerificationError: a layer or the model disagrees, or fails because of a kept layout.
    """

    def switch(ours: bool) -> None:
        for change in changes:
            change.module.__class__ = change.after if ours else change.before

    swapped = {
        layer.module: (layer.before, next(iter(layer.followers), None))
        for layer in found
        if not layer.why_not
    }
    try:
        result, replays = trial.compare(switch), trial.replay(swapped)
    except Exception:
        switch(True)
        if (cause := layouts.cause(trial.model, trial.call)) is None:
            raise
        report = Report(tuple(layer.row() for layer in found))
        message = f"{cause}: {layouts.FIX}; {_UNCHANGED}"
        raise VerificationError(message, report) from cause.error
    rows = tuple(layer.row(replays.get(layer.module)) for layer in found)
    report = Report(rows, result, _warnings(trial.model, changes))
    disagreement = _layer_that_differs(report) or _model_that_differs(report, result, trial, switch)
    if disagreement:
        raise VerificationError(f"{disagreement}; {_UNCHANGED}", report)
    return report


def _layer_that_differs(report: Report) -> str:
    """Name and figures of the first layer that is wrong, or ""."""
    rows = (row for row in report.rows if row.replay is not None and not row.replay.right)
    wrong = next(rows, None)
    return "" if wrong is None else f"{wrong.name} {wrong.replay}"


def _model_that_differs(
    report: Report,
    result: Verification,
    trial: verification.Trial,
    switch: Callable[[bool], None],
) -> str:
    """Figures of a model that is wrong although each of its layers is right, or ""."""
    # A wrong layer of torch's makes the results before the swap wrong too.
    torch_is_wrong = any(
        row.replay is not None and row.replay.our_error is not None for row in report.rows
    )
    if result.right or torch_is_wrong:
        return ""
    return (
        "each layer alone agrees with torch's, but the model does not: "
        f"{result.differences()}{_layout_hint(trial, switch)}"
    )


def _layout_hint(trial: verification.Trial, switch: Callable[[bool], None]) -> str:
    """Sentence with the fix, if the results agree once InstanceNorm's are contiguous, or ""."""
    with layouts.contiguous_outputs(trial.model) as keepers:
        right = bool(keepers) and trial.compare(switch).right
    if not right:
        return ""
    return (
        ". With contiguous outputs of InstanceNorm the model agrees: a module behind one reads "
        "memory in its order, as as_strided or a view of the storage does. Call .contiguous() "
        "there, or momentnorm.accelerate(..., keep_layout=False)"
    )


#: Tools that look for torch's exact classes, by the module whose import shows that they are used.
TYPE_MATCHERS = {
    "torch.ao.quantization.quantize_fx": "torch.ao.quantization's prepare_fx",
    "torch.fx.experimental.optimization": "torch.fx.experimental.optimization's fuse",
}


def _warnings(model: nn.Module, changes: list[Change]) -> tuple[str, ...]:
    """Sentences about tools of this process that skip swapped layers."""
    tools = [tool for module, tool in TYPE_MATCHERS.items() if module in sys.modules]
    if "torch._inductor" in sys.modules:  # Inductor imports torch.fx's optimization for itself.
        tools = [tool for tool in tools if "fx.experimental" not in tool]
    # torch always imports fuse_modules, so a qconfig has to show that it is used.
    if any(getattr(module, "qconfig", None) is not None for module in model.modules()):
        tools.append("torch.ao.quantization's fuse_modules")
    return tuple(
        f"{tool} finds layers by their exact class and skips swapped ones: call "
        "momentnorm.restore(model) before it"
        for tool in tools
        if changes
    )
