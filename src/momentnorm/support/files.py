"""Files: regular ones for reading, whole-file writes, and locks."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from typing import TYPE_CHECKING, BinaryIO

from .errors import UserError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Errors of file systems that cannot flush or lock. They are ignored.
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read it. A FIFO or a device is refused without waiting.

    Raises:
        OSError: no such file, or it is not readable or not regular; ``strerror`` says which.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            text = "not a regular file; copy its contents into one first"
            raise OSError(errno.EINVAL, text, str(path))
    except BaseException:
        file.close()
        raise
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the name ``path`` when it is complete.

    An old file of that name stays until then. The contents are flushed to the disk before the
    rename, so a machine that loses power has the old file or the new one.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full. ``strerror``
            says which, and ``filename`` is the path.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        try:
            # open, and not mkstemp: the umask sets the permissions.
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                _flush_to_disk(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        # Name the path, not the temporary file. Encoders raise OSError with only a text.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _flush_to_disk(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where folders can be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, or a folder that can be written and not read
        return
    try:
        _flush_to_disk(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path`` for this process, and remove it at the end.

    The system frees the lock of a process that is killed. Nothing is locked on Windows, nor on
    network file systems without locks.

    Raises:
        BlockingIOError: another holder has the lock.
        OSError: the lock file cannot be created.
    """
    if sys.platform == "win32":
        yield
        return
    handle = _lock(path)
    try:
        yield
    finally:
        # Remove the file before the lock ends. _lock notices a file that was removed meanwhile.
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(handle)


def _lock(path: Path) -> int:
    """Handle of the lock file, locked."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
            if _is_file_of(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_file_of(handle: int, path: Path) -> bool:
    """Whether the path still names the open file. A former holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def write_file(path: Path, content: str | bytes) -> None:
    """Write a whole file, or leave the old one as it is.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with whole_file(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error


def check_path(path: Path, suffixes: tuple[str, ...]) -> None:
    """Check that ``path`` has one of these suffixes and is a possible place for a file.

    Raises:
        UserError: it has another suffix, its folder does not exist, or it is a folder.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{path}: no format has the suffix {path.suffix!r}: choose one of {', '.join(suffixes)}"
        )
    if not os.path.isdir(path.parent):
        raise UserError(f"{path}: the folder {path.parent} does not exist: create it first")
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder: name a file")
