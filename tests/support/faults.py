"""Faults: system calls of the file layer that fail at the n-th call."""

from __future__ import annotations

import errno
import io
import os

from momentnorm.support import files


class Faults:
    """Counter of the system calls of ``support.files``, one of which raises an error.

    Opening, writing, flushing, closing and renaming count. Removing does not, so that temporary
    files can be removed after the fault. Files that are only read do not count.

    Args:
        at: number of the call that fails, from 1; with 0 none fails.
        error: function that makes the exception.
    """

    def __init__(self, monkeypatch, at=0, error=lambda: OSError(errno.EIO, "Input/output error")):
        self.at, self.error, self.calls = at, error, []
        monkeypatch.setattr(files, "os", self)
        monkeypatch.setattr(files, "open", self._open, raising=False)

    def __getattr__(self, name):
        found = getattr(os, name)
        if name not in ("open", "close", "fsync", "replace"):
            return found

        def call(*arguments, **options):
            if name == "close":  # it has closed the file when it reports what went wrong
                found(*arguments, **options)
                return self.count(name)
            self.count(name)
            return found(*arguments, **options)

        return call

    @property
    def happened(self):
        return len(self.calls) >= self.at > 0

    def count(self, name):
        self.calls.append(name)
        if len(self.calls) == self.at:
            raise self.error()

    def _open(self, path, mode, **options):
        if "r" in mode:
            return open(path, mode)
        self.count("open")
        return io.BufferedWriter(_Raw(path, mode, self), 64)


class _Raw(io.FileIO):
    def __init__(self, path, mode, faults):
        super().__init__(path, mode.replace("b", ""))
        self.faults = faults

    def write(self, content):
        self.faults.count("write")
        return super().write(content)

    def close(self):
        was_open = not self.closed
        super().close()
        if was_open:
            self.faults.count("close")
