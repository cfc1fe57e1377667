"""How a module becomes ours, and torch's again: by its class, and by nothing else.

Our classes are subclasses of torch's without state of their own, so a module that changes from one
to the other stays the same object: its parameters, buffers, hooks, names and flags, and whoever
holds it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ..layers import batch_norm, group_norm, instance_norm, sequential
from . import norm_act

#: torch's classes, and ours in their place.
_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm1d: instance_norm.InstanceNorm1d,
    nn.InstanceNorm2d: instance_norm.InstanceNorm2d,
    nn.InstanceNorm3d: instance_norm.InstanceNorm3d,
    nn.LazyInstanceNorm1d: instance_norm.LazyInstanceNorm1d,
    nn.LazyInstanceNorm2d: instance_norm.LazyInstanceNorm2d,
    nn.LazyInstanceNorm3d: instance_norm.LazyInstanceNorm3d,
    nn.BatchNorm1d: batch_norm.BatchNorm1d,
    nn.BatchNorm2d: batch_norm.BatchNorm2d,
    nn.BatchNorm3d: batch_norm.BatchNorm3d,
    nn.LazyBatchNorm1d: batch_norm.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: batch_norm.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: batch_norm.LazyBatchNorm3d,
    nn.GroupNorm: group_norm.GroupNorm,
    nn.Sequential: sequential.Sequential,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}

#: In the ``__dict__`` of what was torch's, so that copies and pickles can be restored too.
MARK = "_accelerated"


class Change(NamedTuple):
    """A module whose class changes."""

    module: nn.Module
    before: type[nn.Module]
    after: type[nn.Module]


def replaced(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The class with a counterpart of ours that this one is or inherits its forward from."""
    if (theirs := norm_act.replaced(cls)) is not None:
        return theirs
    return next((base for base in cls.__mro__ if base in _OURS), None)


def _counterpart(theirs: type[nn.Module]) -> type[nn.Module]:
    """Our class for one that :func:`replaced` has found."""
    return _OURS.get(theirs) or norm_act.counterpart(theirs)


def conflict(module: nn.Module) -> str:
    """What a module has that its new class would change, or ""."""
    theirs = replaced(type(module))
    assert theirs is not None
    ours = _names(_counterpart(theirs), theirs) | {"__reduce__", "__reduce_ex__"}
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


def become_ours(module: nn.Module, changes: list[Change], keep_layout: bool = True) -> str:
    """Change the class of a module and append the change, or say why not."""
    before = type(module)
    theirs = replaced(before)
    assert theirs is not None
    try:
        module.__class__ = _OURS[before] if before in _OURS else _both(before)
    except TypeError as error:  # a metaclass, or slots
        return f"Python refuses: {error}"
    module.__dict__[MARK] = True
    if not keep_layout and isinstance(module, instance_norm._InstanceNorm):
        module.keep_layout = False
    changes.append(Change(module, before, type(module)))
    return ""


def become_theirs(module: nn.Module, theirs: type[nn.Module]) -> None:
    """Undo :func:`become_ours`."""
    module.__class__ = theirs
    del module.__dict__[MARK]
    module.__dict__.pop("keep_layout", None)


def class_before(module: nn.Module) -> type[nn.Module] | None:
    """The class that a swapped module had, or None where its class has changed since."""
    before: type[nn.Module] | None = type(module).__dict__.get("_before")
    return _THEIRS.get(type(module)) or before


#: What :func:`_both` has made.
_BOTH: dict[type[nn.Module], type[nn.Module]] = {}


def _both(theirs: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a subclass of torch's, and of ours, whose forward comes first."""
    if theirs in _BOTH:
        return _BOTH[theirs]
    base = replaced(theirs)
    assert base is not None
    ours = _counterpart(base)
    namespace = {
        "__module__": theirs.__module__,
        "__qualname__": theirs.__qualname__,
        "__doc__": theirs.__doc__,
        "__reduce_ex__": _reduce,
        "_before": theirs,
        "forward": ours.forward,
    }
    _BOTH[theirs] = type(theirs.__name__, (theirs, ours), namespace)
    return _BOTH[theirs]


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    """How such a module is pickled: by the class that it was, since no module has its own."""
    return (_made, (self._before,), *tuple(object.__reduce_ex__(self, 2))[2:])


def _made(theirs: type[nn.Module]) -> nn.Module:
    cls = _both(theirs)
    return cls.__new__(cls)


def script_of(module: nn.Module) -> str | None:
    """The name of the norm that a scripted module was."""
    name = (
        getattr(module, "original_name", "") if isinstance(module, torch.jit.ScriptModule) else ""
    )
    return name if name in {theirs.__name__ for theirs in _OURS} - {"Sequential"} else None


def class_name(cls: type[nn.Module], module: nn.Module | None = None) -> str:
    """How a class is called in a report."""
    if module is not None and (scripted := script_of(module)):
        return f"scripted {scripted}"
    if before := cls.__dict__.get("_before"):
        base = replaced(before)
        assert base is not None
        ours = _counterpart(base)
        return f"{class_name(before)} on {class_name(getattr(ours, 'engine', ours))}"
    package = {"torch": "torch.nn", "momentnorm": "momentnorm"}
    name = cls.__module__.partition(".")[0]
    return f"{package.get(name, cls.__module__)}.{cls.__qualname__}"
