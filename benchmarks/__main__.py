"""``make bench``: measure, print, and save ``docs/benchmarks.md`` and ``docs/benchmarks.csv``."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import platform
from pathlib import Path
from statistics import geometric_mean

import torch

import momentnorm
from momentnorm.backends import cpu

from . import instance_norm
from .instance_norm import Row

HEADER = """# Benchmarks

Written by `make bench`; the numbers are also in [benchmarks.csv](benchmarks.csv).

- Machine: {machine}, {threads} threads. momentnorm {version} ({isa}), torch {torch}.
- Everything in one process, in turns of changing order; medians. A shared machine: trust the
  ratios, and of those where a large output is allocated (*forward*, *training*) only the first
  digit: fresh pages cost more than the arithmetic, and how many are fresh depends on the allocator.
- *copy* is `y.copy_(x)` into an existing tensor: the time that the memory needs.
- *into* writes into an existing output; *forward* allocates it, as torch does; *training* is
  forward and backward with gradients of x, weight and bias.
- torch returns a contiguous output for a channels_last input; ours stays channels_last.
"""

TABLES = tuple(
    (dtype, layout)
    for dtype in (torch.float32, torch.bfloat16)
    for layout in ("contiguous", "channels_last")
)


def table(rows: list[Row]) -> str:
    lines = [
        "| input | copy (us) | into / copy | GB/s | forward (us) | torch (us) | faster | "
        "training (us) | torch (us) | faster |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        into = (
            f"{row.into / row.copy:.2f} | {row.gigabytes / row.into:.0f}"
            if row.into
            else "reference |"
        )
        lines.append(
            f"| {row.shape} | {row.copy * 1e6:.0f} | {into} | {row.forward * 1e6:.0f} | "
            f"{row.torch_forward * 1e6:.0f} | {row.forward_speedup:.1f}x | "
            f"{row.training * 1e6:.0f} | {row.torch_training * 1e6:.0f} | "
            f"{row.training_speedup:.1f}x |"
        )
    forward = geometric_mean([row.forward_speedup for row in rows])
    training = geometric_mean([row.training_speedup for row in rows])
    lines.append(f"\nGeometric mean: forward {forward:.1f}x, training {training:.1f}x.\n")
    return "\n".join(lines)


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=Path("docs"), help="the folder to save in")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = HEADER.format(
        machine=f"{processor()} ({platform.machine()})",
        threads=args.threads,
        version=momentnorm.__version__,
        isa=cpu.instruction_set() or cpu.unavailable(),
        torch=torch.__version__,
    )
    rows = []
    for dtype, layout in TABLES:
        part = []
        for shape in instance_norm.SHAPES:
            part.append(instance_norm.measure(shape, dtype, layout))
            print(part[-1].dtype, layout, table(part[-1:]).splitlines()[2], flush=True)
        text += f"\n## InstanceNorm, {part[0].dtype}, {layout}\n\n{table(part)}"
        rows += part
    print("\n" + text)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "benchmarks.md").write_text(text)
    with (args.output / "benchmarks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


if __name__ == "__main__":
    main()
