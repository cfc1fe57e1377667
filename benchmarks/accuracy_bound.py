"""The bound of docs/accuracy.md, exact results, and the errors relative to both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EPS = 1e-5  # torch's default


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which the kernels compute."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Sums:
    """Errors of the sums over a block."""

    roundings: int  # of one term, one after another
    origin: float  # its distance from the block's mean, in standard deviations


#: Errors for noise. In float32 a term has two or three roundings of its own, 15 additions in a
#: column and 2 in the tree, all counted in full. Its origin is a mean of 16 elements or more. In
#: float64 512 additions in a lane count as 2 sqrt(512), and the origin is one element.
NOISE = {torch.float32: Sums(20, 0.25), torch.float64: Sums(45, 1.0)}

#: Errors for any data. No rounding cancels another. The origin is at most two standard deviations
#: from the block's mean, since otherwise the block is added again about that mean.
ANY = {
    (torch.float32, "contiguous"): Sums(20, 2.0),
    (torch.float32, "channels_last"): Sums(20, 2.0),
    (torch.float64, "contiguous"): Sums(519, 2.0),
    (torch.float64, "channels_last"): Sums(151, 2.0),
}

#: Elements of a block. A channels_last block of up to 4 channels has as many pixels, or more.
BLOCK = 8192
#: Columns of a channels_last block, which merge like blocks.
COLUMNS = 16


@dataclass(frozen=True)
class Bound:
    """Bound on the errors of the kernels. docs/accuracy.md derives it."""

    dtype: torch.dtype
    size: int  # of a plane
    sums: Sums

    @property
    def unit(self) -> float:
        """Relative error of one rounding: half an epsilon of the compute type."""
        return torch.finfo(compute_dtype(self.dtype)).eps / 2

    @property
    def mean(self) -> float:
        """Error of a plane's mean before it is rounded, relative to the standard deviation."""
        return self.unit * self.sums.roundings * math.hypot(1, self.sums.origin)

    @property
    def scale(self) -> float:
        """Relative error of 1 / std."""
        origin = self.sums.origin
        subtracted = origin * math.hypot(1, origin)
        return self.unit * self.sums.roundings * ((1 + origin**2) / 2 + subtracted)

    @property
    def fold(self) -> float:
        """Relative error of a plane's mean from the merges of blocks, each a rounding in double.

        The variance has it too, from the differences of the means of blocks.
        """
        return 2**-53 * 2 * math.sqrt(COLUMNS + self.size / BLOCK)

    def _stored(self, exact: Array) -> Array:
        """Rounding of a result to a half type. A subnormal is rounded to a multiple."""
        if self.dtype == compute_dtype(self.dtype):
            return np.zeros_like(exact)
        info = torch.finfo(self.dtype)
        error: Array = info.eps / 2 * np.maximum(abs(exact), info.smallest_normal)
        return error

    def forward(self, y: Array, z: Array, weight: Array, bias: Array, condition: Array) -> Array:
        """Error of ``y = weight * z + bias``, with condition = |mean| / std."""
        rest = self.unit * condition
        roundings = abs(y) + abs(bias) + abs(weight) * (3 * abs(z) + 4 * rest)
        fold = self.fold * condition
        statistics = self.mean + fold + (self.scale + fold) * abs(z)
        bound: Array = self.unit * roundings + abs(weight) * statistics + self._stored(y)
        return bound

    def backward(
        self,
        dx: Array,
        g: Array,
        z: Array,
        scale: Array,
        means: tuple[Array, Array, Array],
        condition: Array,
    ) -> Array:
        """Error of ``dx = scale * (g - mean(g) - z * mean(g * z))``, with scale = weight / std.

        Args:
            means: mean(g), mean(g * z) and the root of mean(g * g).
        """
        plain, weighted, size = (abs(value) for value in means)
        rest = self.unit * condition
        g, z = abs(g), abs(z)
        roundings = 3 * (g + plain) + (5 * z + 8 * rest) * weighted
        reduction = self.sums.roundings * size * (1 + z * (1 + 2 * rest))
        fold = self.fold * condition
        statistics = (self.scale + fold) * (g + plain + 3 * z * weighted)
        centre = (self.mean + fold) * (weighted + z * plain)
        total = self.unit * (roundings + reduction) + statistics + centre
        bound: Array = abs(scale) * total + self._stored(dx)
        return bound


#: Largest epsilon of numpy's longdouble that can judge float64: 64 bits of precision.
LONG_EPSILON = 2e-19

