"""CPU backend: calls the C++ kernels of :mod:`.native` with tensors."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ...support.machine import is_out_of_memory
from ..pool import INSTANCE, Pool
from ..tail import ACTIVATIONS, PLAIN, Tail
from . import native
from .native import (
    Grid,
    NativeTail,
    choose_instruction_set,
    give_back_kept_memory,
    instruction_set,
    instruction_sets,
    kept_memory,
    kept_memory_limit,
    limit_kept_memory,
    unavailable,
)
from .operands import address, checked, laid_out_as, layout, parameter_dtype_of, readable

__all__ = [
    "apply",
    "apply_gradient",
    "choose_instruction_set",
    "give_back_kept_memory",
    "gradient_sums",
    "instruction_set",
    "instruction_sets",
    "kept_memory",
    "kept_memory_limit",
    "limit_kept_memory",
    "moments",
    "name",
    "normalize",
    "normalize_backward",
    "normalize_with",
    "refuses",
    "unavailable",
]

name = "cpu"

#: Outputs of this many bytes and more use kept memory. Page faults of fresh memory would cost more
#: than the arithmetic.
_LARGE = 4 << 20

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_ACTIVATIONS = {name: number for number, name in enumerate(("", *ACTIVATIONS))}

if native.library is not None:
    _new_output = native.library.momentnorm_new_output
    _moments = native.library.momentnorm_moments
    _apply = native.library.momentnorm_apply
    _normalize = native.library.momentnorm_normalize
    _normalize_with = native.library.momentnorm_normalize_with
    _gradient_sums = native.library.momentnorm_gradient_sums
    _apply_gradient = native.library.momentnorm_apply_gradient
    _normalize_backward = native.library.momentnorm_normalize_backward


def refuses(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> str | None:
    if native.library is None:
        return unavailable()
    if x.device.type != "cpu":
        return f"the input is on {x.device.type}"
    if x.dtype not in _DTYPES:
        return f"no kernel for {x.dtype}"
    if x.layout is not torch.strided:
        return f"the input is {x.layout}"
    return None


@functools.lru_cache(maxsize=1024)
def _grid_of(
    shape: torch.Size,
    dtype: torch.dtype,
    parameters: torch.dtype,
    layout: int,
    pool_samples: int | None,
    pool_channels: int | None,
) -> tuple[object, tuple[int, int]]:
    if parameters not in _DTYPES:
        raise RuntimeError(
            f"weight and bias are {parameters}: convert them to float32, float64, bfloat16 or "
            "float16"
        )
    samples, channels, *spatial = shape
    pooled = Pool(pool_samples, pool_channels).sizes(samples, channels)
    size = math.prod(spatial)
    grid = Grid(samples, channels, size, *pooled, _DTYPES[dtype], _DTYPES[parameters], layout)
    return ctypes.byref(grid), (samples // pooled[0], channels // pooled[1])


def _grid(
    x: Tensor, parameters: torch.dtype = torch.float64, pool: Pool = INSTANCE
) -> tuple[object, tuple[int, int]]:
    """Pointer to ``momentnorm_grid``, and the numbers of pools along N and C."""
    found = layout(x)
    assert found is not None, "the engine lays x out for kernels"
    return _grid_of(x.shape, x.dtype, parameters, found, pool.samples, pool.channels)


def _two(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two uninitialized tensors of statistics."""
    first = torch.empty(grid, dtype=torch.float64, device="cpu")  # not on the default device
    return first, torch.empty_like(first)


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_capsule.restype = ctypes.py_object


def _output(x: Tensor) -> Tensor:
    """Uninitialized tensor like x."""
    if x.nbytes < _LARGE:
        return _empty_like(x)
    strides = torch.empty_like(x, device="meta").stride()
    extents = ctypes.c_int64 * x.dim()
    output = _new_output(x.dim(), extents(*x.shape), extents(*strides), _DTYPES[x.dtype], x.nbytes)
    if not output:
        return _empty_like(x)
    return from_dlpack(_capsule(output, b"dltensor", None))


def _empty_like(x: Tensor) -> Tensor:
    """``torch.empty_like``, repeated after the kept memory is given back if it finds no memory."""
    try:
        return torch.empty_like(x)
    except RuntimeError as error:
        if not (is_out_of_memory(error) and give_back_kept_memory()):
            raise
        return torch.empty_like(x)


def _tail(tail: Tail, x: Tensor) -> tuple[object, Tensor | None]:
    """Pointer to ``momentnorm_tail``, and its residual, which the caller has to keep alive."""
    if tail is PLAIN:
        return None, None
    residual, pointer = tail.residual, None
    if residual is not None:
        residual = laid_out_as("the residual", residual, x)
        pointer = address("the residual", residual)
    return ctypes.byref(NativeTail(_ACTIVATIONS[tail.activation], tail.slope, pointer)), residual


def _target(x: Tensor, out: Tensor | None) -> tuple[Tensor, int]:
    """Tensor that an output like x is written into, and its address."""
    if out is not None:
        return out, address("out", out)
    y = _output(x)
    return y, y.data_ptr()


def _channel_values(name: str, values: Tensor | None, x: Tensor, dtype: torch.dtype) -> Any:
    """Parameter (C,) of the forward, checked again in the backward."""
    return None if values is None else checked(name, values, x.shape[1:2], dtype, x)


