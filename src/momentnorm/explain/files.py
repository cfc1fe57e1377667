"""Inputs from files: arrays, lists of numbers, a table, an image."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from torch import Tensor

from .needs import needed
from .trace import ExplainError

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

KNOWN = (".npy", ".json", ".csv", *_IMAGES)


def read(path: Path) -> Tensor:
    """The numbers of a file as a tensor.

    ``.npy`` and ``.json`` (nested lists) hold a feature map (N, C, ...) as it is. ``.csv`` holds
    one plane, a row a line. An image is one sample of 1 or 3 channels, from 0 to 1.

    Raises:
        ExplainError: no such file; another kind of file; one that does not hold numbers.
    """
    suffix = path.suffix.lower()
    if suffix not in KNOWN:
        raise ExplainError(f"{path}: an input is one of {', '.join(KNOWN)}, not {suffix!r}")
    if not path.is_file():
        raise ExplainError(f"{path}: there is no such file")
    try:
        if suffix == ".npy":
            return _array(path)
        if suffix == ".json":
            return torch.tensor(json.loads(path.read_text()), dtype=torch.float32)
        if suffix == ".csv":
            with path.open(newline="") as file:
                rows = [[float(cell) for cell in row] for row in csv.reader(file) if row]
            return torch.tensor(rows, dtype=torch.float32)[None, None]
        return _image(path)
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, ExplainError):
            raise
        text = " ".join(str(error).split())
        raise ExplainError(f"{path}: this is no {suffix} file of numbers: {text}") from None


def _array(path: Path) -> Tensor:
    needed("numpy", "a .npy file")
    import numpy as np

    values = torch.from_numpy(np.load(path, allow_pickle=False))
    return values if values.is_floating_point() or values.is_complex() else values.float()


def _image(path: Path) -> Tensor:
    needed("PIL", "an image")
    needed("numpy", "an image")
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        gray = image.mode in ("1", "L", "LA", "I;16", "I", "F")
        pixels = np.asarray(image.convert("L" if gray else "RGB"), dtype=np.float32) / 255
    values = torch.from_numpy(pixels)
    return (values.unsqueeze(2) if gray else values).permute(2, 0, 1).unsqueeze(0).contiguous()
