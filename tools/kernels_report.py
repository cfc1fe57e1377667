"""Report on the compiled Triton kernels: registers, spills and shared memory, without a GPU.

``make kernels-report`` prints the table and writes docs/gpu-kernels.md.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from momentnorm.core.backends.triton import launch
from momentnorm.core.backends.triton.launch import Grid, Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

#: Triton's names of dtypes.
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

#: Multiprocessors of the device of the cases, as of an H100. Some launches depend on their number.
PROCESSORS = 132


class Case(NamedTuple):
    """A call, and one of its kernels."""

    call: str
    kernel: str
    operands: tuple[str | None, ...]  # types of tensors and floats, or None
    launch: Launch


class Used(NamedTuple):
    registers: int
    spilled: int  # bytes of local memory of a thread
    shared: int  # bytes


def compiled(case: Case, target: GPUTarget) -> Any:
    """Kernel as a first call with aligned tensors compiles it."""
    names = case.launch.kernel.arg_names
    values = (*case.operands, *case.launch.numbers, *case.launch.constants)
    given = len(case.operands) + len(case.launch.numbers)
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        if i >= given or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[i,] = "constexpr", value
        elif isinstance(value, str):
            signature[name] = value
            if value.startswith("*"):
                attributes[i,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if value < 1 << 31 else "i64"
            if value % 16 == 0:
                attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(case.launch.kernel, signature, constants, attributes)
    options = {"num_warps": case.launch.warps, **launch.OPTIONS}
    return triton.compile(source, target=target, options=options)


def used(kernel: Any, target: GPUTarget) -> Used:
    """Resources of a compiled kernel, from its assembly."""
    if target.backend == "hip":
        text = kernel.asm["amdgcn"]
        names = ("vgpr_count", "private_segment_fixed_size")
        registers, spilled = (int(re.findall(rf"\.{name}:\s+(\d+)", text)[0]) for name in names)
        return Used(registers, spilled, kernel.metadata.shared)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found is not None, text
    registers, stack, _, local = map(int, found.groups())
    return Used(registers, stack + local, kernel.metadata.shared)


_INSTANCE, _VOLUME = (1, 1), (1, 128, 20 << 16)
LAYERS = (
    # name, shape, last, samples and width of a pool, dtype, activation, residual
    ("InstanceNorm 8x128x64x64", (8, 128, 4096), False, _INSTANCE, "fp32", "", False),
    ("InstanceNorm 8x128x64x64", (8, 128, 4096), False, _INSTANCE, "bf16", "", False),
    ("InstanceNorm 4x64x128x128", (4, 64, 16384), False, _INSTANCE, "fp32", "", False),
    ("InstanceNorm 4x64x128x128", (4, 64, 16384), False, _INSTANCE, "bf16", "leaky_relu", True),
    ("InstanceNorm 16x512x8x8", (16, 512, 64), False, _INSTANCE, "fp16", "relu", False),
    ("InstanceNorm 8x256x32x32", (8, 256, 1024), True, _INSTANCE, "bf16", "leaky_relu", True),
    ("InstanceNorm 64x256x64x64", (64, 256, 4096), True, _INSTANCE, "fp32", "", False),
    ("GroupNorm(32) 16x320x64x64", (16, 320, 4096), False, (1, 10), "bf16", "silu", False),
    ("GroupNorm(32) 16x320x64x64", (16, 320, 4096), True, (1, 10), "bf16", "silu", False),
    ("LayerNorm 512x384x56x56", (512, 384, 56 * 56), True, (1, 384), "bf16", "", False),
    ("GroupNorm(32) 16x320x16x16", (16, 320, 256), False, (1, 10), "fp32", "gelu", False),
    ("BatchNorm 32x512x28x28", (32, 512, 784), False, (32, 1), "bf16", "relu", True),
    ("InstanceNorm 4x50x31x33", (4, 50, 31 * 33), False, _INSTANCE, "fp32", "", False),
    ("GroupNorm(8) 4096x64", (4096, 64, 1), True, (1, 8), "fp32", "", False),
    ("InstanceNorm 2x32x128x128x128", (2, 32, 128**3), False, _INSTANCE, "bf16", "tanh", True),
    ("InstanceNorm 2x32x128x128x128", (2, 32, 128**3), True, _INSTANCE, "bf16", "", False),
    ("InstanceNorm 2x32x128x128x128", (2, 32, 128**3), True, _INSTANCE, "fp32", "", False),
    ("GroupNorm(32) 1x128x20x256x256", _VOLUME, False, (1, 4), "bf16", "silu", False),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """Cases that cover each kernel, layout and way to split the work."""
    wide = "*fp64"
    for what, (batch, channels, size), last, pool, dtype, activation, added in LAYERS:
        grid = Grid(batch, channels, size, last, 4 if dtype == "fp32" else 2, 0)
        call = f"{what}, {dtype}" + ", channels_last" * (last and size > 1)
        if activation or added:
            call += ", " + "residual, " * added + activation
        x, residual = f"*{dtype}", f"*{dtype}" if added else None
        parameters, statistics, floats = ("*fp32", "*fp32"), (wide, wide), ("fp32", "fp32")
        grown = None if activation == "" or not added else x
        visit = (grid, *pool, activation)
        forward = launch.visit(*visit, False, PROCESSORS)
        backward = launch.visit(*visit, True, PROCESSORS)
        if forward is not None and backward is not None:
            tensors = (x, x, residual, *parameters, *statistics)
            yield Case(call, "normalize", (*tensors, *floats), forward)
            tensors = (*tensors, x, grown, wide, None, None)
            yield Case(call, "normalize_backward", (*tensors, *floats), backward)
            continue

        def piece(
            kernel: str,
            *operands: str | None,
            given: tuple[Any, ...] = (grid, *pool, activation),
            call: str = call,
        ) -> Case:
            return Case(call, kernel, operands, launch.piece(kernel, *given))

        shared = (*statistics, *parameters)
        yield piece("partial_moments", x, wide, wide, given=(grid,))
        yield piece("merge_moments", wide, wide, wide, wide, given=(grid, *pool))
        yield piece("apply", x, x, residual, *shared, *floats)
        yield piece("partial_sums", x, x, residual, wide, *shared, *floats)
        merged = (wide, wide, wide, wide, "*fp32", "fp32")
        yield piece("merge_sums", *merged, given=(grid, *pool))
        yield piece("apply_gradient", x, x, residual, x, grown, *shared, None, wide, wide, *floats)
        finish = launch.parameter_gradients(batch, channels, *pool, 0)
        operands = (wide, wide, "*fp32", "*fp32", "fp32")
        yield Case(call, "parameter_gradients", operands, finish)
    given = (grid, 1, 1, "silu", True)
    call = "given moments, 1x128x20x256x256, bf16, residual, silu"
    operands = (x, x, x, wide, None, wide, wide, *floats)
    yield piece("apply", *operands, given=given, call=call)
    given_sums = (x, x, None, wide, wide, None, wide, wide, *floats)
    yield piece("partial_sums", *given_sums, given=given, call=call)
    shared = (wide, None, wide, wide, wide, wide, wide)
    operands = (x, x, None, x, None, *shared, *floats)
    yield piece("apply_gradient", *operands, given=given, call=call)


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[GPUTarget]:
    """Make launches for this target inside the ``with``."""
    cached = (launch.visit, launch.piece, launch.parameter_gradients)
    before, launch.THREADS = launch.THREADS, TARGETS[name].warp_size
    for function in cached:
        function.cache_clear()
    try:
        yield TARGETS[name]
    finally:
        launch.THREADS = before
        for function in cached:
            function.cache_clear()


def rows(targets: list[str]) -> Iterator[tuple[Case, dict[str, Used]]]:
    """All cases, with their resources on each target."""
    found: dict[int, tuple[Case, dict[str, Used]]] = {}
    for name in targets:
        with compiling_for(name) as target:
            for i, case in enumerate(cases()):
                result = used(compiled(case, target), target)
                print(name, case.call, case.kernel, *result, flush=True)
                found.setdefault(i, (case, {}))[1][name] = result
    yield from found.values()


def table(found: list[tuple[Case, dict[str, Used]]], targets: list[str]) -> str:
    lines = [
        f"| call | kernel | tile | threads | {' | '.join(targets)} |",
        f"|---|---|--:|--:|{'--:|' * len(targets)}",
    ]
    for case, uses in found:
        names, constants = case.launch.kernel.arg_names, case.launch.constants
        sizes = dict(zip(names[-len(constants) :], constants, strict=True))
        tile = "x".join(
            str(sizes[name])
            for name in ("COLUMNS", "ROWS", "PLANES", "CHUNKS", "BLOCK")
            if name in sizes
        )
        cells = (
            f"{use.registers} / {use.spilled} / {use.shared}"
            for use in (uses[target] for target in targets)
        )
        threads = case.launch.warps * launch.THREADS
        lines.append(f"| {case.call} | {case.kernel} | {tile} | {threads} | {' | '.join(cells)} |")
    return "\n".join(lines)


HEADER = """\
# The GPU kernels, compiled

Written by `make kernels-report` with Triton {version}. Each kernel is compiled for each target as a
first call compiles it, on a device of {processors} multiprocessors. Nothing here was run. A cell
is: registers of a thread / bytes that it spills / bytes of shared memory. [gpu.md](gpu.md)
describes the kernels.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    text = HEADER.format(version=triton.__version__, processors=PROCESSORS)
    text += table(list(rows(options.targets)), options.targets) + "\n"
    print("\n" + text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
