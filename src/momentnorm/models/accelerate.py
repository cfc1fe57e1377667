"""``accelerate``: the layers of a finished model become ours, and back."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..core import dispatch
from ..core.backends import reference
from ..layers import sequential
from ..layers.base import Layer
from ..support.printable import printable
from . import layouts, norm_act, verification
from .classes import (
    MARK,
    Change,
    become_ours,
    become_theirs,
    class_before,
    class_name,
    conflict,
    replaced,
    script_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .verification import Replay, Verification

__all__ = ["Report", "Row", "VerificationError", "accelerate", "restore"]

#: What a report has a row for.
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True)
class Row:
    """What was done with one layer."""

    #: As in ``model.named_modules()``; the first, where the layer has several.
    name: str
    #: Its class before, and after: the same, where it was kept.
    before: str
    after: str
    #: The activation behind it that is computed in the same pass, such as "ReLU", or "".
    fused: str = ""
    #: Why the layer was kept, or "".
    why_not: str = ""
    #: How it compared with what it was, where that was asked for.
    replay: Replay | None = None

    @property
    def swapped(self) -> bool:
        return self.before != self.after


@dataclass(frozen=True)
class Report:
    """What was done with each normalization layer of a model. ``print`` shows a table."""

    rows: tuple[Row, ...]
    #: How the whole model compared with what it was, where that was asked for.
    verification: Verification | None = None
    #: What else in this process will not work with the swapped layers, each with the fix.
    warnings: tuple[str, ...] = ()

    @property
    def swapped(self) -> tuple[Row, ...]:
        """The layers whose class changed."""
        return tuple(row for row in self.rows if row.swapped)

    @property
    def kept(self) -> tuple[Row, ...]:
        """The layers that stay what they were; ``why_not`` has the reason."""
        return tuple(row for row in self.rows if not row.swapped)

    def __str__(self) -> str:
        if not self.rows:
            return "no normalization layers: nothing to do"
        columns = verification.COLUMNS if any(row.replay for row in self.rows) else ()
        table = [("layer", "from", "to", "fused", *columns, "why not")]
        for row in self.rows:
            after = row.after if row.swapped else "kept"
            figures = row.replay.figures() if row.replay else ("",) * len(columns)
            name = printable(row.name) or "(model)"
            table.append((name, row.before, after, row.fused, *figures, row.why_not))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        fused = sum(bool(row.fused) for row in self.rows)
        lines.append(
            f"{len(self.swapped)} of {len(self.rows)} layers swapped, {fused} with the activation "
            "behind them"
        )
        if self.verification is not None:
            lines.append(str(self.verification))
        replays = [row.replay for row in self.rows if row.replay is not None]
        decided = [replay for replay in replays if replay.our_error is not None]
        if decided:
            theirs = max(replay.torch_error or 0.0 for replay in decided)
            ours = max(replay.our_error or 0.0 for replay in decided)
            lines.append(
                f"{len(decided)} layers differ by more than rounding: from float64 torch's are off "
                f"by up to {theirs:.0e}, ours by up to {ours:.0e}"
            )
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


class VerificationError(RuntimeError):
    """The model does not compute what it did; everything was undone. ``report`` has the figures."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def accelerate(
    model: nn.Module, *, fuse: bool = True, keep_layout: bool = True, verify: Any = None
) -> Report:
    """Swap torch's normalization layers in a model for ours, in place.

    InstanceNorm, BatchNorm, GroupNorm and their lazy forms change their class, and nothing else:
    parameters and buffers stay the same objects, so optimizers that hold them keep working, and so
    do ties, hooks, names, ``state_dict``, flags and attributes. A subclass of torch's that left the
    forward alone becomes a subclass of itself and ours. Everything else is kept, and the report
    says why: a layer that replaced the forward, SyncBatchNorm, LayerNorm and RMSNorm (torch's own
    are what we have), a device or dtype for which there are no kernels. timm's norms with an
    activation, and its and torchvision's frozen ones, are swapped too. On the meta device layers
    are swapped, since they will be materialized elsewhere.

    With ``fuse``, every ``nn.Sequential`` in which a norm comes right before an activation becomes
    a :class:`momentnorm.Sequential`, which computes both in one pass. Both modules stay, and do
    what they did wherever else they are called. Models that call them apart are not fused.

    ``model`` may be compiled or wrapped (DataParallel, DistributedDataParallel); what is scripted
    already is kept. Calling this twice changes nothing more.

    Args:
        model: any module.
        fuse: whether sequences compute activations in the same pass. timm's norms always do.
        keep_layout: False lets InstanceNorm return contiguous memory, as torch's does, whatever the
            layout of its input: for models that call ``view`` on what comes out. torch's BatchNorm
            and GroupNorm keep the layout, and so do ours.
        verify: inputs to try the model with: a tensor, a tuple of arguments, or a dict of keyword
            arguments. The model runs before and after, in its present mode, and each layer by
            itself, both ways, on the inputs that it gets. Outputs, and in training mode gradients,
            have to agree, and times are taken. Random numbers are the same in all runs, and dropout
            layers off; buffers, ``.grad`` and torch's generators are left as they were. Hooks run
            with the model.

    Returns:
        A :class:`Report`, with a row for each layer.

    Raises:
        VerificationError: the results disagree, or the model raises because a layer keeps the
            layout; nothing has changed.
        ValueError: ``verify`` with lazy layers, which have no parameters yet, or with parameters on
            the meta device.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())
    >>> print(accelerate(model))
    layer  from                     to                         fused  why not
    1      torch.nn.InstanceNorm2d  momentnorm.InstanceNorm2d  ReLU
    1 of 1 layers swapped, 1 with the activation behind them
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


def _check_that_it_runs(model: nn.Module) -> None:
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


def restore(model: nn.Module) -> Report:
    """Undo :func:`accelerate`: torch's classes, as they were, also in a copy or from a pickle.

    Layers that were ours from the start stay. A part of a model can be restored by itself:
    ``restore(model.head)``.

    Returns:
        A :class:`Report`, with a row for each layer that :func:`accelerate` had swapped.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())
    >>> _ = accelerate(model)
    >>> print(restore(model))
    layer  from                       to                       fused  why not
    1      momentnorm.InstanceNorm2d  torch.nn.InstanceNorm2d
    1 of 1 layers swapped, 0 with the activation behind them
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
            why_not = "its class has changed since, as by a parametrization: undo that first"
        if _is_norm(module):
            rows.append(Row(name, class_name(before), class_name(type(module)), why_not=why_not))
    return Report(tuple(rows))


