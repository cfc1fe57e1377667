"""Arrays as tensors and back, and the errors of arrays that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array: TypeAlias = NDArray[np.floating[Any]]
    #: An array, what NumPy makes one of, or an object with ``__dlpack__``.
    Input: TypeAlias = ArrayLike | Tensor | Any

_FLOATS = (torch.float32, torch.float64, torch.float16)


def operands(
    x: Input, gamma: Input | None, beta: Input | None, axis: int, spatial: int
) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """Return x as a feature map (N, C, *S), gamma and beta as (C,), and the axis from the front."""
    values = tensor("x", x)
    if values.dim() < 2 + spatial:
        raise ValueError(
            f"x has {values.dim()} axes, shape {tuple(values.shape)}, and needs at least "
            f"{2 + spatial}: samples, channels{' and one more' if spatial else ''}"
        )
    axis = checked_axis(axis, values.dim())
    if axis == 0:
        raise np.exceptions.AxisError(
            "axis 0 has the samples: name the axis of the channels, 1 or -1"
        )
    features = values.movedim(axis, 1)
    if 1 < axis < values.dim() - 1:
        features = features.contiguous()  # no kernel reads channels between two other axes
    if spatial and features.shape[2:].numel() == 1:
        raise ValueError(
            f"x of shape {tuple(values.shape)} has one element for each sample and channel, whose "
            "variance is 0: choose another axis, or layer_norm"
        )
    weight, bias = (
        None if operand is None else per_channel(name, operand, values, axis)
        for name, operand in (("gamma", gamma), ("beta", beta))
    )
    return features, weight, bias, axis


def parameter_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of gamma and beta: float32 beside float16, which would lose digits."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def product(values: Tensor, axes: list[int]) -> int:
    return torch.Size([values.shape[i] for i in axes]).numel()


def tensor(name: str, values: Input) -> Tensor:
    """Return the values as a tensor of floats, without a copy where torch can read the memory."""
    if isinstance(values, Tensor):
        found = values.detach()
    elif hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
        found = torch.utils.dlpack.from_dlpack(values)
    else:
        found = _from_numpy(name, np.asarray(values))
    if not found.dtype.is_floating_point and not found.dtype.is_complex:
        return found.double()
    if found.dtype not in _FLOATS:
        raise _no_float(name, str(found.dtype).removeprefix("torch."))
    return found


def _from_numpy(name: str, array: NDArray[Any]) -> Tensor:
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise _no_float(name, str(array.dtype))
    # torch reads native bytes with positive strides, and warns of memory that is not writeable.
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    native = array.dtype.newbyteorder("=")
    if array.dtype != native or not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.astype(native)
    if any(stride % array.itemsize for stride in array.strides):
        array = array.copy()  # a field of a structured array
    return torch.from_numpy(array)


def _no_float(name: str, dtype: str) -> TypeError:
    return TypeError(
        f"{name} has dtype {dtype}: the kernels take float16, float32 and float64; "
        f"pass {name}.astype('float32')"
    )


def array(values: Tensor) -> Array:
    array: Array = values.cpu().numpy()
    return array


def checked_axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise np.exceptions.AxisError(axis, ndim)
    return axis % ndim


def per_channel(name: str, operand: Input, x: Tensor, axis: int) -> Tensor:
    """Return gamma or beta as a tensor (C,)."""
    values, channels = tensor(name, operand), x.shape[axis]
    shape = [1] * x.dim()
    shape[axis] = channels
    if values.numel() == 1 or list(values.shape) in ([channels], shape):
        return values.to(parameter_dtype(x)).reshape(-1).expand(channels).contiguous()
    raise ValueError(
        f"{name} of shape {tuple(values.shape)} could not be broadcast to the {channels} channels "
        f"of x, axis {axis} of shape {tuple(x.shape)}: pass ({channels},) or {tuple(shape)}"
    )


def along(name: str, operand: Input, x: Tensor, axes: list[int]) -> Tensor:
    """Return layer_norm's gamma or beta as a tensor that broadcasts to x."""
    values = tensor(name, operand).to(parameter_dtype(x))
    sizes = [x.shape[i] for i in axes]
    if list(values.shape) == sizes:
        return values.reshape([x.shape[i] if i in axes else 1 for i in range(x.dim())])
    pairs = zip(reversed(values.shape), reversed(x.shape), strict=False)
    if values.dim() <= x.dim() and all(size in (1, whole) for size, whole in pairs):
        return values
    raise ValueError(
        f"{name} of shape {tuple(values.shape)} could not be broadcast to x of shape "
        f"{tuple(x.shape)}: pass the shape of the normalized axes, {tuple(sizes)}"
    )


def running(name: str, values: Array, channels: int) -> Tensor:
    """Return the memory of a running statistic as a tensor (C,)."""
    if (
        not isinstance(values, np.ndarray)
        or values.shape != (channels,)
        or values.dtype not in (np.float16, np.float32, np.float64)
        or not values.flags.writeable
    ):
        raise ValueError(
            f"{name} should be a writeable NumPy array of floats with shape ({channels},), which "
            "training updates in place"
        )
    return torch.from_numpy(values)


def proportions(name: str, operand: Input) -> Tensor:
    values = tensor(name, operand)
    if values.shape != (3,):
        raise ValueError(
            f"{name} should be three numbers, for plane, sample and batch, not have shape "
            f"{tuple(values.shape)}"
        )
    return values
