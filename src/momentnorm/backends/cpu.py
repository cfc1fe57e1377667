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

name = "cpu"

ABI_VERSION = 2

#: Outputs from this many bytes on ask for huge pages: page faults cost more than the arithmetic.
_LARGE = 4 << 20

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_CHANNELS_FIRST, _CHANNELS_LAST = 0, 1
_CHANNELS_LAST_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

_INTEGER, _POINTER, _DOUBLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
# Of each function, behind the pointer to the grid.
_SIGNATURES: dict[str, list[Any]] = {
    "moments": [_POINTER] * 3,
    "apply": [_POINTER] * 5,
    "normalize": [_POINTER] * 3 + [_DOUBLE] + [_POINTER] * 3,
    "gradient_sums": [_POINTER] * 5,
    "apply_gradient": [_POINTER] * 7,
    "normalize_backward": [_POINTER] * 5 + [_DOUBLE] + [_POINTER] * 3,
}


class _Grid(ctypes.Structure):
    """``momentnorm_grid``."""

    _fields_ = (
        ("samples", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("parameters", ctypes.c_int32),
        ("layout", ctypes.c_int32),
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
    library.momentnorm_advise_fresh.argtypes = [_POINTER, _INTEGER]
    library.momentnorm_advise_fresh.restype = None
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
    _advise_fresh = _library.momentnorm_advise_fresh
    _moments = _library.momentnorm_moments
    _apply = _library.momentnorm_apply
    _normalize = _library.momentnorm_normalize
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
    if _layout(x) is None:
        return "the input is neither contiguous nor channels_last"
    return None


def _layout(x: Tensor) -> int | None:
    if x.is_contiguous():
        return _CHANNELS_FIRST
    memory_format = _CHANNELS_LAST_FORMATS.get(x.dim())
    if memory_format is None:
        return _CHANNELS_LAST if x.movedim(1, -1).is_contiguous() else None
    return _CHANNELS_LAST if x.is_contiguous(memory_format=memory_format) else None


@functools.lru_cache(maxsize=1024)
def _grid_of(shape: torch.Size, dtype: torch.dtype, parameters: torch.dtype, layout: int) -> object:
    samples, channels, *spatial = shape
    size = math.prod(spatial)
    grid = _Grid(samples, channels, size, _DTYPES[dtype], _DTYPES[parameters], layout)
    return ctypes.byref(grid)


def _grid(x: Tensor, parameter: Tensor | None = None) -> object:
    layout = _layout(x)
    assert layout is not None
    return _grid_of(x.shape, x.dtype, x.dtype if parameter is None else parameter.dtype, layout)


def _per_plane(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two (N, C) tensors to be written."""
    samples, channels = x.shape[:2]
    first = torch.empty((samples, channels), dtype=torch.float64)
    return first, torch.empty_like(first)


def _output(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    if y.nbytes >= _LARGE:
        _advise_fresh(y.data_ptr(), y.nbytes)
    return y


def _readable(values: Tensor) -> Tensor:
    """A parameter or per-plane values as the kernels read them."""
    return values.resolve_neg().contiguous()


def _laid_out_as(x: Tensor, gradient: Tensor) -> Tensor:
    """A gradient as the kernels read it: in the memory layout of x."""
    if gradient.stride() == x.stride() and not gradient.is_neg():
        return gradient
    return torch.empty_like(x).copy_(gradient)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = _per_plane(x)
    _moments(_grid(x), x.data_ptr(), mean.data_ptr(), var.data_ptr())
    return mean, var


def apply(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = _output(x)
    operands = [_readable(values) for values in (mean, scale, shift)]
    _apply(_grid(x), x.data_ptr(), *(values.data_ptr() for values in operands), y.data_ptr())
    return y


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    y = _output(x) if out is None else out
    mean, var = _per_plane(x)
    if weight is not None:
        weight = _readable(weight)
    if bias is not None:
        bias = _readable(bias)
    _normalize(
        _grid(x, bias if weight is None else weight),
        x.data_ptr(),
        None if weight is None else weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        eps,
        y.data_ptr(),
        mean.data_ptr(),
        var.data_ptr(),
    )
    return y, mean, var


def gradient_sums(gradient: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    gradient, mean = _laid_out_as(x, gradient), _readable(mean)
    sums, weighted_sums = _per_plane(x)
    _gradient_sums(
        _grid(x),
        gradient.data_ptr(),
        x.data_ptr(),
        mean.data_ptr(),
        sums.data_ptr(),
        weighted_sums.data_ptr(),
    )
    return sums, weighted_sums


def apply_gradient(
    gradient: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> Tensor:
    gradient = _laid_out_as(x, gradient)
    dx = _output(x)
    operands = [_readable(values) for values in (mean, a, b, c)]
    _apply_gradient(
        _grid(x),
        gradient.data_ptr(),
        x.data_ptr(),
        *(values.data_ptr() for values in operands),
        dx.data_ptr(),
    )
    return dx


def normalize_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = _laid_out_as(x, gradient)
    if weight is not None:
        weight = _readable(weight)
    dx = _output(x)
    sums, weighted_sums = _per_plane(x)
    _normalize_backward(
        _grid(x, weight),
        gradient.data_ptr(),
        x.data_ptr(),
        mean.data_ptr(),
        var.data_ptr(),
        None if weight is None else weight.data_ptr(),
        eps,
        dx.data_ptr(),
        sums.data_ptr(),
        weighted_sums.data_ptr(),
    )
    return dx, sums, weighted_sums
