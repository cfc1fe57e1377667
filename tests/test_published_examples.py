"""The worked examples that tutorials print, to their printed digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import momentnorm

EXAMPLES = json.loads(Path(__file__, "../data/published_examples.json").resolve().read_text())

every_example = pytest.mark.parametrize(
    "example", EXAMPLES["examples"], ids=lambda example: example["name"]
)


@every_example
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_printed_output(backend, example, dtype):
    arguments = dict(example["layer"])
    layer = getattr(momentnorm, arguments.pop("type"))(**arguments, dtype=dtype)
    y = layer(torch.tensor(example["input"], dtype=dtype))
    expected = torch.tensor(example["expected"], dtype=dtype)
    # the inputs are printed to four decimals too, so a last digit may be off by one or two
    torch.testing.assert_close(y, expected, rtol=0, atol=example["atol"])


@pytest.mark.parametrize("example", [e for e in EXAMPLES["examples"] if "mean" in e])
def test_printed_statistics(backend, example):
    moments = momentnorm.Moments.of(torch.tensor(example["input"]))
    for found, name in ((moments.mean, "mean"), (moments.var, "var"), (moments.var.sqrt(), "std")):
        expected = torch.tensor(example[name], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
