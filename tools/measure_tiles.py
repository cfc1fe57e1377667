"""Measures time and peak memory of momentnorm.tiled, each case in a process of its own.

    python tools/measure_tiles.py style store 16      # 16 megapixels through the style network
    python tools/measure_tiles.py volume store 256    # 256^3 voxels through a 3D U-Net
    python tools/measure_tiles.py --table             # docs/tiles.csv as a table

A case replaces its row in docs/tiles.csv. Memory is what the operating system counts: the largest
resident set during the run, less that before it. Images lie on disk, so they do not count. Time is
the processor's for one thread, which a busy machine changes least.
"""

from __future__ import annotations

import argparse
import csv
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from momentnorm.stylize.network import Architecture, Network
from momentnorm.tiles import File, tiled

CSV = Path(__file__).parent.parent / "docs" / "tiles.csv"
COLUMNS = [
    *("network", "schedule", "size", "tile", "threads"),
    *("seconds", "memory", "plan", "disk"),
]
TILE = {"style": 512, "volume": 64}


class UNet3d(nn.Module):
    """Three levels, a skip connection at each of two, InstanceNorm behind each convolution."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv3d(inputs, outputs, 3, padding=1),
                nn.InstanceNorm3d(outputs, affine=True),
                nn.LeakyReLU(0.01),
            )

        self.pool = nn.MaxPool3d(2)
        self.down1, self.down2 = block(1, width), block(width, 2 * width)
        self.bottom = block(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose3d(4 * width, 2 * width, 2, 2)
        self.up1 = nn.ConvTranspose3d(2 * width, width, 2, 2)
        self.merge2, self.merge1 = block(4 * width, 2 * width), block(2 * width, width)
        self.last = nn.Conv3d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        y = self.merge2(torch.cat([two, self.up2(self.bottom(self.pool(two)))], 1))
        result: Tensor = self.last(self.merge1(torch.cat([one, self.up1(y)], 1)))
        return result


def shape_of(network: str, size: int) -> tuple[int, ...]:
    """Megapixels of a square image, or the side of a volume."""
    if network == "volume":
        return 1, size, size, size
    side = round((size * 1e6) ** 0.5 / 4) * 4
    return 3, side, side


def make_source(path: Path, shape: tuple[int, ...]) -> None:
    """A file of random bytes, written in pieces."""
    numbers = np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    for start in range(0, shape[1], 64):
        piece = array[:, start : start + 64]
        piece[:] = numbers.integers(0, 256, piece.shape, np.uint8)
    array.flush()


def status(name: str) -> int:
    """A size from Linux's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def measure(network: str, schedule: str, size: int, folder: Path) -> dict[str, object]:
    """One case, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # threads that wait for each other would count
    model = (Network(Architecture()) if network == "style" else UNet3d()).eval()
    shape, tile = shape_of(network, size), TILE[network]
    source = File(folder / "in.npy", scale=1 / 255)
    run = tiled(model, tile=tile, store=schedule == "store")
    plan = run.plan((1, *shape), estimate=False)
    with torch.no_grad():  # what torch loads when it is first needed
        model(torch.zeros(1, shape[0], *(32 for _ in shape[1:])))
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set starts anew
    start = time.process_time()
    if schedule == "untiled":
        image = np.load(folder / "in.npy")
        with torch.no_grad():
            model(torch.from_numpy(image)[None].float() / 255)
    else:
        run(source, File(folder / "out.npy", dtype="uint8", scale=255), resume=folder / "run")
    seconds = time.process_time() - start
    peak = status("VmHWM") - before
    return {
        "network": network,
        "schedule": schedule,
        "size": size,
        "tile": "" if schedule == "untiled" else tile,
        "threads": torch.get_num_threads(),
        "seconds": f"{seconds:.1f}",
        "memory": round(peak / 1e6),
        "plan": round((plan.untiled_memory if schedule == "untiled" else plan.memory) / 1e6),
        "disk": 0 if schedule == "untiled" else round(plan.disk / 1e6),
    }


def table() -> str:
    """docs/tiles.csv as Markdown."""
    with open(CSV, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| network | size | schedule | threads | seconds | peak memory, MB | plan, MB | disk, MB |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        size = f"{row['size']} MP" if row["network"] == "style" else f"{row['size']}^3"
        lines.append(
            f"| {row['network']} | {size} | {row['schedule']} | {row['threads']} "
            f"| {row['seconds']} | {row['memory']} | {row['plan']} | {row['disk']} |"
        )
    return "\n".join(lines)


def replace_row(row: dict[str, object]) -> None:
    """Writes a case into docs/tiles.csv, in place of its old row."""
    rows: list[dict[str, object]] = []
    if CSV.exists():
        with open(CSV, encoding="utf-8") as file:
            rows = [dict(one) for one in csv.DictReader(file)]

    def key(one: dict[str, object]) -> tuple[str, int, str]:
        return str(one["network"]), int(str(one["size"])), str(one["schedule"])

    rows = sorted([one for one in rows if key(one) != key(row)] + [row], key=key)
    with open(CSV, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", choices=["style", "volume"])
    parser.add_argument("schedule", nargs="?", choices=["store", "recompute", "untiled"])
    parser.add_argument("size", nargs="?", type=int, help="megapixels, or the side of a volume")
    parser.add_argument("--table", action="store_true", help="print docs/tiles.csv as a table")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(table())
    elif options.size is None:
        parser.error("name a network, a schedule and a size, or --table")
    elif options.folder is not None:
        row = measure(options.network, options.schedule, options.size, options.folder)
        print(row)
        replace_row(row)
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_source(Path(folder) / "in.npy", shape_of(options.network, options.size))
            command = [sys.executable, *sys.argv, "--folder", folder]
            sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
