"""The CPU backend: binds the C++ kernels (``csrc/momentnorm.h``) through ctypes.

The kernels run on torch's own thread pool: its CPU library exports ``torch_parallel_for`` and
``torch_get_num_threads``, whose addresses the kernels are given, so ``torch.set_num_threads``
holds and no second pool fights for the cores.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..pool import INSTANCE, Pool
from ..tail import ACTIVATIONS, PLAIN, Tail
from .operands import address, checked, laid_out_as, layout, parameter_dtype_of, readable

name = "cpu"

ABI_VERSION = 5

#: Outputs from this many bytes on take memory that is kept for them: the page faults of fresh
#: memory cost more than the arithmetic.
_LARGE = 4 << 20

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

_INTEGER, _POINTER, _DOUBLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
# Of each function, behind the pointer to the grid.
_SIGNATURES: dict[str, list[Any]] = {
    "moments": [_POINTER] * 3,
    "apply": [_POINTER] * 6,
    "normalize": [_POINTER] * 4 + [_DOUBLE] + [_POINTER] * 3,
    "normalize_with": [_POINTER] * 6 + [_DOUBLE, _POINTER],
    "gradient_sums": [_POINTER] * 8,
    "apply_gradient": [_POINTER] * 11,
    "normalize_backward": [_POINTER] * 7 + [_DOUBLE] + [_POINTER] * 6,
}

_ACTIVATIONS = {name: number for number, name in enumerate(("", *ACTIVATIONS))}


class _Grid(ctypes.Structure):
    """``momentnorm_grid``."""

    _fields_ = (
        ("samples", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("pool_samples", ctypes.c_int64),
        ("pool_channels", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("parameters", ctypes.c_int32),
        ("layout", ctypes.c_int32),
    )


class _Tail(ctypes.Structure):
    """``momentnorm_tail``."""

    _fields_ = (
        ("activation", ctypes.c_int32),
        ("slope", ctypes.c_double),
        ("residual", ctypes.c_void_p),
    )


class _UnavailableError(Exception):
    """The kernels cannot be used; the message says why and what helps."""


def _raise_unless_ok(status: int) -> None:
    if status:
        raise RuntimeError(f"a momentnorm kernel refused its call, with status {status}")


def _load() -> ctypes.CDLL:
    # An editable install keeps the library and the sources in different folders of one package.
    folders = sys.modules["momentnorm"].__path__
    candidates = [Path(folder, "_native", "libmomentnorm.so") for folder in folders]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise _UnavailableError(
            "the kernels were not built: reinstall momentnorm with a C++ compiler"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise _UnavailableError(f"the kernels do not load: {error}") from None
    if library.momentnorm_abi_version() != ABI_VERSION:
        raise _UnavailableError(f"{path} is of another version of momentnorm: reinstall it")
    for function, signature in _SIGNATURES.items():
        getattr(library, f"momentnorm_{function}").argtypes = [_POINTER, *signature]
        getattr(library, f"momentnorm_{function}").restype = _raise_unless_ok
    library.momentnorm_instruction_sets.restype = ctypes.c_char_p
    library.momentnorm_instruction_set.restype = ctypes.c_char_p
    library.momentnorm_choose_instruction_set.argtypes = [ctypes.c_char_p]
    library.momentnorm_new_output.argtypes = [
        ctypes.c_int32,
        _POINTER,
        _POINTER,
        ctypes.c_int32,
        _INTEGER,
    ]
    library.momentnorm_new_output.restype = _POINTER
    library.momentnorm_kept_memory.restype = _INTEGER
    library.momentnorm_limit_kept_memory.argtypes = [_INTEGER]
    library.momentnorm_limit_kept_memory.restype = None
    library.momentnorm_set_thread_pool.argtypes = [_POINTER, _POINTER]
    if not library.momentnorm_instruction_sets():
        raise _UnavailableError("the kernels need a processor with SSE4.2 (x86-64-v2) at least")
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        pool = [
            ctypes.cast(getattr(torch_cpu, function), _POINTER)
            for function in ("torch_parallel_for", "torch_get_num_threads")
        ]
    except (OSError, AttributeError) as error:
        raise _UnavailableError(
            f"this torch ({torch.__version__}) lends no thread pool: {error}"
        ) from None
    library.momentnorm_set_thread_pool(*pool)
    return library


def unavailable() -> str:
    """Why this backend takes nothing at all, or the empty string."""
    return _unavailable


def instruction_sets() -> list[str]:
    """The instruction sets that the kernels were built for and this processor runs, best first."""
    return _library.momentnorm_instruction_sets().decode().split() if _library else []


def instruction_set() -> str | None:
    """The one in use."""
    return _library.momentnorm_instruction_set().decode() if _library else None


def choose_instruction_set(name: str) -> None:
    """Use this one from now on, in the whole process; ``MOMENTNORM_ISA`` does it from the start.

    Raises:
        ValueError: it is not among :func:`instruction_sets`.
    """
    if not _library or _library.momentnorm_choose_instruction_set(name.encode()):
        known = ", ".join(instruction_sets()) or "none"
        raise ValueError(f"instruction set {name!r} is not available: choose one of {known}")


_library: ctypes.CDLL | None = None
_unavailable = ""
try:
    _library = _load()
except _UnavailableError as error:
    _unavailable = str(error)
else:
    if os.environ.get("MOMENTNORM_ISA"):
        choose_instruction_set(os.environ["MOMENTNORM_ISA"])
    if os.environ.get("MOMENTNORM_KEEP_MB"):
        try:
            _megabytes = int(os.environ["MOMENTNORM_KEEP_MB"])
        except ValueError:
            raise ValueError(
                "MOMENTNORM_KEEP_MB is a whole number of megabytes, not "
                f"{os.environ['MOMENTNORM_KEEP_MB']!r}"
            ) from None
        _library.momentnorm_limit_kept_memory(max(_megabytes, 0) << 20)
    _new_output = _library.momentnorm_new_output
    _moments = _library.momentnorm_moments
    _apply = _library.momentnorm_apply
    _normalize = _library.momentnorm_normalize
    _normalize_with = _library.momentnorm_normalize_with
    _gradient_sums = _library.momentnorm_gradient_sums
    _apply_gradient = _library.momentnorm_apply_gradient
    _normalize_backward = _library.momentnorm_normalize_backward


def refuses(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> str | None:
    if _library is None:
        return _unavailable
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
    grid = _Grid(samples, channels, size, *pooled, _DTYPES[dtype], _DTYPES[parameters], layout)
    return ctypes.byref(grid), (samples // pooled[0], channels // pooled[1])


def _grid(
    x: Tensor, parameters: torch.dtype = torch.float64, pool: Pool = INSTANCE
) -> tuple[object, tuple[int, int]]:
    """A pointer to ``momentnorm_grid``, and how many pools it has along N and C."""
    found = layout(x)
    assert found is not None, "the engine lays x out for kernels"
    return _grid_of(x.shape, x.dtype, parameters, found, pool.samples, pool.channels)


def _two(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two tensors of statistics, to be written."""
    first = torch.empty(grid, dtype=torch.float64, device="cpu")  # whatever is the default
    return first, torch.empty_like(first)


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.argtypes = [_POINTER, ctypes.c_char_p, _POINTER]
_capsule.restype = ctypes.py_object


