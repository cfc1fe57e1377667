"""Operands of kernels: the layouts that they read, and copies for other layouts."""

from __future__ import annotations

import enum

import torch
from torch import Tensor

_CHANNELS_LAST_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Layout(enum.IntEnum):
    """Memory layouts that kernels read; the numbers are those of the C ABI."""

    CHANNELS_FIRST = 0  # contiguous (N, C, *S)
    CHANNELS_LAST = 1  # contiguous (N, *S, C), seen as (N, C, *S)


def layout_of(x: Tensor) -> Layout | None:
    """Layout of x, or None where neither of the two fits."""
    if x.is_contiguous():
        return Layout.CHANNELS_FIRST
    memory_format = _CHANNELS_LAST_FORMATS.get(x.dim())
    if memory_format is None:
        return Layout.CHANNELS_LAST if x.movedim(1, -1).is_contiguous() else None
    return Layout.CHANNELS_LAST if x.is_contiguous(memory_format=memory_format) else None


def readable(values: Tensor) -> Tensor:
    """Values of channels or planes as kernels read them: contiguous, not lazily negated."""
    return values.resolve_neg().contiguous()


def laid_out_as(x: Tensor, operand: Tensor) -> Tensor:
    """A gradient or residual as kernels read it: in the memory layout of x."""
    if operand.stride() == x.stride() and not operand.is_neg():
        return operand
    return torch.empty_like(x).copy_(operand)


def parameter_dtype_of(weight: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """Dtype in which kernels read weight and bias: float64 where neither is there."""
    parameter = bias if weight is None else weight
    return torch.float64 if parameter is None else parameter.dtype
