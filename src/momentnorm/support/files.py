"""Files of the commands: read if regular, written whole or not at all, locked."""

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

#: Answers of file systems that cannot flush or lock. The data is as safe there as it can be.
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read it. A FIFO or a device is refused without waiting.

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
    """Open a temporary file that takes the name ``path`` when it is complete.

    An old file of that name stays until then. The contents reach the disk before the name does, so
    a machine that loses power has the old file or the new one.

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
    """Write the names in a folder to the disk, where folders can be opened."""
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
        # It is removed while it is locked. A process that has opened it notices that, in _lock.
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
    """Whether the name still belongs to the open file, which a former holder may have removed."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


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
