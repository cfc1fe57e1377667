"""``.npy`` files that are read and written region by region."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .errors import TilesError
from .store import allocate


class NpyFile:
    """An array in a ``.npy`` file. Its memory map lives as long as one read or write does, so that
    what was read does not count as this process's memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        array = self._array("r")
        self.shape: tuple[int, ...] = array.shape
        self.dtype: Any = array.dtype

    def _array(self, mode: Any) -> Any:
        try:
            return np.load(self._path, mmap_mode=mode)
        except (ValueError, OSError, EOFError) as error:
            raise TilesError(f"{self._path} is damaged or is no .npy file: {error}") from error

    def __getitem__(self, key: Any) -> Any:
        return np.array(self._array("r")[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._array("r+")[key] = value


def make(path: Path, shape: tuple[int, ...], dtype: Any, tile: tuple[int, ...]) -> None:
    """A file of zeros that has its space on the disk."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        start = file.tell()
        file.flush()
        allocate(file.fileno(), start + math.prod(shape) * dtype.itemsize)
