"""The memory that is kept for large outputs: limits of containers and failed allocations.

``faults_test.cpp`` has the rest: forks, and every allocation that can fail.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from momentnorm.core.backends import cpu
from momentnorm.doctor import command
from momentnorm.support.machine import usable_memory

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())


@pytest.fixture(autouse=True)
def _limit_restored():
    limit = cpu.kept_memory_limit()
    yield
    cpu.limit_kept_memory(limit)


def test_memory_that_torch_lacks_is_given_back(monkeypatch):
    cpu.limit_kept_memory(64 << 20)
    x = torch.empty(1, 1, 1 << 20)
    del [cpu._output(x)][0]
    kept = cpu.kept_memory()
    assert kept >= x.nbytes
    seen = []

    def no_memory_while_kept(tensor):
        seen.append(cpu.kept_memory())
        if seen[-1]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return torch.zeros_like(tensor)

    monkeypatch.setattr(cpu.torch, "empty_like", no_memory_while_kept)
    assert cpu._output(x[..., :8]).shape == (1, 1, 8)
    assert seen == [kept, 0]


def test_other_errors_of_torch_keep_the_memory(monkeypatch):
    def refuse(tensor):
        raise RuntimeError("something else")

    monkeypatch.setattr(cpu.torch, "empty_like", refuse)
    with pytest.raises(RuntimeError, match="something else"):
        cpu._output(torch.empty(1, 1, 8))


def test_a_limit_has_no_negative_size():
    with pytest.raises(ValueError, match="from 0 on, not -1"):
        cpu.limit_kept_memory(-1)


def test_the_first_limit_is_a_sixteenth_of_the_usable_memory():
    code = "from momentnorm.core.backends import cpu; print(cpu.kept_memory_limit())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == usable_memory() // 16


def test_doctor_shows_the_kept_memory_and_its_limit():
    cpu.limit_kept_memory(0)
    cpu.limit_kept_memory(64 << 20)
    del [cpu._output(torch.empty(1, 1, 2 << 20))][0]
    (line,) = (line for line in command.installation() if line.startswith("memory"))
    assert line.startswith("memory      8 MB kept for large outputs, at most 64 MB")


GIGABYTE = 1 << 30


@pytest.mark.parametrize(
    ("groups", "files", "usable"),
    [
        ("0::/", {}, 8),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": 3 * GIGABYTE}, 3),
        ("0::/on/the/host", {"memory.max": 2 * GIGABYTE}, 2),
        ("0::/a", {"unified/a/memory.max": GIGABYTE}, 1),
        ("5:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": 4 * GIGABYTE}, 4),
        ("5:memory:/on/the/host", {"memory/memory.limit_in_bytes": 5 * GIGABYTE}, 5),
        ("5:memory:/a", {"memory/a/memory.limit_in_bytes": 2**63 - 4096}, 8),
        ("7:cpu:/a", {"memory/a/memory.limit_in_bytes": GIGABYTE}, 8),
        ("no group", {}, 8),
    ],
)
def test_control_groups_limit_the_usable_memory(groups, files, usable, tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {8 << 20} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, limit in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    assert usable_memory(tmp_path) == usable * GIGABYTE


def test_a_system_without_proc_says_nothing(tmp_path):
    assert usable_memory(tmp_path) is None
