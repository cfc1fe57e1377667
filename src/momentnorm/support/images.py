"""Images: the reader of every command that takes a picture."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from .errors import UserError
from .files import open_regular
from .printable import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Formats that are read. For some others, such as EPS, Pillow would start another program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")


class ImageError(UserError):
    """File that is no usable picture. The message is one line that names the fix."""


@contextlib.contextmanager
def opened_image(path: Path, name: str | None = None) -> Iterator[Image.Image]:
    """Open an image file, and give the decoded picture.

    An error inside the ``with`` block is raised as :class:`ImageError` too, since some damage is
    noticed only when the picture is converted.

    Args:
        path: path of a regular file.
        name: its name in messages; default the path.

    Raises:
        ImageError: no such file, not an image of :data:`FORMATS`, damaged, or too large.
    """
    with _explained(path if name is None else name), warnings.catch_warnings():
        # Pillow warns of large images. Those of twice that size are still an error.
        warnings.simplefilter("ignore")
        Image.init()
        known = [form for form in FORMATS if form in Image.OPEN]  # WebP or AVIF may be missing
        with open_regular(path) as file, Image.open(file, formats=known) as image:
            image.load()
            yield image


@contextlib.contextmanager
def _explained(name: Path | str) -> Iterator[None]:
    """Raise errors of opening and decoding as :class:`ImageError` with the fix."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ImageError(
            f"{name}: more than {limit} megapixels, which may be a decompression bomb; "
            "if it is a photograph, scale it down first, with another program"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image that can be read; give a JPEG, PNG, WebP, TIFF, BMP or GIF"
        ) from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file; check the name") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder; name an image file") from error
    except PermissionError as error:
        raise ImageError(f"{name}: not readable; check its permissions") from error
    except MemoryError as error:
        raise ImageError(
            f"{name}: too large for the memory of this machine; scale it down first"
        ) from error
    except OSError as error:
        if error.filename is None:  # decoders raise OSError without a file
            raise _damaged(name, error) from error
        raise ImageError(f"{name}: cannot be opened: {error.strerror}") from error
    except Exception as error:
        # The decoders raise SyntaxError, ValueError, struct.error and more on bad bytes.
        raise _damaged(name, error) from error


def _damaged(name: Path | str, error: Exception) -> ImageError:
    return ImageError(f"{name}: damaged or truncated ({one_line(error)[:100]}); get the file again")
