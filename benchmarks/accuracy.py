"""The error of InstanceNorm on the CPU, ours and torch's.

``python -m benchmarks.accuracy`` prints the table that the README quotes, then sweeps mean / std,
plane size, dtype and layout, and writes ``docs/accuracy.md``, ``.csv`` and their plot.
``--table`` stops after the README's table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import momentnorm
from momentnorm import functional
from momentnorm.core.backends import cpu

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

SHAPE = (2, 8, 64, 64)


def cases() -> dict[str, tuple[Tensor, float]]:
    """name: an input, and the eps to normalize it with."""
    torch.manual_seed(0)
    noise = torch.randn(SHAPE, dtype=torch.float64)
    return {
        "mean 0, std 1": (noise.float(), 1e-5),
        "mean 10, std 1": ((noise + 10).float(), 1e-5),
        "mean 1000, std 0.01": ((0.01 * noise + 1000).float(), 1e-5),
        "constant 255": (torch.full(SHAPE, 255.0), 1e-5),
        "float16 constant 255, eps 1e-12": (torch.full(SHAPE, 255.0).half(), 1e-12),
        "values near 1e25": ((1e25 * noise).float(), 1e-5),
    }


def error(function: Callable[..., Tensor], x: Tensor, eps: float) -> float:
    """The largest difference from the formula in float64, about the plane's own mean."""
    planes = x.double().flatten(2)
    centred = planes - planes[..., :1]
    centred = centred - centred.mean(2, keepdim=True)
    exact = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    return float((function(x, eps=eps).double().flatten(2) - exact).abs().max())


def gradient_error(function: Callable[..., Tensor]) -> float:
    """Of the gradient of one sample, all in channels_last, relative to its largest value."""
    torch.manual_seed(0)
    x, direction = torch.randn(2, 1, *SHAPE[1:]).unbind()
    gradients: list[Tensor] = []
    for dtype, memory_format in (
        (torch.float32, torch.channels_last),
        (torch.float64, torch.contiguous_format),
    ):
        leaf = x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        towards = direction.to(dtype).contiguous(memory_format=memory_format)
        gradients += torch.autograd.grad(function(leaf), leaf, towards)
    return float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())


def table() -> str:
    lines = []
    functions = (nn.functional.instance_norm, functional.instance_norm)
    for name, (x, eps) in cases().items():
        theirs, ours = (error(function, x, eps) for function in functions)
        lines.append(f"| {name} | {theirs:.0e} | {ours:.0e} |")
    theirs, ours = (gradient_error(function) for function in functions)
    lines.append(
        f"| gradient of one sample, itself channels_last, relative | {theirs:.0e} | {ours:.0e} |"
    )
    return "\n".join(lines)


