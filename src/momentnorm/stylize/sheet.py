"""The list of styles, and sheets of pictures with captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .apply import stylize
from .artworks import ARTWORKS, draw
from .errors import StylizeError
from .images import Photo, check_output, read_photo, to_image, to_tensor, write_photo
from .styles import FOLDER, bundled_styles, load_style

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CELL = 256
CAPTION = 24


def print_styles() -> None:
    """A table of the bundled styles."""
    table = Table(box=None, pad_edge=False)
    for heading in ("style", "norm", "parameters", "file", "trained from"):
        table.add_column(heading, justify="right" if heading in ("parameters", "file") else "left")
    for name in bundled_styles():
        style = load_style(name)
        kilobytes = (FOLDER / f"{name}.safetensors").stat().st_size / 1000
        table.add_row(
            name,
            style.network.architecture.norm,
            f"{style.parameters:,}",
            f"{kilobytes:.0f} kB",
            style.picture,
        )
    Console(width=None if Console().is_terminal else 120).print(table)


def style_sheet(path: Path) -> None:
    """Each style's picture, and a photograph in that style, as an image file."""
    check_output(path)
    photograph = _example()
    blank = torch.ones(3, 1, 1)
    drawn: list[tuple[str, Tensor]] = [("", blank)]
    painted: list[tuple[str, Tensor]] = [("photograph", photograph)]
    for name in bundled_styles():
        is_drawn = name in ARTWORKS
        drawn.append((name, to_tensor(draw(name, 2 * CELL))) if is_drawn else ("", blank))
        painted.append((name, stylize(photograph, load_style(name))))
    save_sheet([drawn, painted], path)


def _example() -> Tensor:
    try:
        return read_photo("skimage:astronaut").rgb
    except StylizeError:  # no scikit-image: the thumbnail of it that comes with the package
        return read_photo(FOLDER / "astronaut-small.jpg").rgb


def save_sheet(rows: Sequence[Sequence[tuple[str, Tensor]]], path: Path, cell: int = CELL) -> None:
    """Rows of captioned pictures, (3, H, W) in [0, 1] each, shrunk into square cells."""
    columns = max(len(row) for row in rows)
    height = cell + CAPTION
    sheet = Image.new("RGB", (columns * cell, len(rows) * height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for y, row in enumerate(rows):
        for x, (caption, tensor) in enumerate(row):
            picture = to_image(tensor)
            picture.thumbnail((cell - 4, cell - 4), Image.Resampling.LANCZOS)
            sheet.paste(picture, (x * cell + 2, y * height + CAPTION))
            pen.text((x * cell + 4, y * height + 6), caption, fill="black", font=font)
    write_photo(Photo(to_tensor(np.asarray(sheet))), path)