#: Elements of a plane that are evaluated exactly at a time.
PIECE = 1 << 17


def pieces(size: int) -> Iterator[slice]:
    return (slice(begin, begin + PIECE) for begin in range(0, size, PIECE))


def planes(x: Tensor) -> Array:
    """(N, C, *S) as (N * C, S)."""
    x = x.detach().contiguous().flatten(2).flatten(0, 1)
    array: Array = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return array


class Exact:
    """Exact y and dx of the values in x and the gradient, piece by piece, and their bounds.

    They are computed in float64, and for float64 inputs in numpy's longdouble, which has 64 bits of
    precision or more. The sums are of x minus the plane's first element, and numpy adds in pairs,
    so their errors are far below those of the narrow type.
    """

    def __init__(
        self, x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, sums: Sums
    ) -> None:
        if x.dtype == torch.float64 and np.finfo(np.longdouble).eps > LONG_EPSILON:
            raise NotImplementedError(
                "float64 cannot be judged on this machine: numpy's longdouble is not wider"
            )
        self.wide = np.longdouble if x.dtype == torch.float64 else np.float64
        self.x, self.gradient = planes(x), planes(gradient)
        self.size = self.x.shape[1]
        self.bound = Bound(x.dtype, self.size, sums)
        self.weight, self.bias = (
            np.tile(values.double().numpy(), len(x))[:, None].astype(self.wide)
            for values in (weight, bias)
        )
        self.first = self.x[:, :1].astype(self.wide)
        self.offset = self._mean(lambda at: self.x[:, at] - self.first)
        self.inverse_std = 1 / np.sqrt(self._mean(lambda at: self._centred(at) ** 2) + EPS)
        self.condition = abs(self.first + self.offset) * self.inverse_std
        self.plain = self._mean(lambda at: self._g(at))
        self.weighted = self._mean(lambda at: self._g(at) * self._z(at))
        self.root = np.sqrt(self._mean(lambda at: self._g(at) ** 2))

    def _mean(self, term: Callable[[slice], Array]) -> Array:
        sums = [term(at).sum(1) for at in pieces(self.size)]
        mean: Array = np.stack(sums, 1).sum(1, keepdims=True) / self.size
        return mean

    def _centred(self, at: slice) -> Array:
        centred: Array = self.x[:, at] - self.first - self.offset
        return centred

    def _g(self, at: slice) -> Array:
        return self.gradient[:, at].astype(self.wide)

    def _z(self, at: slice) -> Array:
        z: Array = self._centred(at) * self.inverse_std
        return z

    def forward(self, at: slice) -> tuple[Array, Array, Array]:
        """y, its bound, and the reference of its relative errors, which is y."""
        z = self._z(at)
        y = self.weight * z + self.bias
        return y, self.bound.forward(y, z, self.weight, self.bias, self.condition), y

    def backward(self, at: slice) -> tuple[Array, Array, Array]:
        """dx, its bound, and the reference of its relative errors, scale * g, as dx may cancel."""
        z, g = self._z(at), self._g(at)
        scale = self.weight * self.inverse_std
        dx = scale * (g - self.plain - z * self.weighted)
        means = (self.plain, self.weighted, self.root)
        bound = self.bound.backward(dx, g, z, scale, means, self.condition)
        return dx, bound, scale * g


def compare(
    found: dict[str, Array], size: int, exact: Callable[[slice], tuple[Array, Array, Array]]
) -> dict[str, tuple[float, float]]:
    """Largest error of each result, relative to its plane's largest value, and share of bound."""
    largest: Any = 0
    errors: dict[str, Any] = dict.fromkeys(found, 0)
    shares = dict.fromkeys(found, 0.0)
    for at in pieces(size):
        right, bound, reference = exact(at)
        largest = np.maximum(largest, abs(reference).max(1))
        for name, values in found.items():
            error = abs(values[:, at] - right)
            error[np.isnan(error)] = np.inf
            errors[name] = np.maximum(errors[name], error.max(1))
            shares[name] = max(shares[name], float((error / bound).max()))
    return {name: (float((errors[name] / largest).max()), shares[name]) for name in found}


@dataclass(frozen=True)
class Row:
    """Largest errors in epsilons of the dtype, and our largest share of the bound."""

    input: str
    dtype: str
    size: int
    ratio: float
    result: str
    layout: str
    ours: float
    torch: float
    share: float
