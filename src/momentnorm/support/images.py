"""Image files, decoded: the reader of every command that takes a picture."""

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

#: Formats that are read. Pillow reads more, but for some, such as EPS, it starts other programs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")


class ImageError(UserError):
    """A file that is no usable picture. The message is one line that names the fix."""


@contextlib.contextmanager
def opened_image(path: Path, name: str | None = None) -> Iterator[Image.Image]:
    """Open the decoded picture of a file, as it is stored.

    An error in the block that converts the picture is raised as :class:`ImageError` too, since
    damage can show late.

    Args:
        path: a regular file.
        name: its name in messages; default the path.

    Raises:
        ImageError: no such file, not an image of :data:`FORMATS`, a damaged or an enormous one.
    """
    with _explained(path if name is None else name), warnings.catch_warnings():
        # Pillow's own limit stays: twice this warning's size is an error.
        warnings.simplefilter("ignore")
        Image.init()
        known = [form for form in FORMATS if form in Image.OPEN]  # Pillow can lack WebP or AVIF
        with open_regular(path) as file, Image.open(file, formats=known) as image:
            image.load()
            yield image


@contextlib.contextmanager
def _explained(name: Path | str) -> Iterator[None]:
    """Raise errors of opening and decoding as one line with the fix."""
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
        raise ImageError(f"{name}: is a folder; an image file is needed here") from error
    except PermissionError as error:
        raise ImageError(f"{name}: not readable; check its permissions") from error
    except MemoryError as error:
        raise ImageError(f"{name}: too large for this machine's memory") from error
    except OSError as error:
        if error.filename is None:  # from a decoder
            raise _damaged(name, error) from error
        raise ImageError(f"{name}: cannot be opened: {error.strerror}") from error
    except Exception as error:
        # The decoders raise SyntaxError, ValueError, struct.error and more on bad bytes.
        raise _damaged(name, error) from error


def _damaged(name: Path | str, error: Exception) -> ImageError:
    return ImageError(f"{name}: damaged or truncated ({one_line(error)[:100]}); get the file again")
