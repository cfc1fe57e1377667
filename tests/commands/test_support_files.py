"""Files: regular ones are read, failed writes keep the old file, locks have one holder."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

from momentnorm.support.errors import UserError
from momentnorm.support.files import locked, open_regular, whole_file
from momentnorm.support.printable import printable
from support.faults import Faults

NEW = b"new" * 100


def open_files():
    return sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []


def write(path):
    with whole_file(path) as file:
        file.write(NEW)


def failure_of(write_it, *arguments):
    """Exception that the call raises, or None."""
    try:
        write_it(*arguments)
    except (OSError, KeyboardInterrupt) as error:
        return error
    return None


@pytest.mark.parametrize("old", [None, b"old"], ids=["new", "replaced"])
@pytest.mark.parametrize(
    "error",
    [lambda: OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt],
    ids=["full", "interrupted"],
)
def test_a_write_that_fails_at_any_call_loses_nothing(tmp_path, monkeypatch, old, error):
    path = tmp_path / "a.png"
    before = open_files()
    for at in range(1, 100):
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)
        with monkeypatch.context() as patch:
            faults = Faults(patch, at, error)
            failure = failure_of(write, path)
        if isinstance(failure, OSError):
            assert failure.filename == str(path)
            assert failure.strerror == "No space left on device"
        found = path.read_bytes() if path.exists() else None
        assert found in ((NEW,) if failure is None else (old, NEW)), faults.calls
        assert {file.name for file in tmp_path.iterdir()} <= {"a.png"}, faults.calls
        assert open_files() == before, faults.calls
        if not faults.happened:
            break
    assert set(faults.calls) == {"open", "write", "fsync", "close", "replace"}
    assert len(faults.calls) == at - 1


def test_the_disk_has_the_contents_before_the_name(tmp_path, monkeypatch):
    faults = Faults(monkeypatch)
    write(tmp_path / "a")
    calls = faults.calls
    last_write = len(calls) - 1 - calls[::-1].index("write")
    assert calls[last_write + 1 :] == ["fsync", "close", "replace", "open", "fsync", "close"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush(tmp_path, monkeypatch, number):
    def fsync(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file; copy its contents"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"contents")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"contents"


def test_permissions_are_the_umasks(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked on Windows")
def test_one_holder_of_a_lock(tmp_path):
    path = tmp_path / ".lock"
    with locked(path):
        with pytest.raises(BlockingIOError), locked(path):
            pass
        assert path.exists()
    assert not path.exists()
    with locked(path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked on Windows")
def test_a_killed_holder_leaves_no_lock(tmp_path):
    path = tmp_path / ".lock"
    code = (
        "import os, pathlib, signal\n"
        "from momentnorm.support.files import locked\n"
        f"with locked(pathlib.Path({str(path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert path.exists()
    with locked(path):
        pass
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked on Windows")
def test_a_lock_that_its_holder_removes_meanwhile(tmp_path, monkeypatch):
    """A lock file that is removed while it is being locked is created and locked again."""
    path = tmp_path / ".lock"
    opened = []

    def open_and_remove(*arguments):
        opened.append(os.open(*arguments))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    faults = Faults(monkeypatch)
    faults.open = open_and_remove
    with locked(path):
        assert path.exists()
    assert len(opened) == 2
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Käse, 写真, 12\u202fh", "Käse, 写真, 12\u202fh"),
        ("a\nb\r\t", r"a\nb\r\t"),
        ("\x1b[31mred\x9b\x07\0", r"\x1b[31mred\x9b\x07\x00"),
        ("a\u202egnp.exe\u2028", r"a\u202egnp.exe\u2028"),
        ("\udcff", r"\udcff"),
        (r"a\nb", r"a\nb"),
    ],
)
def test_what_cannot_be_seen_is_escaped(text, shown):
    assert printable(text) == shown
    assert printable(printable(text)) == shown
    assert str(UserError(text)) == shown
