"""``accelerate``: the layers of a finished model become ours, and back.

The one mechanism is the class of a module, ``module.__class__``. Our classes are subclasses of
torch's without state of their own, so a module that changes from one to the other stays the same
object: its parameters, buffers, hooks, names and flags, and whoever holds it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from . import _dispatch, _verify, layers, sequential
from ._printable import printable
from .backends import reference

if TYPE_CHECKING:
    from ._verify import Replay, Verification

__all__ = ["Report", "Row", "VerificationError", "accelerate", "restore"]

#: torch's classes, and ours in their place.
_OURS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, name): getattr(layers, name)
    for name in layers.__all__
    if getattr(nn, name) is not getattr(layers, name)
} | {nn.Sequential: sequential.Sequential}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}

#: What a report has a row for.
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)

#: In the ``__dict__`` of what was torch's, so that copies and pickles can be restored too.
_MARK = "_accelerated"


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
        columns = _verify.COLUMNS if any(row.replay for row in self.rows) else ()
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
        return "\n".join(lines)


class VerificationError(RuntimeError):
    """The model does not compute what it did; everything was undone. ``report`` has the figures."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def accelerate(model: nn.Module, *, fuse: bool = True, verify: Any = None) -> Report:
    """Swap torch's normalization layers in a model for ours, in place.

    InstanceNorm, BatchNorm, GroupNorm and their lazy forms change their class, and nothing else:
    parameters and buffers stay the same objects, so optimizers that hold them keep working, and so
    do ties, hooks, names, ``state_dict``, flags and attributes. A subclass of torch's that left the
    forward alone becomes a subclass of itself and ours. Everything else is kept, and the report
    says why: a layer that replaced the forward, SyncBatchNorm, LayerNorm and RMSNorm (torch's own
    are what we have), a device or dtype for which there are no kernels.

    With ``fuse``, every ``nn.Sequential`` in which a norm comes right before an activation becomes
    a :class:`momentnorm.Sequential`, which computes both in one pass. Both modules stay, and do
    what they did wherever else they are called. Models that call them apart are not fused.

    ``model`` may be compiled or wrapped (DataParallel, DistributedDataParallel); what is scripted
    already is kept. Calling this twice changes nothing more.

    Args:
        model: any module.
        fuse: whether to compute activations in the same pass.
        verify: inputs to try the model with: a tensor, a tuple of arguments, or a dict of keyword
            arguments. The model runs before and after, in its present mode, and each layer by
            itself, both ways, on the inputs that it gets. Outputs, and in training mode gradients,
            have to agree, and times are taken. Random numbers are the same in all runs, and dropout
            layers off; buffers, ``.grad`` and torch's generators are left as they were. Hooks run
            with the model.

    Returns:
        A :class:`Report`, with a row for each layer.

    Raises:
        VerificationError: the results disagree; nothing has changed.
        ValueError: ``verify`` with lazy layers, which have no parameters yet.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())
    >>> print(accelerate(model))
    layer  from                     to                         fused  why not
    1      torch.nn.InstanceNorm2d  momentnorm.InstanceNorm2d  ReLU
    1 of 1 layers swapped, 1 with the activation behind them
    """
    lazy = any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))
    if verify is not None and lazy:
        raise ValueError(
            "verify= cannot run a model with lazy layers twice from the same start: call the model "
            "once before, or leave verify= out"
        )
    changes: list[_Change] = []
    try:
        found = _swap(model, fuse, changes)
        if verify is None:
            return Report(tuple(layer.row() for layer in found))
        return _verified(_verify.Trial(model, verify), found, changes)
    except BaseException:
        for change in changes:
            _become_theirs(change.module, change.before)
        raise


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
        if _MARK not in module.__dict__:
            continue
        before, why_not = type(module), ""
        theirs = _THEIRS.get(before) or before.__dict__.get("_before")
        if theirs is not None:
            _become_theirs(module, theirs)
        else:
            why_not = "its class has changed since, as by a parametrization: undo that first"
        if isinstance(module, _NORMS):
            rows.append(Row(name, _name(before), _name(type(module)), why_not=why_not))
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
        before, after = _name(self.before, self.module), _name(type(self.module), self.module)
        fused = ", ".join(dict.fromkeys(type(follower).__name__ for follower in self.followers))
        return Row(self.name, before, after, fused, self.why_not, replay)


class _Change(NamedTuple):
    """A module whose class changes."""

    module: nn.Module
    before: type[nn.Module]
    after: type[nn.Module]


def _swap(model: nn.Module, fuse: bool, changes: list[_Change]) -> list[_Layer]:
    """Swap what can be swapped, and append it to ``changes``."""
    found: dict[nn.Module, _Layer] = {}
    usual = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for name, module in model.named_modules():
        if isinstance(module, _NORMS) or _script_of(module) is not None:
            before = type(module)
            why_not = _why_not(module, usual) or _become_ours(module, changes)
            found[module] = _Layer(name, module, before, why_not, [])
    for module in list(model.modules()) if fuse else ():
        if isinstance(module, nn.Sequential):
            pairs = [pair for pair in itertools.pairwise(module) if sequential.takes(*pair)]
            if pairs and _is_fusing(module, changes):
                for norm, follower in pairs:
                    found[norm].followers.append(follower)
    return list(found.values())


def _is_fusing(module: nn.Sequential, changes: list[_Change]) -> bool:
    """Whether this sequence fuses, perhaps from now on."""
    if isinstance(module, sequential.Sequential):
        return type(module).forward is sequential.Sequential.forward
    return not (_conflict(module) or _become_ours(module, changes))


