"""Checks and times of the GPU backend, in one run.

``python -m benchmarks.gpu FOLDER`` takes less than eight minutes, and writes gpu.md and CSV files
to the folder. Without a GPU it writes that nothing was measured. ``--smoke`` runs all parts on the
CPU with tiny inputs, under Triton's interpreter (``TRITON_INTERPRET=1``), to find mistakes in the
benchmark without a GPU.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from momentnorm import use_backend
from momentnorm.core.backends import triton as backend

from . import accuracy_bound, accuracy_report, networks
from .gpu_calls import Machine, Right, accuracies, rights
from .gpu_times import Small, Timed, Trained, smalls, times, trained

HEADER = """\
# The GPU backend, measured

Written by `python -m benchmarks.gpu` on {environment}.

Times are medians between CUDA events. 256 MB are written between two calls, so that their data is
not in the L2 cache. Networks and graphs run without these writes.
"""


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)) + "\n"


def of_rights(rows: list[Right]) -> str:
    bad = [row for row in rows if not row.ok]
    text = f"## Right\n\n{len(rows)} calls against float64, {len(bad)} of them wrong.\n\n"
    worst = {
        dtype: [row for row in rows if row.dtype == dtype] for dtype in {row.dtype for row in rows}
    }
    lines = [
        [dtype, *(f"{max(getattr(row, of) for row in group):.2f}" for of in ("y", "dx"))]
        for dtype, group in sorted(worst.items())
    ]
    text += table(["largest errors, in epsilons", "y", "dx"], lines)
    return text + "".join(f"\nWrong: {row}" for row in bad)


def of_accuracies(rows: list[accuracy_bound.Row]) -> str:
    lines = []
    for key, group in accuracy_report.grouped(rows, "dtype", "ratio", "result").items():
        ours, theirs, share = (
            max(getattr(r, of) for r in group) for of in ("ours", "torch", "share")
        )
        dtype, ratio, result = key
        lines.append([dtype, f"{ratio:g}", result, f"{ours:.2f}", f"{theirs:.3g}", f"{share:.2f}"])
    head = ["dtype", "mean / std", "result", "ours (eps)", "torch (eps)", "share of the bound"]
    return "## Accuracy\n\nThe bound is that of docs/accuracy.md.\n\n" + table(head, lines)


def _micro(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.1f}"


def of_times(rows: list[Timed]) -> str:
    lines = []
    for row in rows:
        compiled = [
            "-" if theirs is None else f"{theirs / ours:.2f}x"
            for ours, theirs in (
                (row.forward, row.compiled_forward),
                (row.training, row.compiled_training),
            )
        ]
        of_call = [row.call, row.shape, row.dtype, row.layout, _micro(row.copy)]
        of_forward = [_micro(row.forward), f"{row.forward / row.copy:.2f}"]
        of_forward += [f"{row.traffic / row.forward:.0f}"]
        of_forward += [f"{row.torch_forward / row.forward:.2f}x", compiled[0]]
        of_training = [_micro(row.training), f"{row.torch_training / row.training:.2f}x"]
        lines.append([*of_call, *of_forward, *of_training, compiled[1]])
    head = ["call", "input", "dtype", "layout", "copy (us)", "forward (us)", "/ copy", "GB/s"]
    head += ["than torch", "than compiled", "training (us)", "than torch", "than compiled"]
    return "## Times\n\n" + table(head, lines)


def of_smalls(rows: list[Small]) -> str:
    lines = [
        [row.call, *map(_micro, (row.ours, row.torch, row.ours_graph, row.torch_graph))]
        for row in rows
    ]
    head = ["InstanceNorm 1x8x4x4", "ours (us)", "torch (us)", "ours, graph", "torch, graph"]
    return "## Launching\n\nTime on the host; in a CUDA graph, on the GPU.\n\n" + table(head, lines)


def of_trained(rows: list[Trained]) -> str:
    lines = []
    for row in rows:
        milliseconds = [f"{getattr(row, norm) * 1e3:.2f}" for norm in networks.NORMS]
        faster = [f"{row.torch / row.ours:.2f}x", f"{row.torch / row.fused:.2f}x"]
        lines.append([row.network, row.layout, *milliseconds, *faster])
    head = ["network", "layout", *(f"{norm} (ms)" for norm in networks.NORMS)]
    return "## Training steps\n\n" + table([*head, "ours, faster", "fused, faster"], lines)


PARTS: dict[str, tuple[Callable[[Machine], Iterator[Any]], Callable[[list[Any]], str]]] = {
    "right": (rights, of_rights),
    "small": (smalls, of_smalls),
    "times": (times, of_times),
    "networks": (trained, of_trained),
    "accuracy": (accuracies, of_accuracies),
}

NOT_MEASURED = """\
# The GPU backend: not measured

This machine has no GPU (torch {torch}). On a machine with a GPU, `python -m benchmarks.gpu FOLDER`
measures:

| what | result |
|---|---|
| right, against float64 | not measured |
| launching | not measured |
| times | not measured |
| training steps | not measured |
| accuracy | not measured |
"""


def measure(machine: Machine, folder: Path, only: Sequence[str]) -> str:
    text = HEADER.format(environment=environment(machine))
    for name in only:
        rows_of, told = PARTS[name]
        begin, rows = time.monotonic(), []
        for row in rows_of(machine):
            print(row, flush=True)
            rows.append(row)
        if rows:
            with (folder / f"gpu-{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(rows[0])])
                writer.writeheader()
                writer.writerows(map(dataclasses.asdict, rows))
            left_out = " Cut short: no time was left." if machine.late else ""
            text += f"\n{told(rows)}\nIn {time.monotonic() - begin:.0f} s.{left_out}\n"
        else:
            text += f"\n## {name}\n\nNot measured: no time was left.\n"
        (folder / "gpu.md").write_text(text)  # so that a later failure loses nothing
    return text


def environment(machine: Machine) -> str:
    import triton

    where = "the CPU, interpreted, as a trial: the times mean nothing"
    if machine.device.type == "cuda":
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        if torch.version.hip:
            where = f"{torch.cuda.get_device_name()}, ROCm {torch.version.hip}"
    return f"{where}; torch {torch.__version__}, Triton {triton.__version__}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for gpu.md and the CSV files")
    parser.add_argument(
        "--smoke", action="store_true", help="run tiny inputs under the interpreter"
    )
    parser.add_argument(
        "--seconds", type=float, default=440.0, help="start no measurement after this time"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.smoke and not backend.INTERPRETED:
        parser.error("--smoke needs the interpreter: set TRITON_INTERPRET=1")
    if not options.smoke and not torch.cuda.is_available():
        text = NOT_MEASURED.format(torch=torch.__version__)
        (options.folder / "gpu.md").write_text(text)
        print(text)
        return
    device = torch.device("cpu" if options.smoke else "cuda")
    machine = Machine(device, options.smoke, time.monotonic() + options.seconds)
    with use_backend("triton"):
        print(measure(machine, options.folder, options.only))


if __name__ == "__main__":
    main()
