"""Layouts: failures behind a layer that keeps channels_last although torch's layer does not.

torch's InstanceNorm returns contiguous memory for every layout of its input. momentnorm's returns
the layout of the input, unless its ``keep_layout`` is False.
"""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers.base import Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Channels-last format, by number of dimensions.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

FIX = (
    "write reshape(...) for view(...) there, or call momentnorm.accelerate(..., keep_layout=False)"
)


class Cause(NamedTuple):
    """Layer that keeps a layout, and the module that fails behind it.

    Args:
        name: the layer's name in ``model.named_modules()``.
        kind: the name of the layer's class.
        layout: the layout of the layer's output.
        module: name and class of the module that fails, for a message.
        error: the exception that the module raised.
    """

    name: str
    kind: str
    layout: str
    module: str
    error: Exception

    def __str__(self) -> str:
        return f"{_called(self.name, self.kind)}: {self.message()}"

    def message(self) -> str:
        """Sentence without the layer's name and class."""
        return (
            f"it keeps {self.layout}, torch's layer returns contiguous memory, and behind it "
            f"{self.module} raised {type(self.error).__name__}: {self.error}"
        )


def cause(model: nn.Module, run: Callable[[], object]) -> Cause | None:
    """Layer whose kept layout makes ``run``, a call of the model, raise; None for other errors."""
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
    """Make momentnorm's InstanceNorm layers return contiguous memory. Yields these layers."""
    keepers = _keepers(model)
    for layer in keepers:
        layer.__dict__["keep_layout"] = False
    try:
        yield keepers
    finally:
        for layer in keepers:
            del layer.__dict__["keep_layout"]


def raised_in(error: Exception, modules: dict[nn.Module, str]) -> nn.Module | None:
    """Innermost of these modules in whose method the error was raised, or None."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, nn.Module) and candidate in modules:
            found = candidate
    return found


def _keepers(model: nn.Module) -> list[nn.Module]:
    """Layers that keep the layout although torch's layer does not."""
    layers = (layer for layer in model.modules() if isinstance(layer, Layer))
    return [
        layer
        for layer in layers
        if hasattr(type(layer), "keep_layout") and "keep_layout" not in layer.__dict__
    ]


def _runs(model: nn.Module, run: Callable[[], object]) -> bool:
    """Whether ``run`` works if InstanceNorm returns contiguous memory."""
    with contiguous_outputs(model):
        try:
            run()
        except Exception:
            return False
    return True


def _layout(y: Tensor) -> str:
    """Name of a layout in a message."""
    memory_format = CHANNELS_LAST.get(y.dim())
    if memory_format is not None and y.is_contiguous(memory_format=memory_format):
        return str(memory_format).removeprefix("torch.")
    return f"the strides {y.stride()}"


def _called(name: str, kind: str) -> str:
    """Name and class of a module in a message."""
    return f"{name!r} ({kind})" if name else "the model"