# ---- The sweep ----

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
RATIOS = (0.0, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
#: One element has no variance: torch and we refuse it.
SIZES = (2, *(4**power for power in range(1, 10)))
#: Larger planes, with the ratios and dtypes that time and memory allow.
LARGE: tuple[tuple[int, tuple[float, ...], tuple[torch.dtype, ...]], ...] = (
    (4**10, (0.0, 1e3, 1e6), DTYPES),
    (4**11, (0.0, 1e3, 1e6), DTYPES),
    (4**12, (1e3,), DTYPES),
    (4**13, (1e3,), (torch.float32,)),
)
CHANNELS = 2
EPS = 1e-5  # torch's default


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernels compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Sums:
    """What the sums over a block lose."""

    roundings: int  # one after another, as many as count
    origin: float  # how far it is from the block's mean, in standard deviations


#: Of noise. float32: a term's own two or three roundings, 15 additions in a column and 2 in the
#: tree, all as bad as they can be; the origin is a mean of 16 elements or more. float64: 512
#: additions in a lane, which count as 2 sqrt(512), about one element.
NOISE = {torch.float32: Sums(20, 0.25), torch.float64: Sums(45, 1.0)}

#: Of any data: no rounding makes up for another, and a block whose origin is more than two standard
#: deviations from its mean is added again, about that mean.
ANY = {
    (torch.float32, "contiguous"): Sums(20, 2.0),
    (torch.float32, "channels_last"): Sums(20, 2.0),
    (torch.float64, "contiguous"): Sums(519, 2.0),
    (torch.float64, "channels_last"): Sums(151, 2.0),
}

#: Elements of a block; in channels_last at least as many with up to 4 channels.
BLOCK = 8192
#: What the fold counts as beside the blocks: a channels_last block's columns.
COLUMNS = 16


@dataclass(frozen=True)
class Bound:
    """How far the kernels' results may be from the exact ones: docs/accuracy.md derives it."""

    dtype: torch.dtype
    size: int  # of a plane
    sums: Sums

    @property
    def unit(self) -> float:
        """Half an epsilon of the compute type: the relative error of one rounding."""
        return torch.finfo(compute_dtype(self.dtype)).eps / 2

    @property
    def mean(self) -> float:
        """Of a plane's mean, relative to its standard deviation, before it is rounded itself."""
        return self.unit * self.sums.roundings * math.hypot(1, self.sums.origin)

    @property
    def scale(self) -> float:
        """Of 1 / std, relative."""
        origin = self.sums.origin
        subtracted = origin * math.hypot(1, origin)
        return self.unit * self.sums.roundings * ((1 + origin**2) / 2 + subtracted)

    @property
    def fold(self) -> float:
        """Of a plane's mean, relative to the mean: the roundings of a double at every merge. The
        variance takes them in through the differences of the blocks' means."""
        return 2**-53 * 2 * math.sqrt(COLUMNS + self.size / BLOCK)

    def _stored(self, exact: Array) -> Array:
        """The rounding of a half type's result; a subnormal is rounded to a multiple."""
        if self.dtype == compute_dtype(self.dtype):
            return np.zeros_like(exact)
        info = torch.finfo(self.dtype)
        error: Array = info.eps / 2 * np.maximum(abs(exact), info.smallest_normal)
        return error

    def forward(self, y: Array, z: Array, weight: Array, bias: Array, condition: Array) -> Array:
        """Of ``y = weight * z + bias``; z = (x - mean) / std and condition = |mean| / std."""
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
        """Of ``dx = scale * (g - mean(g) - z * mean(g * z))``, with scale = weight / std.

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


#: What numpy's longdouble needs to judge float64: 64 bits at least.
LONG_EPSILON = 2e-19

#: Elements of a plane that the exact evaluation works on at once.
PIECE = 1 << 17


def pieces(size: int) -> Iterator[slice]:
    return (slice(begin, begin + PIECE) for begin in range(0, size, PIECE))


def planes(x: Tensor) -> Array:
    """(N, C, *S) -> (N * C, S), the same values."""
    x = x.detach().contiguous().flatten(2).flatten(0, 1)
    array: Array = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return array


class Exact:
    """y and dx of the values that x and the gradient hold, piece by piece, and their bounds.

    Computed in float64, and for float64 in the 64 bits and more of numpy's longdouble. The sums are
    of x less its plane's first element, and numpy adds in pairs, so no digit of the wide type is
    lost that the narrow one could see.
    """

    def __init__(
        self, x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, sums: Sums
    ) -> None:
        if x.dtype == torch.float64 and np.finfo(np.longdouble).eps > LONG_EPSILON:
            raise NotImplementedError("float64 cannot be judged here: longdouble is no wider")
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
        """y; its bound; and what its errors are relative to, y itself."""
        z = self._z(at)
        y = self.weight * z + self.bias
        return y, self.bound.forward(y, z, self.weight, self.bias, self.condition), y

    def backward(self, at: slice) -> tuple[Array, Array, Array]:
        """dx; its bound; and scale * g, since dx may cancel to anything."""
        z, g = self._z(at), self._g(at)
        scale = self.weight * self.inverse_std
        dx = scale * (g - self.plain - z * self.weighted)
        means = (self.plain, self.weighted, self.root)
        bound = self.bound.backward(dx, g, z, scale, means, self.condition)
        return dx, bound, scale * g


def compare(
    found: dict[str, Array], size: int, exact: Callable[[slice], tuple[Array, Array, Array]]
) -> dict[str, tuple[float, float]]:
    """Of each: the largest error, relative to its plane's largest value; the largest share of the
    bound."""
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
    """The largest errors in epsilons of the dtype; ``share`` is our largest part of the bound."""

    input: str
    dtype: str
    size: int
    ratio: float
    result: str
    layout: str
    ours: float
    torch: float
    share: float


def noise(dtype: torch.dtype, size: int, ratio: float) -> Tensor:
    """Of mean ``ratio`` and std 1, rounded to the dtype."""
    height = 1 << (size.bit_length() - 1) // 2
    # Planes enough to see a rare error in small ones; two samples, since torch gets the
    # channels_last gradient of a single one wrong. The largest do not fit twice.
    samples = 1 if size > 4**11 else max(2, 2048 // size)
    shape = (samples, CHANNELS, height, size // height)
    return torch.randn(shape, dtype=compute_dtype(dtype)).add_(ratio).to(dtype)


def band(dtype: torch.dtype, length: int) -> Tensor:
    """Planes of one value, but for the first elements, which have another."""
    x = torch.rand(16, CHANNELS, 1, 1, dtype=dtype).expand(-1, -1, 128, 128).clone()
    x.flatten(2)[..., :length] = 4 * torch.rand(16, CHANNELS, 1, dtype=dtype)
    return x


def results(
    function: Callable[..., Tensor],
    x: Tensor,
    gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    layout: str,
) -> tuple[Array, Array]:
    """y and dx."""
    x, gradient = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (x, gradient))
    leaf = x.detach().requires_grad_()
    y = function(leaf, None, None, weight, bias, eps=EPS)
    (dx,) = torch.autograd.grad(y, leaf, gradient)
    return planes(y), planes(dx)


def judge(x: Tensor, sums: Sums, layouts: Iterable[str], **labels: Any) -> list[Row]:
    """y and dx of x in each layout."""
    compute = compute_dtype(x.dtype)
    gradient = torch.randn(x.shape, dtype=compute).to(x.dtype)
    # Half types with float32 parameters, as in mixed precision.
    weight, bias = torch.rand(CHANNELS, dtype=compute) + 0.5, torch.randn(CHANNELS, dtype=compute)
    inputs = (x, gradient, weight, bias)
    exact = Exact(*inputs, sums)
    eps = torch.finfo(x.dtype).eps
    rows = []
    for layout in layouts:
        ours = results(functional.instance_norm, *inputs, layout)
        theirs = results(nn.functional.instance_norm, *inputs, layout)
        for i, (result, evaluate) in enumerate((("y", exact.forward), ("dx", exact.backward))):
            errors = compare({"ours": ours[i], "torch": theirs[i]}, exact.size, evaluate)
            rows.append(
                Row(
                    dtype=str(x.dtype).removeprefix("torch."),
                    size=exact.size,
                    result=result,
                    layout=layout,
                    ours=errors["ours"][0] / eps,
                    torch=errors["torch"][0] / eps,
                    share=errors["ours"][1],
                    **labels,
                )
            )
    return rows


def measure(dtype: torch.dtype, size: int, ratio: float) -> list[Row]:
    """Of noise, in each layout. Empty where the dtype overflows."""
    if 2 * ratio > torch.finfo(dtype).max:
        return []
    torch.manual_seed(0)
    x = noise(dtype, size, ratio)
    return judge(x, NOISE[compute_dtype(dtype)], LAYOUTS, input="noise", ratio=ratio)


def measure_band(dtype: torch.dtype, layout: str, length: int) -> list[Row]:
    """Of planes that do not begin as they go on."""
    torch.manual_seed(0)
    x = band(dtype, length)
    return judge(x, ANY[dtype, layout], [layout], input=f"band of {length}", ratio=0.0)


def sweep() -> Iterator[Row]:
    for dtype in (torch.float32, torch.float64):
        for layout in LAYOUTS:
            for length in (1, 128, 1024):
                yield from measure_band(dtype, layout, length)
    for size, ratios, dtypes in (*((size, RATIOS, DTYPES) for size in SIZES), *LARGE):
        for dtype in dtypes:
            for ratio in ratios:
                yield from measure(dtype, size, ratio)


# ---- The document ----


@dataclass(frozen=True)
class Cell:
    """The worse of our layouts, and the better of torch's."""

    ours: float
    torch: float
    share: float


def cell(rows: list[Row]) -> Cell:
    return Cell(
        max(row.ours for row in rows),
        min(row.torch for row in rows),
        max(row.share for row in rows),
    )


def grouped(rows: Iterable[Row], *fields: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, field) for field in fields), []).append(row)
    return groups


