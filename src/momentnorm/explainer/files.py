"""Files: inputs from arrays, lists of numbers, tables and images."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor

from ..support.files import open_regular
from ..support.packages import require
from ..support.printable import one_line
from .errors import ExplainError

if TYPE_CHECKING:
    from collections.abc import Iterator

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

KNOWN = (".npy", ".json", ".csv", *_IMAGES)

#: UTF-8, with or without the byte order mark that spreadsheets write.
_ENCODING = "utf-8-sig"


def read(path: Path) -> Tensor:
    """Read the numbers of a file as a tensor.

    ``.npy`` and ``.json`` (nested lists) hold a feature map (N, C, ...). ``.csv`` holds one plane,
    with a row of numbers in each line. An image is one sample of 1 or 3 channels with values from 0
    to 1, turned upright: values of 8 bits are divided by 255, grey values of 16 bits by 65535.

    Raises:
        ExplainError: no such file, an unknown suffix, a file that is damaged, too large or without
            numbers, or an image whose mode has no agreed range of values.
    """
    suffix = path.suffix.lower()
    if suffix not in KNOWN:
        raise ExplainError(f"{path}: an input is one of {', '.join(KNOWN)}, not {suffix!r}")
    with _explained(path):
        if suffix in _IMAGES:
            return _image(path)
        with open_regular(path) as file:
            return _READERS[suffix](file)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors of opening and decoding into an :class:`ExplainError` of one line."""
    try:
        yield
    except ExplainError:
        raise
    except FileNotFoundError:
        raise ExplainError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ExplainError(f"{path}: this is a folder; a file is needed here") from None
    except MemoryError as error:
        raise ExplainError(f"{path}: too large for this machine's memory") from error
    except Exception as error:
        # The decoders raise OSError, SyntaxError, EOFError, RecursionError and more on bad bytes.
        text = getattr(error, "strerror", None) or one_line(error)
        raise ExplainError(
            f"{path}: not read as a {path.suffix.lower()} file of numbers: {text[:200]}"
        ) from error


def _array(file: BinaryIO) -> Tensor:
    require("numpy", "a .npy file")
    import numpy as np

    values = torch.from_numpy(np.load(file, allow_pickle=False))
    return values if values.is_floating_point() or values.is_complex() else values.float()


def _lists(file: BinaryIO) -> Tensor:
    return torch.tensor(json.loads(file.read().decode(_ENCODING)), dtype=torch.float32)


def _table(file: BinaryIO) -> Tensor:
    lines = io.StringIO(file.read().decode(_ENCODING), newline="")
    rows = [[float(cell) for cell in row] for row in csv.reader(lines) if row]
    return torch.tensor(rows, dtype=torch.float32)[None, None]


_READERS = {".npy": _array, ".json": _lists, ".csv": _table}


def _image(path: Path) -> Tensor:
    require("PIL", "an image")
    require("numpy", "an image")
    import numpy as np
    from PIL import ImageOps

    from ..support.images import ImageError, opened_image

    try:
        with opened_image(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("I", "F"):
                raise ImageError(
                    f"an image of mode {image.mode} has no agreed range of values; save the "
                    "numbers as .npy"
                )
            if image.mode.startswith("I;16"):
                pixels = np.asarray(image).astype(np.float32) / 65535
            else:
                image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
                pixels = np.asarray(image, dtype=np.float32) / 255
    except ImageError as error:
        raise ExplainError(error) from error
    values = torch.from_numpy(np.atleast_3d(pixels))  # (H, W, C)
    return values.permute(2, 0, 1).unsqueeze(0).contiguous()
