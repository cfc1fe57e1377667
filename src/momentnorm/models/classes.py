"""Classes: swap the class of a torch module for momentnorm's, and back.

Names with ``ours`` are momentnorm's classes, names with ``theirs`` are torch's, timm's or
torchvision's. A class of momentnorm's is a subclass of its counterpart and adds no state. A module
whose class changes stays the same object, with its parameters, buffers, hooks, names and flags.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ..layers import batch_norm, group_norm, instance_norm, sequential
from . import norm_act

#: torch's classes and their counterparts.
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

#: Key in the ``__dict__`` of a swapped module. Copies and pickles have it too, so that ``restore``
#: finds them.
MARK = "_accelerated"


class Change(NamedTuple):
    """A module whose class changes."""

    module: nn.Module
    before: type[nn.Module]
    after: type[nn.Module]


def replaced(cls: type[nn.Module]) -> type[nn.Module] | None:
    """First class of the bases, from ``cls`` on, that has a counterpart, or None."""
    if (theirs := norm_act.replaced(cls)) is not None:
        return theirs
    return next((base for base in cls.__mro__ if base in _OURS), None)


def _counterpart(theirs: type[nn.Module]) -> type[nn.Module]:
    """Counterpart of a class that :func:`replaced` has found."""
    return _OURS.get(theirs) or norm_act.counterpart(theirs)


def conflict(module: nn.Module) -> str:
    """Reason why a change of class would change the module's behaviour, or ""."""
    theirs = replaced(type(module))
    assert theirs is not None
    ours = _names(_counterpart(theirs), theirs) | {"__reduce__", "__reduce_ex__"}
    own = _names(type(module), theirs)
    if "forward" in own:
        return "it has its own forward"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    own |= {*module.__dict__, *module._parameters, *module._buffers, *module._modules}
    taken = sorted(own & ours - {"extra_repr"})
    return f"it defines {taken[0]!r}, and so does momentnorm's class" if taken else ""


def _names(cls: type, base: type) -> set[str]:
    """Names that ``cls`` has, and its base ``base`` neither has nor inherits."""
    return {
        name
        for part in cls.__mro__
        if part not in base.__mro__
        for name in vars(part)
        if not (name.startswith("__") and name not in ("__reduce__", "__reduce_ex__"))
    }


def become_ours(module: nn.Module, changes: list[Change], keep_layout: bool = True) -> str:
    """Change the class of a module and append the change. Returns the reason if it fails, or ""."""
    before = type(module)
    theirs = replaced(before)
    assert theirs is not None
    try:
        module.__class__ = _OURS[before] if before in _OURS else _both(before)
    except TypeError as error:  # raised for a metaclass, or for slots
        return f"Python cannot change its class: {error}"
    module.__dict__[MARK] = True
    if not keep_layout and hasattr(type(module), "keep_layout"):
        module.__dict__["keep_layout"] = False
    changes.append(Change(module, before, type(module)))
    return ""


def become_theirs(module: nn.Module, theirs: type[nn.Module]) -> None:
    """Undo :func:`become_ours`."""
    module.__class__ = theirs
    del module.__dict__[MARK]
    module.__dict__.pop("keep_layout", None)


def class_before(module: nn.Module) -> type[nn.Module] | None:
    """Class that a swapped module had, or None if its class has changed again since."""
    before: type[nn.Module] | None = type(module).__dict__.get("_before")
    return _THEIRS.get(type(module)) or before


#: Classes made by :func:`_both`, by the class that they were made for.
_BOTH: dict[type[nn.Module], type[nn.Module]] = {}


def _both(theirs: type[nn.Module]) -> type[nn.Module]:
    """Subclass of ``theirs`` and of momentnorm's class, with momentnorm's forward."""
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
    """Pickle a module by the class that it had: its present class is in no importable module."""
    return (_made, (self._before,), *tuple(object.__reduce_ex__(self, 2))[2:])


def _made(theirs: type[nn.Module]) -> nn.Module:
    """Empty module that pickle fills in."""
    cls = _both(theirs)
    return cls.__new__(cls)


def script_of(module: nn.Module) -> str | None:
    """Name of the torch norm that a TorchScript module was made from, or None."""
    name = (
        getattr(module, "original_name", "") if isinstance(module, torch.jit.ScriptModule) else ""
    )
    return name if name in {theirs.__name__ for theirs in _OURS} - {"Sequential"} else None


def class_name(cls: type[nn.Module], module: nn.Module | None = None) -> str:
    """Name of a class in a report."""
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
