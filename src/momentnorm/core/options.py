"""Options: the keyword arguments that instance_norm, batch_norm and group_norm share.

:func:`prepare` checks them and brings a call into the form that the engine takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import checks, masks
from .tail import PLAIN, Activation, Tail, parse_activation

if TYPE_CHECKING:
    from collections.abc import Callable


#: Running mean and variance, or weight and bias, (C,).
Pair: TypeAlias = tuple[Tensor | None, Tensor | None]


class Options(NamedTuple):
    """Keyword arguments that torch's own functions do not have, with their defaults."""

    activation: Activation = None
    residual: Tensor | None = None  # like the input
    mask: Tensor | None = None  # (N, 1, *S)
    lengths: Tensor | None = None  # (N,) or (N, spatial dimensions)
    inplace: bool = False
    out: Tensor | None = None  # like the input


class Prepared(NamedTuple):
    """An input and its options, checked, in the form that the engine takes."""

    x: Tensor  # (N, C, *S), with its padding filled
    tail: Tail
    out: Tensor | None  # tensor that the engine writes into, in the shape of x
    result: Tensor | None  # tensor that the caller gave to write into
    valid: Tensor | None  # True where an element of the input is valid; None for all
    masked: masks.Masked | None  # policy of the valid elements

    def reshaped(self, view: Callable[[Tensor], Tensor]) -> Prepared:
        """Apply a view to the feature maps of this call."""
        residual = self.tail.residual
        return self._replace(
            x=view(self.x),
            tail=self.tail if residual is None else self.tail._replace(residual=view(residual)),
            out=None if self.out is None else view(self.out),
        )

    def finish(self, y: Tensor) -> Tensor:
        """Set the padding of y to 0, and write y into the tensor that the caller gave."""
        if self.valid is None:
            return y if self.result is None else self.result  # the engine has written there
        y = torch.where(self.valid, y.squeeze(2) if self.valid.dim() == 2 else y, 0)
        return y if self.result is None else self.result.copy_(y)


def prepare(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, options: Options
) -> Prepared:
    """Check the options of a call, and fill the padding of its input."""
    activation, residual, mask, lengths, inplace, out = options
    tail = tail_of(input, activation, residual)
    if inplace:
        if out is not None:
            raise ValueError("inplace=True writes over the input, out= elsewhere: pass one of them")
        out = input
    if out is not None:
        checks.check_target(out, input, (input, weight, bias, residual), inplace)
    if mask is None and lengths is None:
        return Prepared(input, tail, out, out, None, None)
    valid = masks.checked_valid_elements(input, mask, lengths)
    if residual is not None:
        tail = tail._replace(residual=torch.where(valid, residual, 0))
    call = Prepared(input, tail, None, out, valid, None)
    planes = valid
    if input.dim() == 2:  # vectors are planes of one element
        call, planes = call.reshaped(lambda values: values.unsqueeze(2)), valid.unsqueeze(2)
    x, masked = masks.fill(call.x, planes)
    return call._replace(x=x, masked=masked)


def tail_of(input: Tensor, activation: Activation, residual: Tensor | None) -> Tail:
    """Tail of a call, checked."""
    if activation is None and residual is None:
        return PLAIN
    if residual is not None:
        checks.check_like_input("residual", residual, input)
    return Tail(*parse_activation(activation), residual)