def _plane_values(name: str, values: Tensor | None, x: Tensor) -> Any:
    """Values of planes, (N, C)."""
    return None if values is None else checked(name, values, x.shape[:2], torch.float64, x)


def _address(name: str, operand: Tensor | None) -> int | None:
    return None if operand is None else address(name, operand)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    pointer, planes = _grid(x)
    mean, var = _two(planes)
    _moments(pointer, address("the input", x), mean.data_ptr(), var.data_ptr())
    return mean, var


def apply(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    y, written = _target(x, out)
    mean = _plane_values("the mean", mean, x)
    scale = _plane_values("the scale", scale, x)
    shift = _plane_values("the shift", shift, x)
    pointer, _kept = _tail(tail, x)
    _apply(
        _grid(x)[0],
        pointer,
        address("the input", x),
        address("the mean", mean),
        address("the scale", scale),
        address("the shift", shift),
        written,
    )
    return y


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pool: Pool = INSTANCE,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    y, written = _target(x, out)
    if weight is not None:
        weight = readable("weight", weight)
    if bias is not None:
        bias = readable("bias", bias)
    grid, pools = _grid(x, parameter_dtype_of(weight, bias), pool)
    mean, var = _two(pools)
    pointer, _kept = _tail(tail, x)
    _normalize(
        grid,
        pointer,
        address("the input", x),
        _address("weight", weight),
        _address("bias", bias),
        eps,
        written,
        mean.data_ptr(),
        var.data_ptr(),
    )
    return y, mean, var


def _converted(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in readable memory, converted to this dtype."""
    values = readable(name, values)
    address(name, values)
    return values if values.dtype is dtype else values.to(dtype)


def normalize_with(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    y, written = _target(x, out)
    given = ("running_mean", mean), ("running_var", var), ("weight", weight), ("bias", bias)
    parameters = mean.dtype
    if any(values is not None and values.dtype is not parameters for _, values in given):
        parameters = torch.float64
    operands = [None if v is None else _converted(name, v, parameters) for name, v in given]
    pointer, _kept = _tail(tail, x)
    _normalize_with(
        _grid(x, parameters)[0],
        pointer,
        address("the input", x),
        *[None if v is None else v.data_ptr() for v in operands],
        eps,
        written,
    )
    return y


def gradient_sums(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    tail: Tail = PLAIN,
) -> tuple[Tensor, Tensor]:
    gradient = laid_out_as("the gradient", gradient, x)
    grid, planes = _grid(x)
    sums, weighted_sums = _two(planes)
    mean = _plane_values("the mean", mean, x)
    scale = _plane_values("the scale", scale, x)
    shift = _plane_values("the shift", shift, x)
    pointer, _kept = _tail(tail, x)
    _gradient_sums(
        grid,
        pointer,
        address("the gradient", gradient),
        address("the input", x),
        address("the mean", mean),
        _address("the scale", scale),
        _address("the shift", shift),
        sums.data_ptr(),
        weighted_sums.data_ptr(),
    )
    return sums, weighted_sums


def apply_gradient(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    tail: Tail = PLAIN,
    needs_residual: bool = False,
) -> tuple[Tensor, Tensor | None]:
    gradient = laid_out_as("the gradient", gradient, x)
    given = {"mean": mean, "scale": scale, "shift": shift, "a": a, "b": b, "c": c}
    operands = {name: _plane_values(name, values, x) for name, values in given.items()}
    addresses = [_address(name, values) for name, values in operands.items()]
    pointer, _kept = _tail(tail, x)
    dx = _output(x)
    residual_gradient = _output(x) if needs_residual else None
    _apply_gradient(
        _grid(x)[0],
        pointer,
        address("the gradient", gradient),
        address("the input", x),
        *addresses,
        dx.data_ptr(),
        None if residual_gradient is None else residual_gradient.data_ptr(),
    )
    return dx, residual_gradient


def normalize_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pool: Pool = INSTANCE,
    tail: Tail = PLAIN,
    needs_residual: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    gradient = laid_out_as("the gradient", gradient, x)
    parameters = parameter_dtype_of(weight, bias)
    grid, pools = _grid(x, parameters, pool)
    weight = _channel_values("weight", weight, x, parameters)
    bias = _channel_values("bias", bias, x, parameters)
    mean = checked("the mean", mean, pools, torch.float64, x)
    var = checked("the variance", var, pools, torch.float64, x)
    dx = _output(x)
    residual_gradient = _output(x) if needs_residual else None
    # Pools of several planes do not need the sums of each plane.
    sums = mean.new_empty((2, *pools)) if pools == x.shape[:2] else None
    dweight = mean.new_empty(x.shape[1], dtype=parameters)
    dbias = torch.empty_like(dweight)
    pointer, _kept = _tail(tail, x)
    _normalize_backward(
        grid,
        pointer,
        address("the gradient", gradient),
        address("the input", x),
        address("the mean", mean),
        address("the variance", var),
        _address("weight", weight),
        _address("bias", bias),
        eps,
        dx.data_ptr(),
        None if residual_gradient is None else residual_gradient.data_ptr(),
        dweight.data_ptr(),
        dbias.data_ptr(),
        None if sums is None else sums.data_ptr(),
        None if sums is None else sums.data_ptr() + sums.nbytes // 2,
    )
    return dx, residual_gradient, dweight, dbias, sums
