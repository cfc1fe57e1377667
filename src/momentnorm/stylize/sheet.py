"""Sheets: the list of styles, and pictures with captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .apply import stylize
from .artworks import draw
from .errors import StylizeError
from .images import Photo, read_photo, to_image, to_tensor, write_photo
from .objective import scaled
from .styles import bundled_styles, load_style
from .trunk_files import FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CELL = 224
#: Cells in a row of the sheet of styles; a style takes two.
COLUMNS = 8
CAPTION = 24


def print_styles() -> None:
    """Print a table of the bundled styles."""
    table = Table(box=None, pad_edge=False)
    for heading in ("style", "file", "learned from"):
        table.add_column(heading, justify="right" if heading == "file" else "left")
    for name in bundled_styles():
        kilobytes = (FOLDER / f"{name}.safetensors").stat().st_size / 1000
        table.add_row(name, f"{kilobytes:.0f} kB", load_style(name).picture)
    Console(width=None if Console().is_terminal else 120).print(table)


def style_sheet(photograph: Tensor, path: Path) -> None:
    """Save a table of a photograph, (3, H, W), in every bundled style, beside the style picture.

    Raises:
        StylizeError: a place that cannot be written.
    """
    seen = scaled(photograph, 2 * CELL)
    cells: list[tuple[str, Tensor]] = []
    for name in bundled_styles():
        cells.append((f"{name}: picture", to_tensor(draw(name, 2 * CELL))))
        cells.append((name, stylize(seen, load_style(name))))
    rows = [cells[first : first + COLUMNS] for first in range(0, len(cells), COLUMNS)]
    save_sheet(rows, path, CELL)


def example() -> Tensor:
    """Photograph for a sheet, (3, H, W)."""
    try:
        return read_photo("skimage:astronaut").rgb
    except StylizeError:  # without scikit-image, the small copy that comes with the package
        return read_photo(FOLDER / "astronaut-small.jpg").rgb


def save_sheet(rows: Sequence[Sequence[tuple[str, Tensor]]], path: Path, cell: int = CELL) -> None:
    """Save rows of captioned pictures, (3, H, W) in [0, 1] each, scaled into square cells."""
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