def worst(rows: Iterable[Row]) -> Cell:
    """Of all their inputs."""
    cells = [cell(both) for both in grouped(rows, "input", "dtype", "size", "ratio").values()]
    return Cell(*(max(getattr(c, field) for c in cells) for field in ("ours", "torch", "share")))


def number(value: float) -> str:
    if math.isinf(value):
        return "nan"
    return f"{value:.2f}" if value < 100 else f"{value:.0e}"


def markdown(head: list[str], lines: Iterable[Iterable[str]]) -> str:
    rows = ["| " + " | ".join(line) + " |\n" for line in (head, *lines)]
    rows.insert(1, "|---" + "|--:" * (len(head) - 1) + "|\n")
    return "".join(rows)


SMALL = 64
RATIO = 1e3  # of the tables and plots over plane size


def over_ratio(rows: list[Row]) -> str:
    text = ""
    for (dtype,), of_dtype in grouped(rows, "dtype").items():
        lines = []
        for (ratio,), part in sorted(grouped(of_dtype, "ratio").items()):
            y, dx = (worst(row for row in part if row.result == result) for result in ("y", "dx"))
            lines.append(
                [f"{ratio:g}", *(number(c) for both in (y, dx) for c in (both.ours, both.torch))]
            )
        head = ["mean / std", "y: momentnorm", "torch", "dx: momentnorm", "torch"]
        text += f"\n{dtype}:\n\n{markdown(head, lines)}"
    return text


