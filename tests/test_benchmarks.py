"""The benchmarks run. Nothing asserts on time."""

from __future__ import annotations

from benchmarks import instance_norm
from benchmarks.__main__ import table
from benchmarks.timing import interleaved


def test_a_row():
    row = instance_norm.measure((1, 2, 4, 4))
    assert row.shape == "1x2x4x4"
    assert min(row.copy, row.forward, row.torch_forward, row.training, row.torch_training) > 0
    assert table([row]).count("1x2x4x4") == 1


def test_every_call_has_its_turn():
    calls = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget=0)
    assert times.keys() == {"a", "b"}
    assert all(sorted(calls[i : i + 2]) == ["a", "b"] for i in range(4, len(calls), 2))