@dataclass
class _Layer:
    """A normalization layer of a model, while it is being swapped."""

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


def _is_norm(module: nn.Module) -> bool:
    """Whether a report has a row for this module."""
    return isinstance(module, _NORMS) or script_of(module) is not None or norm_act.is_known(module)


def _swap(model: nn.Module, fuse: bool, keep_layout: bool, changes: list[Change]) -> list[_Layer]:
    """Swap what can be swapped, and append it to ``changes``."""
    found: dict[nn.Module, _Layer] = {}
    usual = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for name, module in model.named_modules():
        if _is_norm(module):
            before = type(module)
            why_not = _why_not(module, usual) or become_ours(module, changes, keep_layout)
            found[module] = _Layer(name, module, before, why_not, [])
    for module in list(model.modules()) if fuse else ():
        if isinstance(module, nn.Sequential):
            pairs = [pair for pair in itertools.pairwise(module) if sequential.takes(*pair)]
            if pairs and _is_fusing(module, changes):
                for norm, follower in pairs:
                    found[norm].followers.append(follower)
    return list(found.values())


def _is_fusing(module: nn.Sequential, changes: list[Change]) -> bool:
    """Whether this sequence fuses, perhaps from now on."""
    if isinstance(module, sequential.Sequential):
        return type(module).forward is sequential.Sequential.forward
    return not (conflict(module) or become_ours(module, changes))