def over_size(rows: list[Row], result: str) -> str:
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    lines = []
    for (size,), part in sorted(grouped(rows, "size").items()):
        line = [str(size)]
        for dtype in dtypes:
            of_dtype = [row for row in part if (row.dtype, row.result) == (dtype, result)]
            found = cell(of_dtype) if of_dtype else None
            line += [number(found.ours), number(found.torch)] if found else ["", ""]
        lines.append(line)
    return markdown(["elements", *(h for dtype in dtypes for h in (dtype, "torch"))], lines)


def shares(rows: list[Row]) -> str:
    lines = []
    for (dtype,), part in grouped(rows, "dtype").items():
        y, dx = (worst(row for row in part if row.result == result) for result in ("y", "dx"))
        lines.append([dtype, str(len(part)), f"{y.share:.1%}", f"{dx.share:.1%}"])
    return markdown(["dtype", "results", "y", "dx"], lines)


def bands(rows: list[Row]) -> str:
    lines = [
        [f"{dtype}, {layout}, {name}", *(f for row in part for f in _band(row))]
        for (dtype, layout, name), part in grouped(rows, "dtype", "layout", "input").items()
    ]
    head = ["", "y: momentnorm", "torch", "of the bound", "dx: momentnorm", "torch", "of the bound"]
    return markdown(head, lines)


def _band(row: Row) -> tuple[str, str, str]:
    return number(row.ours), number(row.torch), f"{row.share:.1%}"


def torch_is_closer(rows: list[Row]) -> str:
    """The cells where our error is more than an epsilon, and more than twice, above torch's."""
    cells = grouped(rows, "dtype", "result", "size", "ratio")
    found = {key: cell(both) for key, both in cells.items()}
    closer = {key: c for key, c in found.items() if c.ours > max(2 * c.torch, c.torch + 1)}
    text = f"It is so in {len(closer)} of {len(found)} cells.\n"
    lines = [
        [dtype, result, str(size), f"{ratio:g}", number(c.ours), number(c.torch), f"{c.share:.1%}"]
        for (dtype, result, size, ratio), c in closer.items()
    ]
    head = ["dtype", "result", "elements", "mean / std", "momentnorm", "torch", "of the bound"]
    return text + ("\n" + markdown(head, lines) if lines else "")


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, len(dtypes), sharex="row", sharey=True, squeeze=False)
    for column, dtype in enumerate(dtypes):
        part = [row for row in rows if row.dtype == dtype]
        over = (
            ("ratio", [row for row in part if row.size >= SMALL], "mean / std"),
            ("size", [row for row in part if row.ratio == RATIO], "elements of a plane"),
        )
        for axis, (field, chosen, label) in zip(axes[:, column], over, strict=True):
            for result, style in (("y", "-"), ("dx", "--")):
                groups = grouped((row for row in chosen if row.result == result), field)
                points = sorted((key[0], worst(group)) for key, group in groups.items())
                keys = [key for key, _ in points]
                for name, colour in (("torch", "tab:orange"), ("ours", "tab:blue")):
                    who = "momentnorm" if name == "ours" else "torch"
                    axis.plot(
                        keys,
                        [getattr(c, name) for _, c in points],
                        style,
                        color=colour,
                        marker=".",
                        label=f"{who}, {result}",
                    )
            if field == "ratio":
                axis.set_xscale("symlog", linthresh=1)
                axis.set_xticks([0, 1, 1e2, 1e4, 1e6])
            else:
                axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xlabel(label)
            axis.axhline(0.5, color="grey", linewidth=0.8)
        axes[0, column].set_title(dtype)
    for axis, about in zip(
        axes[:, 0], (f"{SMALL} elements or more", f"mean / std {RATIO:g}"), strict=True
    ):
        axis.set_ylabel(f"largest error / epsilon\n({about})")
    axes[0, 0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "momentnorm"}):
        figure.savefig(path, metadata={"Date": None})


