"""Errors of InstanceNorm on the CPU, ours and torch's.

``python -m benchmarks.accuracy`` prints the table that the README quotes. Then it sweeps mean /
std, plane size, dtype and layout, and writes ``docs/accuracy.md``, ``.csv`` and their plot.
``--table`` stops after the README's table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from momentnorm import functional

from .accuracy_bound import (
    ANY,
    DTYPES,
    EPS,
    NOISE,
    Exact,
    Row,
    Sums,
    compare,
    compute_dtype,
    planes,
)
from .accuracy_report import document, plot

if TYPE_CHECKING:
    from .accuracy_bound import Array

SHAPE = (2, 8, 64, 64)


def cases() -> dict[str, tuple[Tensor, float]]:
    """Inputs by name, each with an eps."""
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
    """Largest difference from the formula in float64."""
    planes = x.double().flatten(2)
    centred = planes - planes[..., :1]
    centred = centred - centred.mean(2, keepdim=True)
    exact = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    return float((function(x, eps=eps).double().flatten(2) - exact).abs().max())


def gradient_error(function: Callable[..., Tensor]) -> float:
    """Error of the gradient of one channels_last sample, relative to its largest value."""
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


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
RATIOS = (0.0, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
#: Plane sizes. torch and this library refuse one element, which has no variance.
SIZES = (2, *(4**power for power in range(1, 10)))
#: Larger planes, with the ratios and dtypes for which time and memory suffice.
LARGE: tuple[tuple[int, tuple[float, ...], tuple[torch.dtype, ...]], ...] = (
    (4**10, (0.0, 1e3, 1e6), DTYPES),
    (4**11, (0.0, 1e3, 1e6), DTYPES),
    (4**12, (1e3,), DTYPES),
    (4**13, (1e3,), (torch.float32,)),
)
CHANNELS = 2


def noise(dtype: torch.dtype, size: int, ratio: float) -> Tensor:
    """Noise of mean ``ratio`` and std 1, rounded to the dtype."""
    height = 1 << (size.bit_length() - 1) // 2
    # Small planes are many, so that rare errors occur. There are two samples where memory suffices,
    # since torch's gradient of a single channels_last sample is wrong.
    samples = 1 if size > 4**11 else max(2, 2048 // size)
    shape = (samples, CHANNELS, height, size // height)
    return torch.randn(shape, dtype=compute_dtype(dtype)).add_(ratio).to(dtype)


def band(dtype: torch.dtype, length: int) -> Tensor:
    """Planes of one value, except for the first elements, which have another."""
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
    """Errors of y and dx in each layout."""
    compute = compute_dtype(x.dtype)
    gradient = torch.randn(x.shape, dtype=compute).to(x.dtype)
    # Half types have float32 parameters, as in mixed precision.
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
    """Errors for noise in each layout. Empty where the dtype overflows."""
    if 2 * ratio > torch.finfo(dtype).max:
        return []
    torch.manual_seed(0)
    x = noise(dtype, size, ratio)
    return judge(x, NOISE[compute_dtype(dtype)], LAYOUTS, input="noise", ratio=ratio)


def measure_band(dtype: torch.dtype, layout: str, length: int) -> list[Row]:
    """Errors for planes whose first elements differ from the rest."""
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--table", action="store_true", help="print only the table of the README")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder to save in")
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