def _output(x: Tensor) -> Tensor:
    """A tensor like x, to be written."""
    if x.nbytes < _LARGE:
        return torch.empty_like(x)
    strides = torch.empty_like(x, device="meta").stride()
    extents = ctypes.c_int64 * x.dim()
    output = _new_output(x.dim(), extents(*x.shape), extents(*strides), _DTYPES[x.dtype], x.nbytes)
    if not output:
        return torch.empty_like(x)
    return from_dlpack(_capsule(output, b"dltensor", None))


def kept_memory() -> int:
    """How many bytes of pages are kept for the next large outputs."""
    return _library.momentnorm_kept_memory() if _library else 0


def limit_kept_memory(limit: int) -> None:
    """Keep at most ``limit`` bytes for the next large outputs; 0 gives all of them back."""
    if _library:
        _library.momentnorm_limit_kept_memory(limit)


def _tail(tail: Tail, x: Tensor) -> tuple[object, Tensor | None]:
    """A pointer to ``momentnorm_tail``, and the residual that it points to, to be kept alive."""
    if tail is PLAIN:
        return None, None
    residual, pointer = tail.residual, None
    if residual is not None:
        residual = laid_out_as("the residual", residual, x)
        pointer = address("the residual", residual)
    return ctypes.byref(_Tail(_ACTIVATIONS[tail.activation], tail.slope, pointer)), residual


def _target(x: Tensor, out: Tensor | None) -> tuple[Tensor, int]:
    """What an output like x is written into, and its address."""
    if out is not None:
        return out, address("out", out)
    y = _output(x)
    return y, y.data_ptr()


def _channel_values(name: str, values: Tensor | None, x: Tensor, dtype: torch.dtype) -> Any:
    """A parameter (C,) of the forward, as the backward reads it."""
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
    """Readable values, whose memory exists, in this dtype."""
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
    # Pools of several planes have no use for the sums of each.
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
