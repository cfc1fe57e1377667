"""Operands of kernels: memory that exists, of the expected shape, in a layout that kernels read.

A kernel sees only addresses. So each operand passes through one of these functions before its
address leaves Python. Between forward and backward, callers may replace the data of a tensor or
resize its storage, and a hook on saved tensors may return another tensor than it was given.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

#: Layouts that kernels read, by their numbers in the C ABI: contiguous (N, C, *S), and contiguous
#: (N, *S, C) seen as (N, C, *S).
CHANNELS_FIRST, CHANNELS_LAST = 0, 1

_CHANNELS_LAST_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def layout(x: Tensor) -> int | None:
    """Layout of a feature map (N, C, *S), or None where it is neither of the two."""
    if x.is_contiguous():
        return CHANNELS_FIRST
    memory_format = _CHANNELS_LAST_FORMATS.get(x.dim())
    if memory_format is None:
        return CHANNELS_LAST if x.movedim(1, -1).is_contiguous() else None
    return CHANNELS_LAST if x.is_contiguous(memory_format=memory_format) else None


def dense(x: Tensor) -> Tensor:
    """x (N, C, *S) itself, or a copy in the nearest layout that kernels read.

    The copy is channels_last where the channels lie closest together, otherwise contiguous.
    Autograd records it.
    """
    if x.is_contiguous() or layout(x) is not None:
        return x
    if not torch.compiler.is_compiling() and type(x) in (Tensor, Parameter):  # not a fake one
        check_memory("the input", x)
    if not _channels_are_innermost(x):
        return x.contiguous()
    memory_format = _CHANNELS_LAST_FORMATS.get(x.dim())
    if memory_format is None:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous(memory_format=memory_format)


def _channels_are_innermost(x: Tensor) -> bool:
    stride = x.stride(1)
    if x.shape[1] == 1 or stride == 0:
        return False
    return all(
        size == 1 or stride < other for size, other in zip(x.shape[2:], x.stride()[2:], strict=True)
    )


def address(name: str, operand: Tensor) -> int:
    """Address of a dense operand.

    Raises:
        RuntimeError: its storage was freed, or is smaller than the operand.
    """
    end: int | torch.SymInt = operand.nbytes
    offset = operand.storage_offset()
    if offset:
        end += offset * operand.itemsize
    if operand.untyped_storage().nbytes() < end:
        _raise_too_small(name, operand, end)
    return operand.data_ptr()


def check_memory(name: str, operand: Tensor) -> None:
    """Check the storage of an operand of any strides.

    Raises:
        RuntimeError: it was freed, or is smaller than the operand.
    """
    if operand.is_contiguous():
        address(name, operand)
        return
    steps = zip(operand.shape, operand.stride(), strict=True)
    last = operand.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    end = (last + 1) * operand.itemsize
    if operand.untyped_storage().nbytes() < end:
        _raise_too_small(name, operand, end)


def _raise_too_small(name: str, operand: Tensor, end: int | torch.SymInt) -> None:
    found = operand.untyped_storage().nbytes()
    state = "was freed" if found == 0 else f"has {found} bytes"
    raise RuntimeError(
        f"the storage of {name} {tuple(operand.shape)} {state}, and {end} bytes are needed: give "
        "it memory again, as with untyped_storage().resize_(), or pass another tensor"
    )


def _on_one_device(operand: Tensor, x: Tensor) -> bool:
    # Whether both are on the CPU is asked first, since it is faster than to compare devices.
    return (operand.is_cpu and x.is_cpu) or operand.device == x.device


def readable(name: str, values: Tensor) -> Tensor:
    """Values of channels or planes in contiguous memory: themselves, or a copy."""
    if values.is_contiguous() and not values.is_neg():
        return values
    check_memory(name, values)
    return values.resolve_neg().contiguous()


def checked(
    name: str, values: Tensor, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor
) -> Tensor:
    """Check values of channels or planes, and return them in contiguous memory.

    Raises:
        RuntimeError: their shape, dtype or device is not the expected one.
    """
    if values.shape != shape or values.dtype is not dtype or not _on_one_device(values, x):
        _raise_unfit(name, values, shape, dtype, x)
    return readable(name, values)


def laid_out_as(name: str, operand: Tensor, x: Tensor) -> Tensor:
    """A gradient or residual like x, in the memory layout of x: itself, or a copy.

    Raises:
        RuntimeError: its shape, dtype or device is not that of x.
    """
    if operand.shape != x.shape or operand.dtype is not x.dtype or not _on_one_device(operand, x):
        _raise_unfit(name, operand, x.shape, x.dtype, x)
    if operand.stride() == x.stride() and not operand.is_neg():
        return operand
    check_memory(name, operand)
    return torch.empty_like(x).copy_(operand)


def _raise_unfit(
    name: str, operand: Tensor, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor
) -> None:
    raise RuntimeError(
        f"{name} should be {tuple(shape)}, {dtype} on {x.device}, to fit the input "
        f"{tuple(x.shape)}, but is {tuple(operand.shape)}, {operand.dtype} on {operand.device}: "
        "keep its shape, dtype and device from the forward to the backward"
    )


def parameter_dtype_of(weight: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """Dtype in which kernels read weight and bias: float64 where neither is there."""
    parameter = bias if weight is None else weight
    return torch.float64 if parameter is None else parameter.dtype
