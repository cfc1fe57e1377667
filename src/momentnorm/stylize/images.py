"""Image files: photographs read and pictures written, in all common formats."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps
from torch import Tensor

from ..support import files
from ..support.images import ImageError, opened_image
from ..support.printable import one_line
from .errors import StylizeError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Suffix of an output file: its format, whether it holds transparency, and how to write it.
WRITABLE: dict[str, tuple[str, bool, dict[str, object]]] = {
    ".jpg": ("JPEG", False, {"quality": 93, "subsampling": 0}),
    ".jpeg": ("JPEG", False, {"quality": 93, "subsampling": 0}),
    ".png": ("PNG", True, {}),
    ".webp": ("WEBP", True, {"quality": 92}),
    ".tif": ("TIFF", True, {}),
    ".tiff": ("TIFF", True, {}),
    ".bmp": ("BMP", False, {}),
}

#: Suffixes taken from a folder.
PHOTO_SUFFIXES = (*WRITABLE, ".gif", ".ppm", ".pgm", ".avif")

#: Photographs in the scikit-image wheel, with the file's name.
SKIMAGE_PHOTOS = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "retina": "retina.jpg",
    "ihc": "ihc.png",
    "camera": "camera.png",
    "brick": "brick.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "coins": "coins.png",
    "moon": "moon.png",
}


@dataclass
class Photo:
    """A decoded photograph, upright."""

    rgb: Tensor  # (3, H, W), float32 in [0, 1]
    alpha: Tensor | None = None  # (1, H, W), float32 in [0, 1]
    icc_profile: bytes | None = None
    exif: bytes = field(default=b"", repr=False)


def photo_path(name: str) -> Path:
    """File that a PHOTO argument names; ``skimage:astronaut`` is one of scikit-image's."""
    if not name.startswith("skimage:"):
        return Path(name)
    wanted = name.removeprefix("skimage:")
    if wanted not in SKIMAGE_PHOTOS:
        raise StylizeError(f"{name}: no such photograph; known are {', '.join(SKIMAGE_PHOTOS)}")
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise StylizeError(f"{name}: scikit-image is not installed: pip install scikit-image")
    return Path(package.origin).parent / "data" / SKIMAGE_PHOTOS[wanted]


def photos_in(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name, without hidden ones (macOS's ``._a.jpg``)."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)
    return sorted(file for file in files if file.is_file() and not file.name.startswith("."))


def read_photo(path: str | Path, size: int | None = None) -> Photo:
    """Decode an image file: apply its orientation, make it RGB, take its transparency apart.

    Args:
        path: a file, or ``skimage:NAME``.
        size: scale the longer side to this many pixels.

    Raises:
        StylizeError: no such file, no image, a damaged image or an enormous one.
    """
    try:
        with opened_image(photo_path(str(path)), str(path)) as image:
            return _decode(image, size)
    except ImageError as error:
        raise StylizeError(error) from error


def _decode(image: Image.Image, size: int | None) -> Photo:
    exif = _kept_exif(image)
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    image, profile = _to_rgb(image, profile)
    if size is not None and size != max(image.size):
        factor = size / max(image.size)
        scaled = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(scaled, Image.Resampling.LANCZOS)
    pixels = to_tensor(np.asarray(image))
    alpha = pixels[3:] if len(pixels) == 4 else None
    return Photo(pixels[:3].contiguous(), alpha, profile, exif)


def _to_rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """Image in mode RGB or RGBA, and the colour profile that still describes it."""
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image).astype(np.float64) / 65535 * 255
        image = Image.fromarray(np.rint(np.clip(grey, 0, 255)).astype(np.uint8))
    if image.mode == "F":
        raise ImageError(
            "a floating-point image has no agreed range of values; convert it to 8 or 16 bits"
        )
    space = bytes(profile[16:20]) if profile else b""
    if image.mode == "CMYK" and profile and space == b"CMYK":
        # A profile that is damaged, or of a kind unknown to Pillow: the plain formula, below.
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                image = converted
    kept = profile if space == b"RGB " else None
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return (image if image.mode == mode else image.convert(mode)), kept


#: EXIF that describes the photograph and not the file that it was in. No orientation, which has
#: been applied; no size, which may change; no thumbnail and no maker's note, which show the old.
_KEPT_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
_DROPPED_SUBTAGS = (
    ExifTags.Base.MakerNote,
    ExifTags.Base.ExifImageWidth,
    ExifTags.Base.ExifImageHeight,
    ExifTags.Base.ExifInteroperabilityOffset,
)


def _kept_exif(image: Image.Image) -> bytes:
    # Cameras write tags that break the specification; a photograph is worth more than its tags.
    with contextlib.suppress(Exception):
        found, kept = image.getexif(), Image.Exif()
        for tag in _KEPT_TAGS:
            if tag in found:
                kept[tag] = found[tag]
        for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            values = {
                tag: value
                for tag, value in found.get_ifd(part).items()
                if tag not in _DROPPED_SUBTAGS
            }
            if values:
                kept[part] = values
        return kept.tobytes() if len(kept) else b""
    return b""


def to_tensor(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """Tensor, (C, H, W) in [0, 1], from bytes, (H, W, C)."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div_(255)


def to_image(tensor: Tensor) -> Image.Image:
    """Image of 8 bits a channel from (C, H, W) in [0, 1], C 3 or 4."""
    pixels = (tensor * 255).round_().clamp_(0, 255).byte().permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy()))


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it, if they do not exist.

    Raises:
        StylizeError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StylizeError(
            f"{folder}: cannot be created ({error.strerror}); choose another place"
        ) from error


def check_folder_of(path: Path) -> None:
    """Raise unless the folder in which this file will be is there."""
    if not path.parent.is_dir():
        raise StylizeError(f"{path}: its folder does not exist; create it first")


def check_output(path: Path) -> None:
    """Raise unless the name's suffix is a format that can be written."""
    if path.suffix.lower() not in WRITABLE:
        suffix = f"the suffix {path.suffix!r}" if path.suffix else "a name without a suffix"
        raise StylizeError(
            f"{path}: no image format goes with {suffix}; use one of {', '.join(WRITABLE)}"
        )


def write_photo(photo: Photo, path: str | Path) -> None:
    """Encode by the name's suffix. Afterwards the file is complete, or the old one is unchanged.

    A format without transparency gets the picture on white.

    Raises:
        StylizeError: an unknown suffix, or a place that cannot be written.
    """
    path = Path(path)
    check_output(path)
    form, transparent, options = WRITABLE[path.suffix.lower()]
    rgb, alpha = photo.rgb, photo.alpha
    if alpha is not None:
        rgb = torch.cat([rgb, alpha]) if transparent else rgb * alpha + (1 - alpha)
    image = to_image(rgb)
    metadata: dict[str, object] = {}
    if form != "BMP":
        metadata = {"icc_profile": photo.icc_profile, "exif": photo.exif}
    metadata = {key: value for key, value in metadata.items() if value}
    with whole_file(path) as file:
        try:
            image.save(file, format=form, **options, **metadata)
        except ValueError as error:
            raise StylizeError(
                f"{path}: {form} cannot hold it ({one_line(error)}); use .png or .tif"
            ) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write, which takes its name when it is complete.

    Raises:
        StylizeError: the folder is not there or cannot be written, or the disk is full.
    """
    try:
        with files.whole_file(path) as file:
            yield file
    except OSError as error:
        check_folder_of(path)
        raise StylizeError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error
