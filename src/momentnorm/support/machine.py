"""Machine: its processor, cores and memory, and errors for too little memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def processor() -> str:
    """Name of the processor."""
    return _first("/proc/cpuinfo", "model name") or platform.processor() or "unknown processor"


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python means that memory ran out."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "alloc" in text and "memory" in text
    )


def usable_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may use, or None where the system does not say.

    They are the machine's memory, or less if a control group has a limit, as in a container.

    Args:
        root: folder in which ``proc`` and ``sys`` are read.
    """
    kilobytes = _first(f"{root}/proc/meminfo", "MemTotal").partition(" ")[0]
    sizes = [int(kilobytes) * 1024] if kilobytes.isdecimal() else []
    sizes += _control_group_limits(root)
    return min(sizes, default=None)


def _control_group_limits(root: Path) -> Iterator[int]:
    """Memory limits of this process's control groups and of their parents.

    In a container the path may not exist, since it is the path on the host. The container's own
    limit is then at the root.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        group = Path(path.lstrip("/"))
        if controllers == "":  # version 2, alone or beside version 1
            folders, name = [mounted, mounted / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            folders, name = [mounted / "memory"], "memory.limit_in_bytes"
        else:
            continue
        for folder in folders:
            for level in (group, *group.parents):
                yield from (int(text) for text in _lines(folder / level / name) if text.isdecimal())


def available_memory() -> int | None:
    """Bytes of memory that are free without swapping, or None where the system does not say."""
    kilobytes = _first("/proc/meminfo", "MemAvailable").partition(" ")[0]
    return int(kilobytes) * 1024 if kilobytes.isdecimal() else None


def _first(path: str, name: str) -> str:
    """Text after the first ``name:`` in a file of Linux, or ""."""
    for line in _lines(Path(path)):
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return ""


def _lines(path: Path) -> list[str]:
    """Lines of a file of Linux; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
