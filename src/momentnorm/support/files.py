"""Files: writing whole files or nothing, and checks of the place."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING, BinaryIO

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the name ``path`` when it is complete.

    An old file of that name stays until then.

    Raises:
        OSError: the folder is not there or cannot be written, or the disk is full. ``strerror``
            says which, and ``filename`` is the path.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
        with open(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    except OSError as error:
        # The caller does not know the temporary file. Encoders raise errors with a text alone.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_file(path: Path, content: str | bytes) -> None:
    """Write a whole file, or leave the old one as it is.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        with whole_file(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error


def check_path(path: Path, suffixes: tuple[str, ...]) -> None:
    """Check that a file of one of these formats can be written at ``path``.

    Raises:
        UserError: another suffix, no such folder, or a folder of this name.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{path}: no format is known by the suffix {path.suffix!r}: "
            f"choose one of {', '.join(suffixes)}"
        )
    if not os.path.isdir(path.parent):
        raise UserError(f"{path}: the folder {path.parent} does not exist: create it first")
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder: name a file, perhaps in it")