def _verified(trial: _verify.Trial, found: list[_Layer], changes: list[_Change]) -> Report:
    """The report with figures, or an error."""

    def switch(ours: bool) -> None:
        for change in changes:
            change.module.__class__ = change.after if ours else change.before

    swapped = {
        layer.module: (layer.before, next(iter(layer.followers), None))
        for layer in found
        if not layer.why_not
    }
    verification, replays = trial.compare(switch), trial.replay(swapped)
    rows = tuple(layer.row(replays.get(layer.module)) for layer in found)
    report = Report(rows, verification)
    wrong = [row for row in rows if row.replay is not None and not row.replay.right]
    if wrong:
        raise VerificationError(
            f"{wrong[0].name} {wrong[0].replay}; the model is what it was", report
        )
    # Where torch's own layer is wrong, so is what the model did before.
    excused = any(replay.our_error is not None for replay in replays.values())
    if not (verification.right or excused):
        raise VerificationError(
            "every layer by itself does what it did, but the model does not: "
            f"{verification.differences()}; the model is what it was",
            report,
        )
    return report


def _why_not(module: nn.Module, usual: Tensor) -> str:
    """Why this norm cannot be swapped, or ""."""
    if _script_of(module) is not None:
        return "scripted already: accelerate the model before torch.jit.script"
    if isinstance(module, layers._Norm) or type(module).__module__.startswith("momentnorm."):
        return "momentnorm's already"
    if isinstance(module, nn.SyncBatchNorm):
        return "its statistics are those of all processes together"
    if _torchs(type(module)) is None:
        return "momentnorm has torch's own"
    if parametrize.is_parametrized(module):
        return "it is parametrized: torch puts a class of its own in between"
    return _conflict(module) or _no_kernel(module, usual)


def _no_kernel(module: nn.Module, usual: Tensor) -> str:
    """Why no kernel would take this layer's calls, or ""."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    like = next((t for t in tensors if t is not None and t.is_floating_point()), usual)
    return no_kernel(torch.empty(2, 8, 32, 32, dtype=like.dtype, device=like.device))


def no_kernel(x: Tensor) -> str:
    """Why no kernel takes x, or "". The reference would, but is slower than torch's own layers."""
    choice = _dispatch.choose(x)
    wanted = _dispatch._forced is reference
    return f"no kernel: {choice.why}" if choice.backend is reference and not wanted else ""


def _torchs(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The class of torch's, with a counterpart of ours, that this one is or inherits from."""
    return next((base for base in cls.__mro__ if base in _OURS), None)


def _conflict(module: nn.Module) -> str:
    """What a module has that its new class would change, or ""."""
    theirs = _torchs(type(module))
    assert theirs is not None
    ours = _names(_OURS[theirs], theirs) | {"__reduce__", "__reduce_ex__"}
    own = _names(type(module), theirs)
    if "forward" in own:
        return "it has a forward of its own"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    own |= {*module.__dict__, *module._parameters, *module._buffers, *module._modules}
    taken = sorted(own & ours - {"extra_repr"})
    return f"{taken[0]!r} is a name of its own, which ours has too" if taken else ""


def _names(cls: type, base: type) -> set[str]:
    """What a class has that a base of it does not have from its own bases."""
    return {
        name
        for part in cls.__mro__
        if part not in base.__mro__
        for name in vars(part)
        if not (name.startswith("__") and name not in ("__reduce__", "__reduce_ex__"))
    }


def _become_ours(module: nn.Module, changes: list[_Change]) -> str:
    """Change the class of a module, or say why not."""
    before = type(module)
    theirs = _torchs(before)
    assert theirs is not None
    try:
        module.__class__ = _OURS[theirs] if before is theirs else _both(before)
    except TypeError as error:  # a metaclass, or slots
        return f"Python refuses: {error}"
    module.__dict__[_MARK] = True
    changes.append(_Change(module, before, type(module)))
    return ""


def _become_theirs(module: nn.Module, theirs: type[nn.Module]) -> None:
    module.__class__ = theirs
    del module.__dict__[_MARK]


#: What :func:`_both` has made.
_BOTH: dict[type[nn.Module], type[nn.Module]] = {}


def _both(theirs: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a subclass of torch's, and of ours, whose forward comes first."""
    if theirs in _BOTH:
        return _BOTH[theirs]
    torchs = _torchs(theirs)
    assert torchs is not None
    namespace = {
        "__module__": theirs.__module__,
        "__qualname__": theirs.__qualname__,
        "__doc__": theirs.__doc__,
        "__reduce_ex__": _reduce,
        "_before": theirs,
    }
    _BOTH[theirs] = type(theirs.__name__, (theirs, _OURS[torchs]), namespace)
    return _BOTH[theirs]


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    """How such a module is pickled: by the class that it was, since no module has its own."""
    return (_made, (self._before,), *tuple(object.__reduce_ex__(self, 2))[2:])


def _made(theirs: type[nn.Module]) -> nn.Module:
    cls = _both(theirs)
    return cls.__new__(cls)


def _script_of(module: nn.Module) -> str | None:
    """The name of the norm that a scripted module was."""
    name = (
        getattr(module, "original_name", "") if isinstance(module, torch.jit.ScriptModule) else ""
    )
    return name if name in {theirs.__name__ for theirs in _OURS} - {"Sequential"} else None


def _name(cls: type[nn.Module], module: nn.Module | None = None) -> str:
    """How a class is called in a report."""
    if module is not None and (scripted := _script_of(module)):
        return f"scripted {scripted}"
    if before := cls.__dict__.get("_before"):
        return f"{_name(before)} on {_name(_OURS[_torchs(before)])}"  # type: ignore[index]
    package = {"torch": "torch.nn", "momentnorm": "momentnorm"}
    name = cls.__module__.partition(".")[0]
    return f"{package.get(name, cls.__module__)}.{cls.__qualname__}"
