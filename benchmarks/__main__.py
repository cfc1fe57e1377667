"""``make bench``: measure, print, and save ``docs/benchmarks.md`` and its CSV files."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch

import momentnorm
from momentnorm.core.backends import cpu
from momentnorm.support.machine import processor

from . import family, instance_norm, networks, peers, strided

HEADER = """# Benchmarks

Written by `make bench`, from the CSV files beside it.

Everything is measured in one process, in turns of changing order; medians. A shared machine: trust
the ratios.
"""

INSTANCE_NORM = """## InstanceNorm against torch's, and against a copy

- {environment}. Numbers: [{csv}]({csv}).
- Where a large output is allocated (*forward*, *training*), trust only the first digit: fresh
  pages cost more than the arithmetic, and how many are fresh depends on the allocator.
- *copy* is `y.copy_(x)` into an existing tensor: the time that the memory needs.
- *into* writes into an existing output; *forward* allocates it, as torch does; *training* is
  forward and backward with gradients of x, weight and bias.
- *forward* and *training* are called several times in a turn, so each finds the cache as it left it
  itself.
- torch returns a contiguous output for a channels_last input; ours stays channels_last.
"""

FAMILY = """## GroupNorm, BatchNorm and LayerNorm against torch's

- {environment}. Numbers: [{csv}]({csv}).
"""

STRIDED = """## Strided inputs: crops, slices, transposed

- {environment}. Numbers: [{csv}]({csv}).
"""

PEERS = """## InstanceNorm against other runtimes

- {environment}. Numbers: [{csv}]({csv}).
"""

NETWORKS = """## Whole networks

- {environment}. Numbers: [{csv}]({csv}).
"""


@dataclasses.dataclass(frozen=True)
class Part:
    """A section of the document, made of the rows of one CSV file."""

    csv: str
    row: type[Any]
    rows: Callable[[], Iterator[Any]]
    intro: str
    table: Callable[[list[Any]], str]
    versions: Callable[[], str] = str  # of what this part runs besides torch and momentnorm


def instance_norm_rows() -> Iterator[instance_norm.Row]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            for shape in instance_norm.SHAPES:
                yield instance_norm.measure(shape, dtype, layout)


def table(rows: list[instance_norm.Row]) -> str:
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
    lines.append(f"\nGeometric mean: forward {forward:.1f}x, training {training:.1f}x.")
    slower = [
        f"{row.shape} {task} ({speedup:.2f}x)"
        for row in rows
        for task, speedup in (("forward", row.forward_speedup), ("training", row.training_speedup))
        if speedup < 1
    ]
    if slower:
        lines.append(f"Ours is slower: {', '.join(slower)}.")
    return "\n".join([*lines, ""])


def by_input(table: Callable[[list[Any]], str]) -> Callable[[list[Any]], str]:
    """A table for each dtype and layout, under its own title."""

    def tables(rows: list[Any]) -> str:
        groups = itertools.groupby(rows, lambda row: (row.dtype, row.layout))
        return "\n".join(
            f"### {dtype}, {layout}\n\n{table(list(group))}" for (dtype, layout), group in groups
        )

    return tables


PARTS = {
    "instance_norm": Part(
        "benchmarks.csv", instance_norm.Row, instance_norm_rows, INSTANCE_NORM, by_input(table)
    ),
    "family": Part(
        "benchmarks-family.csv",
        family.Row,
        family.rows,
        FAMILY + family.NOTES,
        by_input(family.table),
    ),
    "strided": Part(
        "benchmarks-strided.csv",
        family.Row,
        strided.rows,
        STRIDED + strided.NOTES,
        by_input(family.table),
    ),
    "peers": Part(
        "benchmarks-peers.csv",
        peers.Row,
        peers.rows,
        PEERS + peers.NOTES,
        by_input(peers.table),
        peers.versions,
    ),
    "networks": Part(
        "benchmarks-networks.csv",
        networks.Row,
        networks.rows,
        NETWORKS + networks.NOTES,
        networks.table,
    ),
}


def environment(part: Part) -> str:
    told = [
        f"Machine: {processor()} ({platform.machine()}), {torch.get_num_threads()} threads. "
        f"momentnorm {momentnorm.__version__} ({cpu.instruction_set() or cpu.unavailable()})",
        f"torch {torch.__version__}",
        part.versions(),
    ]
    return ", ".join(filter(None, told))


def save(part: Part, rows: list[Any], folder: Path) -> None:
    told = {"environment": environment(part)}
    with (folder / part.csv).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*_columns(part), "environment"])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) | told for row in rows)


def section(part: Part, folder: Path) -> str:
    """The part's Markdown, from its CSV file; nothing, if it was never measured."""
    path = folder / part.csv
    if not path.exists():
        return ""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [*_columns(part), "environment"]:
            raise SystemExit(
                f"{path} does not have the columns of these benchmarks: measure its part again"
            )
        records = list(reader)
    rows = [
        part.row(**{name: _value(kind, record[name]) for name, kind in _columns(part).items()})
        for record in records
    ]
    intro = part.intro.format(environment=records[0]["environment"], csv=part.csv)
    return f"\n{intro}\n{part.table(rows)}"


def _columns(part: Part) -> dict[str, str]:
    """Name and type of each."""
    return {field.name: str(field.type) for field in dataclasses.fields(part.row)}


def _value(kind: str, text: str) -> str | float | None:
    if kind == "str":
        return text
    return float(text) if text else None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=Path("docs"), help="the folder to save in")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=PARTS,
        default=list(PARTS),
        help="measure these parts again, or none, and keep what was measured of the others",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        if name not in options.only:
            section(part, options.output)  # what cannot be kept should fail before the measuring
    for name in options.only:
        rows = []
        for row in PARTS[name].rows():
            print(row, flush=True)
            rows.append(row)
        save(PARTS[name], rows, options.output)
    text = HEADER + "".join(section(part, options.output) for part in PARTS.values())
    (options.output / "benchmarks.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