DOCUMENT = """# Accuracy

Written by `python -m benchmarks.accuracy`; the numbers are also in [accuracy.csv](accuracy.csv).
momentnorm {version} ({isa}), torch {torch}, on the CPU, {threads} threads.

## What is measured

- `instance_norm` with weight and bias, forward (*y*) and backward (*dx*), in contiguous and in
  channels_last memory. The input is noise of std 1 about a mean, rounded to its dtype; planes of 2
  to {largest} elements.
- The error is against the same formula of exactly the values that the rounded input holds, centred,
  in float64, and for float64 in extended precision. So only the arithmetic counts.
- In epsilons of the dtype ({epsilons}), relative to the largest output of the plane. dx may cancel
  to anything: it is relative to the largest `weight / std * gradient`. A last rounding alone is
  about 0.5.
- *momentnorm* is the worse of its two layouts, *torch* the better of its two.

![The largest errors, over mean / std and over plane size](images/accuracy.svg)

## The bound

`u`, half an epsilon of the compute type (float64 for float64, float32 for all others), is the
largest relative error of one operation. `m` is the plane's mean, `r = 1 / sqrt(var + eps)`,
`z = (x - m) * r`, `w` the weight, `b` the bias, and `k = |m| * r` the conditioning.

    |error of y|  <= u (|y| + |b| + |w| (3 |z| + 4 u k))
                   + |w| (M + F k + (S + F k) |z|)
                   + h |y|

    |error of dx| <= |w r| ( u (3 |g| + 3 |p| + (5 |z| + 8 u k) |q|)
                           + C G (1 + |z| (1 + 2 u k))
                           + (S + F k) (|g| + |p| + 3 |z q|)
                           + (M + F k) (|q| + |z p|) )
                   + h |dx|

    p = mean(g), q = mean(g z), G = sqrt(mean(g^2))

| | float32 and half types | float64 |
|---|--:|--:|
| `u` | {u32:.1e} | {u64:.1e} |
| `C`: of a sum, relative to its terms | {c32} u | {c64} u |
| `M`: of the mean, relative to the std | {m32:.0f} u | {m64:.0f} u |
| `S`: of `r`, relative | {s32:.0f} u | {s64:.0f} u |

`F = 2^-52 sqrt({columns} + blocks)`, where a block has {block} elements, in channels_last
`32768 / C` pixels, but at least 128. `h` is half the epsilon of a half type, and 0 for the
others.

Where it comes from:

- **Roundings of one element.** `x - high`, the scale, their product, the shift and the last sum are
  rounded once each. The mean is a double, used as the nearest `high` and a rest of at most `u |m|`:
  `u k` in units of the std, times another `u`. Half types are rounded once more: `h`.
- **Sums.** In float a term has two or three roundings of its own, 15 additions in a column (fewer
  in channels_last) and 2 in the tree: `C` = {c32} u, all as bad as can be. From there on it is
  double. In float64 up to 512 terms follow one another in a lane. Such roundings are as good as
  random, and `n` of them count as `2 sqrt(n)`: `C` = {c64} u.
- **Origin.** The sums are of `x - origin`, with the origin `d` stds from the block's mean. The mean
  then has `M = C sqrt(1 + d^2)`. The variance has `C (1 + d^2)` from its squares and
  `2 C d sqrt(1 + d^2)` from what is subtracted, and `S` is half of both. In noise `d` is {d32}
  (a mean of 16 elements or more), in float64 {d64:.0f} (one element).
- **Merging.** A mean is a double, so each merge of blocks rounds it relative to its own size, not
  to the std: `F k`. The variance has the same from the differences of means. Only float64 sees it.
- **Small numbers** of half types are rounded to a multiple of their smallest: below the smallest
  normal number, `h` is relative to that.

The largest part of the bound that a result takes, over all elements of all inputs
of noise:

{shares}
A half type's bound is nearly its one rounding, which some element always takes. The others are
worst cases: errors of both signs cancel.

## Over mean / std

The largest error for planes of {small} elements and more. (A smaller plane's std may be anything.)
Where the dtype rounds the noise away, the plane is constant and our y exactly the bias, rounded to
the dtype. float16 ends at 65504.
{over_ratio}
## Over plane size

At mean / std {ratio:g}: of each dtype our error, then torch's. y:

{over_size_y}
dx:

{over_size_dx}
## Where a plane does not begin as it goes on

The constants above are for noise. The origin is a mean of elements at a block's beginning: 1024 of
8192 in contiguous float32, 16 of a column's 2048 in channels_last, one in contiguous float64. If
these are unlike all others, it may lie far from the block's mean; a block with more than 2 stds
between them is added again about the mean just found, so `d` is 2 at most. And where all others are
equal, so are their roundings, and none makes up for another: in float64 `C` is then
{any_contiguous} u (channels_last: {any_channels_last} u). The bound with these constants is
for any data, and wider. Only these bands were measured against it: planes of {band_size}
elements have one value, but for the first 1, 128 or 1024, which have another:

{bands}
## Where torch is closer

By more than an epsilon, and more than twice as close, in noise. {closer}"""


