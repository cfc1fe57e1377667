"""Files as the commands use them: read if regular, written whole or not at all, locked."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from typing import TYPE_CHECKING, BinaryIO

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What a file system answers that cannot flush or lock. The data is as safe there as it gets.
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read it. Never waits for a FIFO's writer, never reads a device.

    Raises:
        OSError: it is not there, not readable, or not a regular file; ``strerror`` says which.
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
    """A file to write that takes its name only when it is complete; the old one stays until then.

    The contents are on the disk before the name is, and the name is on the disk at the end: a
    machine that loses its power has the old file or the new one.

    Raises:
        OSError: the folder is not there or cannot be written, or the disk is full. ``strerror``
            says which, and ``filename`` is the path.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        try:
            with open(temporary, "xb") as file:  # the umask decides who may read it
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
        # The caller does not know the temporary file. Encoders raise OSError with a text alone.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _flush_to_disk(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _flush_folder(folder: Path) -> None:
    """Put a folder's new name on the disk, where folders can be opened."""
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
    """Hold the lock file at ``path`` for this process; it is removed at the end.

    The system frees the lock of a process that is killed. Where it has no locks (Windows, some
    network file systems) nothing is locked.

    Raises:
        BlockingIOError: another holder has it.
        OSError: the file cannot be created.
    """
    if sys.platform == "win32":
        yield
        return
    handle = _lock(path)
    try:
        yield
    finally:
        # Removed while it is locked: whoever opened it before finds that it is gone, below.
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(handle)


def _lock(path: Path) -> int:
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
    """Whether the name still belongs to the open file: a former holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
