"""Sources and sinks: tensors, arrays that can be sliced, and files."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import TilesError
from .regions import Region, text


@dataclass(frozen=True)
class File:
    """A file as a source or a sink: ``.npy``, or ``.tif`` and ``.tiff`` for images.

    A ``.npy`` file holds (N, C, \\*S) or (C, \\*S), a TIFF (H, W) or (H, W, C). A sink is made with
    the output's shape, a TIFF as a tiled BigTIFF without compression.

    Args:
        path: where the file is.
        dtype: of a sink, such as ``"uint8"``; the output's own without it. Values are rounded and
            limited to what an integer dtype holds.
        scale: what the values are multiplied by, when they are read and when they are written.

    >>> source = File("slide.tif", scale=1 / 255)  # bytes become 0 to 1
    >>> sink = File("out.tif", dtype="uint8", scale=255)  # and back
    """

    path: str | os.PathLike[str]
    dtype: str | None = None
    scale: float = 1.0


class Sliceable(Protocol):
    """Interface of NumPy arrays, memory maps, zarr arrays and HDF5 data sets."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, key: Any) -> Any: ...


class Source:
    """An image (N, C, *S) that is read region by region."""

    def __init__(self, image: Any, axes: int) -> None:
        self._scale = 1.0
        if isinstance(image, (str, os.PathLike)):
            image = File(image)
        if isinstance(image, File):
            self._scale = image.scale
            image = _opened(Path(image.path))
        if not hasattr(image, "shape") or not hasattr(image, "__getitem__"):
            raise TilesError(
                f"a source is a tensor, an array or a path, not {type(image).__name__}"
            )
        self._array = image
        self._lacks_samples = _lacks_samples(tuple(image.shape), axes, "source")
        shape = tuple(int(n) for n in image.shape)
        self.shape = (1, *shape) if self._lacks_samples else shape
        if 0 in self.shape:
            raise TilesError(f"the source is empty: its shape is {shape}")

    def read(self, region: Region, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A region of all samples and channels."""
        try:
            value = self._array[_key(region, self._lacks_samples)]
            if not isinstance(value, Tensor):
                value = np.array(value)
                value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=False))
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise TilesError(f"cannot read {text(region)} of the source: {_line(error)}") from error
        wanted = tuple(b - a for a, b in region)
        if tuple(value.shape[-len(wanted) :]) != wanted:
            raise TilesError(
                f"the source gave {tuple(value.shape)} for {text(region)}: it is shorter than its "
                f"shape {self.shape} says"
            )
        value = value[None] if self._lacks_samples else value
        tensor: Tensor = value.to(device=device, dtype=dtype)
        return tensor * self._scale if self._scale != 1 else tensor


class Sink:
    """An output (N, C, *S) that is written region by region."""

    def __init__(
        self, out: Any, shape: tuple[int, ...], dtype: torch.dtype, tile: tuple[int, ...]
    ) -> None:
        self._scale = 1.0
        if isinstance(out, (str, os.PathLike)):
            out = File(out)
        if isinstance(out, File):
            self._scale = out.scale
            out = _made(out, shape, dtype, tile)
        if out is None:
            out = torch.zeros(shape, dtype=dtype)
        self.array = out
        self._is_tensor = isinstance(out, Tensor)
        axes = len(shape) - 2
        self._lacks_samples = _lacks_samples(tuple(out.shape), axes, "sink")
        found = (1, *out.shape) if self._lacks_samples else tuple(out.shape)
        if found != tuple(shape):
            raise TilesError(f"the sink's shape is {tuple(out.shape)}, the output's is {shape}")
        if not hasattr(out, "__setitem__"):
            raise TilesError(f"a sink can be written by slices; {type(out).__name__} cannot")
        self._dtype: Any = out.dtype if self._is_tensor else np.dtype(out.dtype)

    def write(self, region: Region, value: Tensor) -> int:
        """Writes a region, and returns the checksum of what was written."""
        value = value * self._scale if self._scale != 1 else value
        value = value[0] if self._lacks_samples else value
        data = self._converted(value)
        try:
            self.array[_key(region, self._lacks_samples)] = data
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise TilesError(
                f"cannot write {text(region)} of the output: {_line(error)}"
            ) from error
        return _checksum(data)

    def checksum(self, region: Region) -> int | None:
        """The checksum of what is in the sink, or None if it cannot be read."""
        try:
            return _checksum(self.array[_key(region, self._lacks_samples)])
        except Exception:  # whatever a damaged file raises: the region is written again
            return None

    def _converted(self, value: Tensor) -> Any:
        if self._is_tensor:
            if not self._dtype.is_floating_point:
                limits = torch.iinfo(self._dtype)
                value = value.round().clamp(limits.min, limits.max)
            return value.to(device=self.array.device, dtype=self._dtype)
        value = value.cpu()
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if np.issubdtype(self._dtype, np.integer):
            limit = np.iinfo(self._dtype)
            array = np.clip(np.rint(array), limit.min, limit.max)
        return np.ascontiguousarray(array.astype(self._dtype))


def _checksum(data: Any) -> int:
    if isinstance(data, Tensor):
        data = data.detach().cpu().contiguous().view(torch.uint8).numpy()
    contiguous: Any = np.ascontiguousarray(data)
    return zlib.crc32(contiguous.view(np.uint8))


def _key(region: Region, lacks_samples: bool) -> tuple[slice, ...]:
    spatial = tuple(slice(start, stop) for start, stop in region)
    return (*([slice(None)] * (1 if lacks_samples else 2)), *spatial)


def _lacks_samples(shape: tuple[int, ...], axes: int, what: str) -> bool:
    if len(shape) not in (1 + axes, 2 + axes):
        raise TilesError(
            f"the model works on {axes} spatial axes, so a {what} has shape (C, *S) or (N, C, *S) "
            f"with {1 + axes} or {2 + axes} dimensions, not {shape}"
        )
    return len(shape) == 1 + axes


def _line(error: Exception) -> str:
    if isinstance(error, TilesError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _opened(path: Path) -> Sliceable:
    if not path.exists():
        raise TilesError(f"there is no file {path}")
    return _format(path).opened(path)


def path_of(out: Any) -> Path | None:
    """The path of a sink that is a file."""
    if isinstance(out, File):
        out = out.path
    return Path(out).absolute() if isinstance(out, (str, os.PathLike)) else None


def _made(
    file: File, shape: tuple[int, ...], dtype: torch.dtype, tile: tuple[int, ...]
) -> Sliceable:
    path = Path(file.path)
    numpy_dtype = np.dtype(file.dtype or str(dtype).removeprefix("torch."))
    form = _format(path)
    if not path.exists():
        temporary = path.with_name(f".{path.name}.part")
        try:
            form.make(temporary, shape, numpy_dtype, tile)
            os.replace(temporary, path)
        except OSError as error:
            raise TilesError(f"cannot make {path}: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)
    return form.opened(path)


@dataclass(frozen=True)
class Format:
    """How files of a kind are opened and made."""

    opened: Callable[[Path], Sliceable]
    make: Callable[[Path, tuple[int, ...], Any, tuple[int, ...]], None]


def _format(path: Path) -> Format:
    from . import npy

    if path.suffix == ".npy":
        return Format(npy.NpyFile, npy.make)
    if path.suffix.lower() in (".tif", ".tiff"):
        from . import tiff

        return Format(tiff.TiffFile, tiff.make)
    raise TilesError(
        f"{path}: files are .npy, .tif or .tiff. Open others yourself and pass the array, such as "
        "zarr.open(path) or h5py.File(path)[name]. Convert a JPEG or PNG to a tiled TIFF first: "
        f"vips copy {path.name} {path.stem}.tif[tile,bigtiff]"
    )
