"""Drop-in: the base of the layers that replace classes of ``torch.nn``.

A drop-in class inherits the constructor, the parameters and buffers, ``state_dict``, ``repr`` and
the input checks of the torch class that it replaces. So ``isinstance`` tests, initialization code
and checkpoints work in both directions.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.fx import Proxy

from ..core.tail import Activation, parse_activation
from .base import Layer

if TYPE_CHECKING:
    from collections.abc import Callable

#: Arguments that torch's constructors do not have, with their defaults.
OPTIONS: dict[str, Any] = {"activation": None, "inplace": False}


def constructor_of(torch_class: type[nn.Module]) -> Callable[..., None]:
    """Constructor that takes the arguments of ``torch_class`` and :data:`OPTIONS`."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        options = {name: kwargs.pop(name, default) for name, default in OPTIONS.items()}
        torch_class.__init__(self, *args, **kwargs)
        parse_activation(options["activation"])
        self.__dict__.update(options)

    signature = inspect.signature(torch_class.__init__)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in OPTIONS.items()
    ]
    parameters = [*signature.parameters.values(), *added]
    __init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return __init__


class DropIn(Layer):
    """Forward, options and representation of the layers that replace torch's."""

    # Class-level defaults for layers converted from torch or unpickled from old files.
    activation: Activation = None
    inplace: bool = False

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        out: Tensor | None = None,
        activation: Activation = None,
    ) -> Tensor:
        """Normalize a feature map; the options are those of the functional form.

        ``activation``, where given, takes the place of the layer's own.
        """
        options: dict[str, Any] = {
            "residual": residual,
            "mask": mask,
            "lengths": lengths,
            "out": out,
            "activation": activation,
        }
        symbol: object = input
        if isinstance(symbol, Proxy):
            leaf: Tensor = self._traced(symbol, options)
            return leaf
        if activation is None:
            options["activation"] = self.activation
        options["inplace"] = self.inplace
        return self._normalize(input, options)

    def _normalize(self, input: Tensor, options: dict[str, Any]) -> Tensor:
        """Call the functional form with these options and the layer's parameters and buffers."""
        raise NotImplementedError

    def _traced(self, input: Proxy, options: dict[str, Any]) -> Any:
        """Make one node of a symbolic trace for this call, as for torch's own layers."""
        given = {name: option for name, option in options.items() if option is not None}
        tracer: Any = input.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), given)

    def extra_repr(self) -> str:
        options = {name: getattr(self, name) for name in OPTIONS}
        return super().extra_repr() + "".join(
            f", {name}={option!r}" for name, option in options.items() if option != OPTIONS[name]
        )


class LazyDropIn(DropIn):
    """Base of lazy layers, which take ``num_features`` from their first input."""

    def initialize_parameters(self, input: Tensor, *args: Any, **kwargs: Any) -> None:
        # torch passes all operands of the first call here. Only the input has num_features.
        super().initialize_parameters(input)  # type: ignore[misc]
