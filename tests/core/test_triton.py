"""Triton backend: runs under the interpreter, compilation ahead of time, and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from benchmarks import gpu

from momentnorm.core import dispatch
from momentnorm.core.backends import triton as backend
from momentnorm.core.tail import Tail
from momentnorm.doctor import command

ROOT = Path(__file__).parents[2]
CASES = ["tests/core/triton_cases.py", "tests/core/triton_layer_cases.py"]

needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")


@needs_triton
def test_kernels_under_the_interpreter():
    """The cases, in a process that has not imported Triton before."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/core/triton_cases.py",
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout


@needs_triton
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_compile_ahead_of_time(target):
    """One case of each kernel. `make kernels-report` compiles all cases."""
    from tools import kernels_report as report

    seen = set()
    with report.compiling_for(target) as gpu:
        for case in report.cases():
            if case.kernel in seen or "bf16" not in case.call:
                continue
            seen.add(case.kernel)
            kernel = report.compiled(case, gpu)
            uses = report.used(kernel, gpu)
            assert 0 < uses.registers <= 255
            assert uses.spilled <= 64, case
            if target in ("sm_80", "sm_90") and case.kernel in ("normalize", "apply_gradient"):
                assert "ld.global.v4.b32" in kernel.asm["ptx"]  # 16 bytes at a time
    assert len(seen) == 9


@needs_triton
def test_offsets_beyond_32_bits_compile():
    from tools import kernels_report as report

    from momentnorm.core.backends.triton import launch

    with report.compiling_for("sm_90") as gpu:
        grid = launch.Grid(1, 1, (1 << 31) + 64, False, 2, 0)
        operands = ("*fp16", "*fp16", None, "*fp64", "*fp64", None, None, "fp32", "fp32")
        run = launch.piece("apply", grid)
        report.compiled(report.Case("large", "apply", operands, run), gpu)


class _Driver:
    """Stand-in for Triton's driver of a GPU, with a record of launches."""

    class utils:  # noqa: N801
        load_binary = staticmethod(lambda *_: (None, "function", 0, 0, 1024))
        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 1 << 20})

    def __init__(self, target):
        self.launched = []
        self.get_current_target = lambda: target
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0

    def launcher_cls(self, source, metadata):
        def launch(*given):
            *grid, _stream, function, _metadata, _launch, _enter, _exit = given[:9]
            assert function == "function"
            self.launched.append((source.name, metadata.num_warps, grid, given[9:]))

        return launch


@needs_triton
def test_a_second_call_launches_what_the_first_one_compiled(monkeypatch):
    """A second launch skips Triton's search and passes equal arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from momentnorm.core.backends.triton import launch

    fake = _Driver(GPUTarget("cuda", 90, 32))
    monkeypatch.setattr(driver, "_active", fake)
    for cached in (launch.visit, launch.piece, launch.parameter_gradients):
        cached.cache_clear()
    for shape, residual, processors in (((2, 3, 16), False, 1), ((1, 3, 40000), True, 1000)):
        monkeypatch.setattr(launch, "multiprocessors", lambda _, number=processors: number)
        tail = Tail("silu", 0.1, torch.zeros(shape) if residual else None)
        x, weight = torch.zeros(shape), torch.ones(3)
        statistics = torch.zeros(2, shape[0], 3, dtype=torch.float64)
        for _ in range(2):
            backend.normalize(x, weight, None, 1e-5, tail=tail, out=x)
            backend.normalize_backward(x, x, *statistics, weight, None, 1e-5, tail=tail)
    names = [name for name, *_ in fake.launched]
    visits = ["normalize", "normalize_backward", "parameter_gradients"]
    cuts = ["partial_moments", "merge_moments", "apply"]
    cuts += ["partial_sums", "merge_sums", "apply_gradient", "parameter_gradients"]
    assert names == 2 * visits + 2 * cuts
    first, second = (fake.launched[start : start + 7] for start in (6, 13))
    for (*how, given), (*again_how, given_again) in zip(
        fake.launched[:3] + first, fake.launched[3:6] + second, strict=True
    ):
        assert how == again_how
        assert len(given) == len(given_again)
        for one, other in zip(given, given_again, strict=True):
            # each call has new buffers
            assert type(one) is type(other)
            assert isinstance(one, torch.Tensor) or one == other


def test_without_triton(monkeypatch):
    monkeypatch.setattr(backend, "_unavailable", "Triton is not installed: pip install triton")
    assert "triton      Triton is not installed" in "\n".join(command.installation())


def test_tensors_on_the_cpu_go_elsewhere():
    x = torch.zeros(2, 3, 4)
    assert backend.refuses(x) == "the input is on cpu"
    assert dispatch.choose(x).backend is not backend


def test_import_leaves_triton_alone():
    code = (
        "import sys, momentnorm; momentnorm.InstanceNorm1d(2); "
        "assert 'momentnorm.core.backends.triton.launch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmarks_without_a_gpu(tmp_path):
    gpu.main([str(tmp_path)])
    assert (tmp_path / "gpu.md").read_text().count("not measured |") == 5
    with pytest.raises(SystemExit):
        gpu.main([str(tmp_path), "--smoke"])
