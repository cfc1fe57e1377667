"""Native library: instruction sets, the environment, and the statuses of calls."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from momentnorm import functional
from momentnorm.core.backends import cpu, native
from momentnorm.support.machine import is_out_of_memory

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_environment_limits_the_kept_memory():
    code = (
        "import torch; from momentnorm.core.backends import cpu;"
        "x = torch.randn(1, 5, 2**19); cpu.normalize(x, None, None, 1e-5); print(cpu.kept_memory())"
    )
    assert in_new_process(code, MOMENTNORM_KEEP_MB="0").stdout == "0\n"
    assert in_new_process(code, MOMENTNORM_KEEP_MB="64").stdout == f"{10 << 20}\n"
    refused = in_new_process(code, MOMENTNORM_KEEP_MB="lots")
    assert "MOMENTNORM_KEEP_MB is a whole number of megabytes, not 'lots'" in refused.stderr


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match=r"'v9' is not available: choose one of \w+"):
        cpu.choose_instruction_set("v9")


def test_environment_chooses_the_instruction_set():
    narrowest = cpu.instruction_sets()[-1]
    code = "from momentnorm.core.backends import cpu; print(cpu.instruction_set())"
    assert in_new_process(code, MOMENTNORM_ISA=narrowest).stdout == narrowest + "\n"
    refused = in_new_process(code, MOMENTNORM_ISA="v9")
    assert refused.returncode == 1
    assert "ValueError: instruction set 'v9' is not available: choose one of" in refused.stderr


def test_without_kernels_the_reference_serves(monkeypatch):
    monkeypatch.setattr(native, "library", None)
    monkeypatch.setattr(native, "_unavailable", "the kernels were not built")
    x = torch.randn(2, 3, 8)
    exact = torch.nn.functional.instance_norm(x.double())
    torch.testing.assert_close(functional.instance_norm(x), exact.float())
    assert cpu.instruction_sets() == []


def normalize(grid: native.Grid) -> None:
    """A call with this grid whose operands are one element, for calls that end before they read."""
    x = ctypes.byref((ctypes.c_double * 1)())
    native.library.momentnorm_normalize(ctypes.byref(grid), None, x, None, None, 1e-5, x, x, x)


def test_a_call_without_memory_is_an_out_of_memory_error():
    # The moments of 2^45 planes take more bytes than any process can address.
    with pytest.raises(torch.OutOfMemoryError, match=r"find no memory .*: free memory, or") as info:
        normalize(native.Grid(1 << 30, 1 << 15, 256, 1, 2, 0, 0, 0))
    assert is_out_of_memory(info.value)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (native.Grid(1, 1, 1, 1, 1, 7, 0, 0), "a dtype, layout or activation is unknown to them"),
        (native.Grid(1, 3, 1, 1, 2, 0, 0, 0), "the pools do not divide the samples and channels"),
    ],
    ids=["dtype", "pools"],
)
def test_a_refused_call_names_the_reason(grid, reason):
    with pytest.raises(RuntimeError, match=f"the CPU kernels refuse a call: {reason}"):
        normalize(grid)