def _verified(trial: verification.Trial, found: list[_Layer], changes: list[Change]) -> Report:
    """The report with figures, or an error."""

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
        message = f"{cause}: {layouts.FIX}; the model is what it was"
        raise VerificationError(message, report) from cause.error
    rows = tuple(layer.row(replays.get(layer.module)) for layer in found)
    report = Report(rows, result, _warnings(trial.model, changes))
    wrong = [row for row in rows if row.replay is not None and not row.replay.right]
    if wrong:
        raise VerificationError(
            f"{wrong[0].name} {wrong[0].replay}; the model is what it was", report
        )
    # Where torch's own layer is wrong, so is what the model did before.
    excused = any(replay.our_error is not None for replay in replays.values())
    if not (result.right or excused):
        why = _why_different(trial, switch)
        raise VerificationError(
            "every layer by itself does what it did, but the model does not: "
            f"{result.differences()}{why}; the model is what it was",
            report,
        )
    return report


def _why_different(trial: verification.Trial, switch: Callable[[bool], None]) -> str:
    """A sentence for models that compute something else because a layer keeps the layout, or ""."""
    with layouts.contiguous_outputs(trial.model) as keepers:
        right = bool(keepers) and trial.compare(switch).right
    if not right:
        return ""
    return (
        ". With contiguous outputs of InstanceNorm it does not differ: something behind a layer "
        "reads memory in its order, such as as_strided or a view of the storage: call "
        ".contiguous() there, or momentnorm.accelerate(..., keep_layout=False)"
    )


#: Tools that look for torch's exact classes, by the module whose import shows that they are used.
_TYPE_MATCHERS = {
    "torch.ao.quantization.quantize_fx": "torch.ao.quantization's prepare_fx",
    "torch.fx.experimental.optimization": "torch.fx.experimental.optimization's fuse",
}


def _warnings(model: nn.Module, changes: list[Change]) -> tuple[str, ...]:
    """Sentences about tools in this process that would pass over the swapped layers."""
    tools = [tool for module, tool in _TYPE_MATCHERS.items() if module in sys.modules]
    if "torch._inductor" in sys.modules:  # it imports this for itself
        tools = [tool for tool in tools if "fx.experimental" not in tool]
    if any(getattr(module, "qconfig", None) is not None for module in model.modules()):
        tools.append("torch.ao.quantization's fuse_modules")  # torch itself always imports it
    return tuple(
        f"{tool} finds layers by their exact class and passes over swapped ones: call "
        "momentnorm.restore(model) before it"
        for tool in tools
        if changes
    )


def _why_not(module: nn.Module, usual: Tensor) -> str:
    """Why this norm cannot be swapped, or ""."""
    if script_of(module) is not None:
        return "scripted already: accelerate the model before torch.jit.script"
    if isinstance(module, Layer) or MARK in module.__dict__:
        return "momentnorm's already"
    if isinstance(module, nn.SyncBatchNorm):
        return "its statistics are those of all processes together"
    if replaced(type(module)) is None:
        return "momentnorm has torch's own"
    if parametrize.is_parametrized(module):
        return "it is parametrized: torch puts a class of its own in between"
    return conflict(module) or _no_kernel(module, usual)


def _no_kernel(module: nn.Module, usual: Tensor) -> str:
    """Why no kernel would take this layer's calls, or ""."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    like = next((t for t in tensors if t is not None and t.is_floating_point()), usual)
    device = "cpu" if like.is_meta else like.device  # where it will be is not known yet
    return no_kernel(torch.empty(2, 8, 32, 32, dtype=like.dtype, device=device))


def no_kernel(x: Tensor) -> str:
    """Why no kernel takes x, or "". The reference would, but is slower than torch's own layers."""
    choice = dispatch.choose(x)
    wanted = dispatch.forced() is reference
    return f"no kernel: {choice.why}" if choice.backend is reference and not wanted else ""