def document(rows: list[Row]) -> str:
    of_noise = [row for row in rows if row.input == "noise"]
    at_ratio = [row for row in of_noise if row.ratio == RATIO]
    single, double = (Bound(dtype, BLOCK, NOISE[dtype]) for dtype in (torch.float32, torch.float64))
    return DOCUMENT.format(
        version=momentnorm.__version__,
        isa=cpu.instruction_set() or cpu.unavailable(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        largest=max(row.size for row in rows),
        epsilons=", ".join(
            f"{str(dtype).removeprefix('torch.')} {torch.finfo(dtype).eps:.1e}" for dtype in DTYPES
        ),
        u32=single.unit,
        u64=double.unit,
        c32=single.sums.roundings,
        c64=double.sums.roundings,
        m32=single.mean / single.unit,
        m64=double.mean / double.unit,
        s32=single.scale / single.unit,
        s64=double.scale / double.unit,
        d32=single.sums.origin,
        d64=double.sums.origin,
        columns=COLUMNS,
        block=BLOCK,
        shares=shares(of_noise),
        small=SMALL,
        over_ratio=over_ratio([row for row in of_noise if row.size >= SMALL]),
        ratio=RATIO,
        over_size_y=over_size(at_ratio, "y"),
        over_size_dx=over_size(at_ratio, "dx"),
        any_contiguous=ANY[torch.float64, "contiguous"].roundings,
        any_channels_last=ANY[torch.float64, "channels_last"].roundings,
        band_size=next(row.size for row in rows if row.input != "noise"),
        bands=bands([row for row in rows if row.input != "noise"]),
        closer=torch_is_closer(of_noise),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the README's table alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs"), help="the folder to save in")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(table())
    if args.table:
        return
    rows: list[Row] = []
    for row in sweep():
        if not rows or (row.input, row.size) != (rows[-1].input, rows[-1].size):
            print(f"{row.input}, planes of {row.size} elements", flush=True)
        rows.append(row)
    text = document(rows)
    print("\n" + text)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "accuracy.md").write_text(text)
    with (args.output / "accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        for row in rows:
            fields = dataclasses.asdict(row)
            writer.writerow(
                {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in fields.items()}
            )
    plot([row for row in rows if row.input == "noise"], args.output / "images/accuracy.svg")


if __name__ == "__main__":
    main()
