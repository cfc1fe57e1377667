"""The report of benchmarks/accuracy.py: docs/accuracy.md and its plot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import momentnorm
from momentnorm.core.backends import cpu

from .accuracy_bound import ANY, BLOCK, COLUMNS, DTYPES, NOISE, Bound, Row


@dataclass(frozen=True)
class Cell:
    """Errors of our worse layout and of torch's better layout."""

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
    """Largest errors over all inputs."""
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
    """Cells where our error exceeds torch's by an epsilon and by a factor of 2."""
    cells = grouped(rows, "dtype", "result", "size", "ratio")
    found = {key: cell(both) for key, both in cells.items()}
    closer = {key: c for key, c in found.items() if c.ours > max(2 * c.torch, c.torch + 1)}
    text = f"There are {len(closer)} of {len(found)}.\n"
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

In float32 the largest error is {y32} epsilons for y and {dx32} for dx, for every mean / std up to
1e6, where torch's errors grow to {torch_y32} and {torch_dx32}. Half types add their own rounding,
half an epsilon. float64 errors grow with mean / std, and stay below torch's in these tables. All
results are within the bound that this page derives.

Written by `python -m benchmarks.accuracy`; the numbers are also in [accuracy.csv](accuracy.csv).
momentnorm {version} ({isa}), torch {torch}, on the CPU, {threads} threads.

## What is measured

- `instance_norm` with weight and bias, forward (*y*) and backward (*dx*), in contiguous and in
  channels_last memory. The input is noise of std 1 about a mean, rounded to its dtype. Planes
  have 2 to {largest} elements.
- The exact result is the formula for the values of the rounded input, in float64, and for float64
  in extended precision. So the error is that of the arithmetic alone.
- Errors are in epsilons of the dtype ({epsilons}), relative to the largest output of the plane.
  The terms of dx may cancel, so its errors are relative to the largest `weight / std *
  gradient`. The last rounding alone is about 0.5.
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

`F = 2^-52 sqrt({columns} + blocks)`. A block has {block} elements, and in channels_last
`32768 / C` pixels, at least 128. `h` is half the epsilon of a half type, and 0 for the
others.

The terms come from these errors:

- **Roundings of one element.** `x - high`, the scale, their product, the shift and the last sum are
  rounded once each. The mean is a double, used as the nearest `high` and a rest of at most `u |m|`:
  `u k` in units of the std, times another `u`. Half types are rounded once more, by `h`.
- **Sums.** In float a term has two or three roundings of its own, 15 additions in a column
  (fewer in channels_last) and 2 in the tree. All are counted in full, so `C` = {c32} u. The
  other additions are in double. In float64 up to 512 terms are added one by one in a lane. Their
  roundings are nearly random, and `n` of them count as `2 sqrt(n)`, so `C` = {c64} u.
- **Origin.** The sums are of `x - origin`, and the origin is `d` stds from the block's mean. The
  mean then has `M = C sqrt(1 + d^2)`. The variance has `C (1 + d^2)` from its squares and `2 C d
  sqrt(1 + d^2)` from what is subtracted, and `S` is half of both. In noise `d` is {d32} (a mean
  of 16 elements or more), in float64 {d64:.0f} (one element).
- **Merging.** A mean is a double, so each merge of blocks rounds it relative to its own size,
  not to the std: `F k`. The variance has this error from the differences of means. It matters in
  float64 only.
- **Small numbers** of half types are rounded to a multiple of the smallest number. Below the
  smallest normal number, `h` is relative to that number.

The largest share of the bound that an error reaches, over all elements of all noise:

{shares}
The bound of a half type is hardly more than its last rounding, and some element always has that in
full. The bounds of float32 and float64 are worst cases, since errors of both signs cancel.

## Over mean / std

The largest error for planes of {small} elements and more, since the std of a smaller plane varies
widely. Where the dtype rounds the noise away, the plane is constant, and our y is exactly the bias
rounded to the dtype. The largest float16 number is 65504.
{over_ratio}
## Over plane size

At mean / std {ratio:g}. Each dtype has two columns, our error and torch's. Errors of y:

{over_size_y}
Errors of dx:

{over_size_dx}
## Planes whose first elements differ from the rest

The constants of the bound above are for noise. The origin is the mean of the first elements of a
block: 1024 of 8192 in contiguous float32, 16 of a column's 2048 in channels_last, one in
contiguous float64. If these elements differ from all others, the origin may be far from the
block's mean. A block with more than 2 stds between them is added again about the mean just
found, so `d` is at most 2. If all other elements are equal, their roundings are equal, too, and
do not cancel. In float64 `C` is then {any_contiguous} u (channels_last: {any_channels_last} u).
The bound with these constants is wider, and holds for any data. It was measured for bands:
planes of {band_size} elements with one value, except for the first 1, 128 or 1024 elements,
which have another.

{bands}
## Where torch is closer

These are the cells of noise in which our error exceeds torch's by more than an epsilon, and by more
than a factor of 2. {closer}"""


def document(rows: list[Row]) -> str:
    of_noise = [row for row in rows if row.input == "noise"]
    at_ratio = [row for row in of_noise if row.ratio == RATIO]
    large = [row for row in of_noise if row.dtype == "float32" and row.size >= SMALL]
    y32, dx32 = (worst(row for row in large if row.result == result) for result in ("y", "dx"))
    single, double = (Bound(dtype, BLOCK, NOISE[dtype]) for dtype in (torch.float32, torch.float64))
    return DOCUMENT.format(
        y32=number(y32.ours),
        dx32=number(dx32.ours),
        torch_y32=number(y32.torch),
        torch_dx32=number(dx32.torch),
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
