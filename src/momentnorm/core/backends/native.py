"""Native library: loads the C++ kernels (``csrc/momentnorm.h``) through ctypes.

The kernels run on torch's thread pool, so ``torch.set_num_threads`` applies to them and no second
pool competes for the cores. torch's CPU library exports the pool's functions
``torch_parallel_for`` and ``torch_get_num_threads``, whose addresses the kernels receive.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch

from ...support.machine import usable_memory

ABI_VERSION = 6

_INTEGER, _POINTER, _DOUBLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
#: Parameters of each function after the pointer to the grid.
_SIGNATURES: dict[str, list[Any]] = {
    "moments": [_POINTER] * 3,
    "apply": [_POINTER] * 6,
    "normalize": [_POINTER] * 4 + [_DOUBLE] + [_POINTER] * 3,
    "normalize_with": [_POINTER] * 6 + [_DOUBLE, _POINTER],
    "gradient_sums": [_POINTER] * 8,
    "apply_gradient": [_POINTER] * 11,
    "normalize_backward": [_POINTER] * 7 + [_DOUBLE] + [_POINTER] * 6,
}

_NO_MEMORY = 3
#: Reasons of the other statuses of ``momentnorm_status``.
_REFUSALS = {
    1: "a dtype, layout or activation is unknown to them",
    2: "this processor runs none of their instruction sets",
    4: "the pools do not divide the samples and channels",
}


class Grid(ctypes.Structure):
    """``momentnorm_grid``."""

    _fields_ = (
        ("samples", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("pool_samples", ctypes.c_int64),
        ("pool_channels", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("parameters", ctypes.c_int32),
        ("layout", ctypes.c_int32),
    )


class NativeTail(ctypes.Structure):
    """``momentnorm_tail``."""

    _fields_ = (
        ("activation", ctypes.c_int32),
        ("slope", ctypes.c_double),
        ("residual", ctypes.c_void_p),
    )


class _UnavailableError(Exception):
    """The kernels cannot be used. The message names the reason and the fix."""


def _raise_unless_ok(status: int) -> None:
    if status:
        _raise(status)


def _raise(status: int) -> NoReturn:
    if status == _NO_MEMORY:
        raise torch.OutOfMemoryError(
            "the CPU kernels find no memory for their intermediate results: free memory, or call "
            "with a smaller batch"
        )
    reason = _REFUSALS.get(status, f"they return the unknown status {status}")
    raise RuntimeError(f"the CPU kernels refuse a call: {reason}")


def _find() -> Path:
    # An editable install keeps the library and the sources in different folders of one package.
    folders = sys.modules["momentnorm"].__path__
    candidates = [Path(folder, "_native", "libmomentnorm.so") for folder in folders]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise _UnavailableError("the kernels were not built: reinstall momentnorm with a C++ compiler")


def _declare(found: ctypes.CDLL) -> None:
    """Set the types of the library's functions."""
    for function, signature in _SIGNATURES.items():
        getattr(found, f"momentnorm_{function}").argtypes = [_POINTER, *signature]
        getattr(found, f"momentnorm_{function}").restype = _raise_unless_ok
    found.momentnorm_instruction_sets.restype = ctypes.c_char_p
    found.momentnorm_instruction_set.restype = ctypes.c_char_p
    found.momentnorm_choose_instruction_set.argtypes = [ctypes.c_char_p]
    new_output: list[Any] = [ctypes.c_int32, _POINTER, _POINTER, ctypes.c_int32, _INTEGER]
    found.momentnorm_new_output.argtypes = new_output
    found.momentnorm_new_output.restype = _POINTER
    found.momentnorm_kept_memory.restype = _INTEGER
    found.momentnorm_kept_memory_limit.restype = _INTEGER
    found.momentnorm_give_back_kept_memory.restype = _INTEGER
    found.momentnorm_limit_kept_memory.argtypes = [_INTEGER]
    found.momentnorm_limit_kept_memory.restype = None
    found.momentnorm_set_thread_pool.argtypes = [_POINTER, _POINTER]


