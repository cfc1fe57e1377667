"""Triton backend: kernels for GPUs, with CUDA or ROCm.

Triton's interpreter runs the kernels on the CPU, slowly. It needs ``TRITON_INTERPRET=1`` in the
environment before the first import of Triton.

The first call that needs Triton imports it.
"""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...grid import map_of_moments
from ...pool import INSTANCE
from ...tail import PLAIN, Tail
from ..operands import CHANNELS_LAST, check_memory, checked, laid_out_as, layout

if TYPE_CHECKING:
    from types import ModuleType

    from ...pool import Pool
    from .launch import Grid

name = "triton"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: Whether kernels are interpreted on the CPU. Triton reads the variable when it is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_unavailable = "" if find_spec("triton") else "Triton is not installed: pip install triton"

#: Reason of the refusal for each CUDA device and dtype, or None.
_refused: dict[tuple[int, torch.dtype], str | None] = {}


def description() -> str:
    """Devices of this backend, or the reason why it takes no calls."""
    if _unavailable:
        return _unavailable
    if INTERPRETED:
        return "its interpreter, on the CPU (TRITON_INTERPRET=1): for tests"
    if not torch.cuda.is_available():
        return "no GPU is there"
    names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"kernels for {', '.join(names)}"


def refuses(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> str | None:
    if x.device.type != "cuda" and not (INTERPRETED and x.device.type == "cpu"):
        return f"the input is on {x.device.type}"
    if _unavailable:
        return _unavailable
    if x.dtype not in _DTYPES:
        return f"no kernel for {x.dtype}"
    if x.layout is not torch.strided:
        return f"the input is {x.layout}"
    if x.shape[0] * x.shape[1] >= 1 << 31:
        return "2^31 planes or more"
    if x.device.type == "cuda":
        return _device_refuses(x)
    return None


def _device_refuses(x: Tensor) -> str | None:
    key = x.device.index, x.dtype
    if key in _refused:
        return _refused[key]
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return None  # the operator in the graph asks again when it runs
    _refused[key] = _too_old(x) or trial(x.device)
    return _refused[key]


def _too_old(x: Tensor) -> str | None:
    needed = (8, 0) if x.dtype == torch.bfloat16 else (7, 0)
    found = torch.cuda.get_device_capability(x.device)
    if torch.version.hip or found >= needed:
        return None
    return "{} needs compute capability {}.{}, this device has {}.{}".format(
        x.dtype, *needed, *found
    )


def trial(device: torch.device) -> str | None:
    """Reason why a first kernel fails on this device, or None.

    Triton needs a C compiler, for example.
    """
    x = torch.tensor([[[1.0, 3.0]]], device=device)
    try:
        y, _, _ = normalize(x, None, None, 0.0)
        right = torch.allclose(y.cpu(), torch.tensor([[[-1.0, 1.0]]]), rtol=0, atol=1e-5)
    except Exception as error:  # the reference takes over after any error
        message = str(error).strip().partition("\n")[0]
        return f"Triton does not work here: {type(error).__name__}: {message}"
    return None if right else "Triton does not work here: a first kernel gave wrong results"


def _launch() -> ModuleType:
    from . import launch  # imports Triton

    return launch


@functools.lru_cache(maxsize=4096)
def _placed(
    shape: torch.Size, strides: tuple[int, ...], itemsize: int, device: int, pool: Pool
) -> tuple[Grid, int, int]:
    batch, channels = shape[:2]
    samples, width = pool.sizes(batch, channels)
    size, last = shape[2:].numel(), False
    if layout(torch.empty_strided(shape, strides, device="meta")) == CHANNELS_LAST:
        batch, size, samples, last = batch // samples, size * samples, 1, True
    grid: Grid = _launch().Grid(batch, channels, size, last, itemsize, device)
    return grid, samples, width


def _pools(x: Tensor, pool: Pool) -> tuple[Grid, int, int]:
    """Grid of x, and the numbers of samples and channels of a pool in it.

    In channels_last the samples of a pool are one longer sample.
    """
    check_memory("the input", x)
    device = x.device.index if x.is_cuda else -1
    return _placed(x.shape, x.stride(), x.element_size(), device, pool)


def _grid(x: Tensor) -> Grid:
    return _pools(x, INSTANCE)[0]


def _empty(x: Tensor, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return x.new_empty(shape, dtype=dtype)


def _there(name: str, operand: Tensor) -> Tensor:
    """Check that the memory of an operand exists, since Triton uses its address."""
    check_memory(name, operand)
    return operand


def _tail(tail: Tail, x: Tensor) -> tuple[Tensor | None, str, float]:
    """Residual in the layout of x, activation, and its slope."""
    residual = tail.residual
    if residual is not None:
        residual = _like("the residual", residual, x)
    return residual, tail.activation, float(tail.slope)


def _like(name: str, operand: Tensor, x: Tensor) -> Tensor:
    """Gradient or residual in the layout of x."""
    return _there(name, laid_out_as(name, operand, x))


def _target(x: Tensor, out: Tensor | None) -> Tensor:
    """Tensor that an output like x is written into."""
    return torch.empty_like(x) if out is None else _there("out", out)


def _channel_values(name: str, values: Tensor | None, x: Tensor) -> Tensor | None:
    """Parameter (C,) of any dtype."""
    if values is None:
        return None
    return _there(name, checked(name, values, x.shape[1:2], values.dtype, x))


def _values(name: str, values: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values of planes or pools, checked for this shape."""
    return _there(name, checked(name, values, shape, torch.float64, x))


def _plane_values(name: str, values: Tensor | None, x: Tensor) -> Tensor | None:
    return None if values is None else _values(name, values, x, x.shape[:2])


def _pool_moments(x: Tensor, grid: Grid, samples: int, width: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pool, where planes are cut."""
    launch = _launch()
    chunks = launch.cut(grid).chunks
    partial = [_empty(x, grid.samples, grid.channels, chunks) for _ in range(2)]
    launch.piece("partial_moments", grid)(x, *partial)
    if chunks == samples == width == 1:
        return partial[0].squeeze(2), partial[1].squeeze(2)
    pools = grid.samples // samples, grid.channels // width
    mean, var = _empty(x, *pools), _empty(x, *pools)
    launch.piece("merge_moments", grid, samples, width)(*partial, mean, var)
    return mean, var


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return _pool_moments(x, _grid(x), 1, 1)


def apply(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    y, planes = _target(x, out), x.shape[:2]
    residual, activation, slope = _tail(tail, x)
    run = _launch().piece("apply", _grid(x), 1, 1, activation, True)
    mean, scale, shift = (
        _values(name, values, x, planes)
        for name, values in (("the mean", mean), ("the scale", scale), ("the shift", shift))
    )
    run(x, y, residual, mean, None, scale, shift, 0.0, slope)
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
    launch, (grid, samples, width), eps = _launch(), _pools(x, pool), float(eps)
    y = _target(x, out)
    weight, bias = _channel_values("weight", weight, x), _channel_values("bias", bias, x)
    residual, activation, slope = _tail(tail, x)
    processors = launch.multiprocessors(grid.device)
    run = launch.visit(grid, samples, width, activation, False, processors)
    if run is not None:
        pools = grid.samples // samples, grid.channels // width
        mean, var = _empty(x, *pools), _empty(x, *pools)
        run(x, y, residual, weight, bias, mean, var, eps, slope)
    else:
        mean, var = _pool_moments(x, grid, samples, width)
        run = launch.piece("apply", grid, samples, width, activation)
        run(x, y, residual, mean, var, weight, bias, eps, slope)
    return y, mean, var


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
    return apply(x, *map_of_moments(x, mean, var, weight, bias, eps), tail, out)


def gradient_sums(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    tail: Tail = PLAIN,
) -> tuple[Tensor, Tensor]:
    launch, grid = _launch(), _grid(x)
    gradient = _like("the gradient", gradient, x)
    mean = _values("the mean", mean, x, x.shape[:2])
    scale, shift = _plane_values("the scale", scale, x), _plane_values("the shift", shift, x)
    residual, activation, slope = _tail(tail, x)
    sums = _empty(x, 2, *x.shape[:2], launch.cut(grid).chunks)
    run = launch.piece("partial_sums", grid, 1, 1, activation, True)
    run(gradient, x, residual, sums, mean, None, scale, shift, 0.0, slope)
    if sums.shape[3] > 1:
        partial, sums = sums, _empty(x, 2, *x.shape[:2], 1)
        launch.piece("merge_sums", grid)(partial, sums, None, None, None, 0.0)
    plain, weighted = sums.squeeze(3)
    return plain, weighted


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
    gradient, planes = _like("the gradient", gradient, x), x.shape[:2]
    residual, activation, slope = _tail(tail, x)
    dx = torch.empty_like(x)
    residual_gradient = torch.empty_like(x) if needs_residual else None
    mean, a, b, c = (
        _values(name, values, x, planes)
        for name, values in (("the mean", mean), ("a", a), ("b", b), ("c", c))
    )
    scale, shift = _plane_values("the scale", scale, x), _plane_values("the shift", shift, x)
    run = _launch().piece("apply_gradient", _grid(x), 1, 1, activation, True)
    run(
        gradient, x, residual, dx, residual_gradient, mean, None, scale, shift, a, b, c, 0.0, slope
    )  # fmt: skip
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
    launch, (grid, samples, width), eps = _launch(), _pools(x, pool), float(eps)
    gradient = _like("the gradient", gradient, x)
    weight, bias = _channel_values("weight", weight, x), _channel_values("bias", bias, x)
    pools = x.shape[0] // pool.sizes(*x.shape[:2])[0], x.shape[1] // width
    mean = _values("the mean", mean, x, pools)
    var = _values("the variance", var, x, pools)
    residual, activation, slope = _tail(tail, x)
    dx = torch.empty_like(x)
    residual_gradient = torch.empty_like(x) if needs_residual else None
    batch, channels = grid.samples, grid.channels
    parameter = bias if weight is None else weight
    dtype = mean.dtype if parameter is None else parameter.dtype
    dweight, dbias = _empty(x, channels, dtype=dtype), _empty(x, channels, dtype=dtype)

    processors = launch.multiprocessors(grid.device)
    run = launch.visit(grid, samples, width, activation, True, processors)
    if run is not None:
        # The sums of a channel cover all samples of a pool.
        sums = _empty(x, 2, batch // samples, channels)
        alone = (dweight, dbias) if batch == samples else (None, None)
        results = dx, residual_gradient, sums, *alone
        run(gradient, x, residual, weight, bias, mean, var, *results, eps, slope)
        if batch > samples:
            finish = launch.parameter_gradients(batch // samples, channels, 1, width, grid.device)
            finish(sums, var, dweight, dbias, eps)
    else:
        partial = _empty(x, 2, batch, channels, launch.cut(grid).chunks)
        sums, means = _empty(x, 2, batch, channels), _empty(x, 2, *mean.shape)
        statistics = mean, var, weight, bias
        run = launch.piece("partial_sums", grid, samples, width, activation)
        run(gradient, x, residual, partial, *statistics, eps, slope)
        run = launch.piece("merge_sums", grid, samples, width)
        run(partial, sums, means, var, weight, eps)
        run = launch.piece("apply_gradient", grid, samples, width, activation)
        plain, weighted = means
        results, coefficients = (dx, residual_gradient), (None, weighted, plain)
        run(gradient, x, residual, *results, *statistics, *coefficients, eps, slope)
        finish = launch.parameter_gradients(batch, channels, samples, width, grid.device)
        finish(sums, var, dweight, dbias, eps)
    single = pool.samples == pool.channels == 1
    return dx, residual_gradient, dweight, dbias, sums if single else None
