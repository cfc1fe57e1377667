"""What this machine has: its processor, cores and memory, and whether that was too little."""

from __future__ import annotations

import os
import platform

import torch


def processor() -> str:
    """Its name."""
    return _first("/proc/cpuinfo", "model name") or platform.processor() or "unknown processor"


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python says so."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "alloc" in text and "memory" in text
    )


def available_memory() -> int | None:
    """Bytes that can be had without swapping, where the system says so."""
    kilobytes = _first("/proc/meminfo", "MemAvailable").partition(" ")[0]
    return int(kilobytes) * 1024 if kilobytes.isdecimal() else None


def _first(path: str, name: str) -> str:
    """What stands behind ``name:`` in one of Linux's files, or ""."""
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.startswith(name):
                    return line.partition(":")[2].strip()
    except (OSError, ValueError):
        pass
    return ""