def _thread_pool() -> list[Any]:
    """Addresses of the functions of torch's thread pool."""
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        return [
            ctypes.cast(getattr(torch_cpu, function), _POINTER)
            for function in ("torch_parallel_for", "torch_get_num_threads")
        ]
    except (OSError, AttributeError) as error:
        raise _UnavailableError(
            f"this torch ({torch.__version__}) exports no thread pool: {error}"
        ) from None


def _load() -> ctypes.CDLL:
    path = _find()
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise _UnavailableError(f"the kernels do not load: {error}") from None
    if found.momentnorm_abi_version() != ABI_VERSION:
        raise _UnavailableError(f"{path} is of another version of momentnorm: reinstall it")
    _declare(found)
    if not found.momentnorm_instruction_sets():
        raise _UnavailableError("the kernels need a processor with SSE4.2 (x86-64-v2) at least")
    found.momentnorm_set_thread_pool(*_thread_pool())
    return found


def unavailable() -> str:
    """Reason why the CPU backend takes no calls, or the empty string."""
    return _unavailable


def instruction_sets() -> list[str]:
    """Instruction sets that the kernels were built for and this processor runs, best first."""
    return library.momentnorm_instruction_sets().decode().split() if library else []


def instruction_set() -> str | None:
    """Instruction set in use."""
    return library.momentnorm_instruction_set().decode() if library else None


def choose_instruction_set(name: str) -> None:
    """Use an instruction set from now on, in the whole process.

    ``MOMENTNORM_ISA`` in the environment chooses one at the start.

    Raises:
        ValueError: it is not among :func:`instruction_sets`.
    """
    if not library or library.momentnorm_choose_instruction_set(name.encode()):
        known = ", ".join(instruction_sets()) or "none"
        raise ValueError(f"instruction set {name!r} is not available: choose one of {known}")


def kept_memory() -> int:
    """Number of bytes that are kept for the next large outputs."""
    return library.momentnorm_kept_memory() if library else 0


def kept_memory_limit() -> int:
    """Largest number of bytes that are kept.

    It is ``MOMENTNORM_KEEP_MB`` megabytes, or a sixteenth of the memory that the process may use.
    """
    return library.momentnorm_kept_memory_limit() if library else 0


def limit_kept_memory(limit: int) -> None:
    """Keep at most ``limit`` bytes for the next large outputs; 0 gives all of them back.

    Raises:
        ValueError: the limit is negative.
    """
    if limit < 0:
        raise ValueError(f"the limit of kept memory is a number of bytes from 0 on, not {limit}")
    if library:
        library.momentnorm_limit_kept_memory(limit)


def give_back_kept_memory() -> int:
    """Give all kept memory back to the system, and return its number of bytes."""
    return library.momentnorm_give_back_kept_memory() if library else 0


def _configure(found: ctypes.CDLL) -> None:
    """Apply the environment and the memory limit of the process."""
    if os.environ.get("MOMENTNORM_ISA"):
        choose_instruction_set(os.environ["MOMENTNORM_ISA"])
    usable = usable_memory()
    if usable is not None:
        found.momentnorm_limit_kept_memory(usable // 16)
    if os.environ.get("MOMENTNORM_KEEP_MB"):
        try:
            megabytes = int(os.environ["MOMENTNORM_KEEP_MB"])
        except ValueError:
            raise ValueError(
                "MOMENTNORM_KEEP_MB is a whole number of megabytes, not "
                f"{os.environ['MOMENTNORM_KEEP_MB']!r}"
            ) from None
        found.momentnorm_limit_kept_memory(max(megabytes, 0) << 20)


#: The loaded library, or None.
library: ctypes.CDLL | None = None
_unavailable = ""
try:
    library = _load()
except _UnavailableError as error:
    _unavailable = str(error)
else:
    _configure(library)
