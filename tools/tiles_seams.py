"""Draws the seams that tiles show where their statistics are wrong: docs/images/tiles-seams.png.

    python tools/tiles_seams.py

One image and one model, five ways: untiled, exact (momentnorm.tiled), with the statistics of a
thumbnail, with the tiles' averaged variances (the variance between tiles is left out), and each
tile by itself. The table, with the signal-to-noise ratio against untiled, is docs/tiles-seams.csv.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from skimage import data
from torch import Tensor, nn

from momentnorm import Moments
from momentnorm.stylize.styles import load_style
from momentnorm.tiles import execute, tiled

DOCS = Path(__file__).parent.parent / "docs"
TILE, SIDE = 256, 1024
#: Part of each output that the picture shows. Four tiles share it.
CROP = (slice(320, 704), slice(64, 448))


def untiled(model: nn.Module, image: Tensor) -> Tensor:
    """The model on the whole image."""
    with torch.no_grad():
        output: Tensor = model(image[None])[0]
    return output


def exact(model: nn.Module, image: Tensor) -> Tensor:
    """Moments of all tiles, merged."""
    output: Tensor = tiled(model, TILE)(image)[0]
    return output


def thumbnail(model: nn.Module, image: Tensor) -> Tensor:
    """The moments of an image of one tile's size, used for the large one."""
    small = F.interpolate(image[None], size=(TILE, TILE), mode="bilinear", antialias=True)
    run = tiled(model, TILE)
    output: Tensor = run(image, moments=run.moments(small))[0]
    return output


def averaged(model: nn.Module, image: Tensor) -> Tensor:
    """Means and variances of the tiles, averaged by their pixels."""

    def merged(parts: list[Moments | None]) -> Moments:
        present = [part for part in parts if part is not None]
        count = sum((part.count for part in present), torch.zeros(()))
        mean = sum(part.mean * (part.count / count) for part in present)
        var = sum(part.var * (part.count / count) for part in present)
        assert isinstance(mean, Tensor)
        assert isinstance(var, Tensor)
        return Moments(count, mean, var)

    with mock.patch.object(execute, "merged", merged):
        return exact(model, image)


def alone(model: nn.Module, image: Tensor) -> Tensor:
    """Each tile as an image of its own."""
    rows = []
    for top in range(0, SIDE, TILE):
        row = [image[:, top : top + TILE, left : left + TILE] for left in range(0, SIDE, TILE)]
        rows.append(torch.cat([untiled(model, tile) for tile in row], 2))
    return torch.cat(rows, 1)


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "untiled": untiled,
    "exact": exact,
    "thumbnail": thumbnail,
    "averaged variance": averaged,
    "each tile alone": alone,
}


def signal_to_noise(found: Tensor, wanted: Tensor) -> float:
    """PSNR in decibels of values in [0, 1]."""
    error = (found.double() - wanted.double()).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


def main() -> None:
    torch.manual_seed(0)
    model = load_style("mosaic").network.eval()
    retina = torch.from_numpy(data.retina()[190 : 190 + SIDE, 190 : 190 + SIDE].copy())
    image = retina.permute(2, 0, 1).float() / 255
    outputs = {name: way(model, image) for name, way in WAYS.items()}
    rows = [
        (name, f"{signal_to_noise(output, outputs['untiled']):.1f}")
        for name, output in outputs.items()
        if name != "untiled"
    ]
    with open(DOCS / "tiles-seams.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("statistics", "psnr"), *rows])
    width = CROP[1].stop - CROP[1].start
    sheet = Image.new("RGB", (width * len(outputs), CROP[0].stop - CROP[0].start + 24), "white")
    draw = ImageDraw.Draw(sheet)
    labels = {name: f"{name}: {psnr} dB" for name, psnr in rows}
    for place, (name, output) in enumerate(outputs.items()):
        pixels = (output[:, CROP[0], CROP[1]].clamp(0, 1) * 255).round().byte()
        sheet.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (place * width, 24))
        draw.text((place * width + 6, 6), labels.get(name, name), fill="black")
    sheet.save(DOCS / "images" / "tiles-seams.png", optimize=True)
    for name, psnr in rows:
        print(f"| {name} | {psnr} |")


if __name__ == "__main__":
    main()
