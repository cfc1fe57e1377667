"""Failures behind a layer that keeps the memory layout of its input, where torch's does not."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers.instance_norm import _InstanceNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

FIX = (
    "write reshape(...) for view(...) there, or call momentnorm.accelerate(..., keep_layout=False)"
)


class Cause(NamedTuple):
    """A layer that keeps a layout, and the module that fails behind it."""

    #: The layer: its name in the model, as ``named_modules`` has it, and its class.
    name: str
    kind: str
    layout: str
    #: How the module is called in a message.
    module: str
    error: Exception

    def __str__(self) -> str:
        return f"{_called(self.name, self.kind)}: {self.message()}"

    def message(self) -> str:
        return (
            f"it keeps {self.layout}, where torch's layer returns contiguous memory, and behind it "
            f"{self.module} raised {type(self.error).__name__}: {self.error}"
        )


def cause(model: nn.Module, run: Callable[[], object]) -> Cause | None:
    """Why ``run``, a call of the model, raises: the layer that keeps a layout, if that is why."""
    keepers = _keepers(model)
    if not keepers or not _runs(model, run):
        return None
    names = {module: name for name, module in model.named_modules()}
    last: list[tuple[nn.Module, str]] = []

    def note(layer: nn.Module, _: Any, y: Tensor) -> None:
        if not y.is_contiguous():
            last[:] = [(layer, _layout(y))]

    hooks = [layer.register_forward_hook(note) for layer in keepers]
    try:
        run()
    except Exception as error:
        if not last:
            return None
        layer, layout = last[0]
        module = raised_in(error, names)
        where = _called("" if module is None else names[module], type(module).__name__)
        return Cause(names[layer], type(layer).__name__, layout, where, error)
    finally:
        for hook in hooks:
            hook.remove()
    return None


@contextlib.contextmanager
def contiguous_outputs(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Let layers of ours return contiguous memory where torch's do. Yields these layers."""
    keepers = _keepers(model)
    for layer in keepers:
        layer.__dict__["keep_layout"] = False
    try:
        yield keepers
    finally:
        for layer in keepers:
            del layer.__dict__["keep_layout"]


def raised_in(error: Exception, modules: dict[nn.Module, str]) -> nn.Module | None:
    """The innermost of these modules in whose method an error was raised."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, nn.Module) and candidate in modules:
            found = candidate
    return found


def _keepers(model: nn.Module) -> list[nn.Module]:
    """The layers that keep the layout where torch's do not."""
    layers = (layer for layer in model.modules() if isinstance(layer, _InstanceNorm))
    return [layer for layer in layers if "keep_layout" not in layer.__dict__]


def _runs(model: nn.Module, run: Callable[[], object]) -> bool:
    """Whether the call works with contiguous outputs."""
    with contiguous_outputs(model):
        try:
            run()
        except Exception:
            return False
    return True


def _layout(y: Tensor) -> str:
    memory_format = _CHANNELS_LAST.get(y.dim())
    if memory_format is not None and y.is_contiguous(memory_format=memory_format):
        return str(memory_format).removeprefix("torch.")
    return f"the strides {y.stride()}"


def _called(name: str, kind: str) -> str:
    """How a module is called in a message."""
    return f"{name!r} ({kind})" if name else "the model"
