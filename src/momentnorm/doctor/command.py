"""Command ``momentnorm doctor``: installed versions, and the backend that takes a call."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core import dispatch
from ..core.backends import cpu, triton
from ..core.backends.operands import layout
from ..support.arguments import Parser
from ..support.errors import UserError
from ..support.terminal import answer

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "momentnorm doctor"

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_MEMORY_FORMATS = ("contiguous", "channels_last", "strided")

#: Calls that are shown without --shape: shape, dtype, memory format.
_USUAL_CALLS = (
    ("8,128,64,64", "float32", "contiguous"),
    ("8,128,64,64", "float64", "contiguous"),
    ("8,128,64,64", "bfloat16", "contiguous"),
    ("8,128,64,64", "float32", "channels_last"),
    ("2,32,96,96,96", "float32", "contiguous"),
    ("1,64,8192", "float32", "contiguous"),
)


def installation() -> list[str]:
    """Lines about versions, threads, backends and kept memory."""
    kernels = cpu.unavailable() or (
        f"kernels for {cpu.instruction_set()} (this processor runs: "
        f"{', '.join(cpu.instruction_sets())}; MOMENTNORM_ISA chooses)"
    )
    lines = [
        f"momentnorm  {version('momentnorm')}",
        f"torch       {torch.__version__}",
        f"python      {platform.python_version()}, {platform.platform()}",
        f"threads     {torch.get_num_threads()}, torch's own (torch.set_num_threads)",
        f"cpu         {kernels}",
        f"memory      {cpu.kept_memory() >> 20} MB kept for large outputs, at most "
        f"{cpu.kept_memory_limit() >> 20} MB (MOMENTNORM_KEEP_MB sets the limit)",
        f"triton      {triton.description()}",
        "reference   eager PyTorch: takes every call that no other backend takes",
    ]
    if forced := os.environ.get("MOMENTNORM_BACKEND"):
        lines.append(f"forced      MOMENTNORM_BACKEND={forced}")
    return lines


def call(shape: str, dtype: str, memory_format: str, device: str = "cpu") -> str:
    """Line with the backend that takes ``instance_norm`` of such an input, and the reason.

    Raises:
        ValueError: the shape is not a list of sizes (N, C, *S).
    """
    x = _input(shape, dtype, memory_format, device)
    choice = dispatch.choose(x)
    copied = "" if layout(x) is not None else ", after a copy into a layout that kernels read"
    asked = f"{shape} {dtype} {memory_format}"
    return f"{asked:<38} -> {choice.backend.name}: {choice.why}{copied}"


def _input(shape: str, dtype: str, memory_format: str, device: str) -> Tensor:
    """Uninitialized input of this shape, dtype, memory format and device."""
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) < 3 or min(sizes) < 0:
        raise ValueError(
            f"shape {shape!r} is not N,C,*S: write at least three sizes, such as 8,128,64,64"
        )
    batch, channels, *spatial = sizes
    options = {"dtype": _DTYPES[dtype], "device": device}
    if memory_format == "channels_last":
        return torch.empty(batch, *spatial, channels, **options).movedim(-1, 1)  # type: ignore[call-overload, no-any-return]
    if memory_format == "strided":
        return torch.empty(*sizes, 2, **options)[..., 0]  # type: ignore[call-overload, no-any-return]
    return torch.empty(sizes, **options)  # type: ignore[call-overload, no-any-return]


def main(argv: Sequence[str]) -> int:
    """Run ``momentnorm doctor``. The exit code is 0, or 2 for wrong input."""
    return answer(PROGRAM, lambda: _doctor(argv))


def _doctor(argv: Sequence[str]) -> int:
    parser = Parser(
        prog=PROGRAM,
        description="Show which backend takes which call on this machine, and the reason.",
    )
    parser.add_argument("--shape", metavar="N,C,...", help="ask about an input of this shape")
    parser.add_argument("--dtype", choices=_DTYPES, help="dtype of that input; default float32")
    parser.add_argument(
        "--memory-format",
        choices=_MEMORY_FORMATS,
        help="memory format of that input; default contiguous",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="device of that input, such as cpu or cuda:1; default cpu"
    )
    given = parser.parse_args(argv)
    if given.shape is not None:
        return _one_call(given)
    for option in ("dtype", "memory_format", "device"):
        if getattr(given, option) is not None:
            parser.error(f"--{option.replace('_', '-')} describes an input: give its --shape too")
    print("\n".join(installation()))
    print("\nBackend for instance_norm of these inputs (--shape asks about another):")
    for usual in _USUAL_CALLS:
        print("  " + call(*usual))
    return 0


def _one_call(given: argparse.Namespace) -> int:
    dtype, memory_format = given.dtype or "float32", given.memory_format or "contiguous"
    try:
        print(call(given.shape, dtype, memory_format, given.device or "cpu"))
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        # torch raises AssertionError if it was not compiled with CUDA.
        raise UserError(str(error).splitlines()[0]) from error
    return 0
