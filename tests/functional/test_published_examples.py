"""Published examples: worked examples of tutorials, to their printed digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import momentnorm

EXAMPLES = json.loads(Path(__file__, "../../data/published_examples.json").resolve().read_text())

every_example = pytest.mark.parametrize(
    "example", EXAMPLES["examples"], ids=lambda example: example["name"]
)


@every_example
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_printed_output(backend, example, dtype):
    arguments = dict(example["layer"])
    parameters = {
        name: torch.tensor(arguments.pop(name)) for name in ("weight", "bias") if name in arguments
    }
    layer = getattr(momentnorm, arguments.pop("type"))(**arguments, dtype=dtype)
    layer.load_state_dict(parameters, strict=False)
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


# Two captions of these examples are wrong. One says that as many groups as channels are Layer
# Normalization, the other that Instance Normalization of a single channel returns the input.


def _inputs(kind):
    examples = [example for example in EXAMPLES["examples"] if example["layer"]["type"] == kind]
    return [torch.tensor(example["input"]) for example in examples]


def test_one_group_is_layer_norm_and_a_group_for_each_channel_is_instance_norm(backend):
    for x in _inputs("GroupNorm"):
        channels = x.shape[1]
        layer_norm = momentnorm.LayerNorm(x.shape[1:])(x)
        each = momentnorm.GroupNorm(channels, channels)(x)
        torch.testing.assert_close(momentnorm.GroupNorm(1, channels)(x), layer_norm)
        assert torch.equal(each, momentnorm.InstanceNorm2d(channels)(x))
        assert (each - layer_norm).abs().max() > 0.1


def test_a_single_channel_is_normalized_too(backend):
    for x in _inputs("InstanceNorm2d"):
        one = x[:, :1]
        y = momentnorm.InstanceNorm2d(1)(one)
        expected = (one - one.mean((2, 3), True)) / one.var(
            (2, 3), correction=0, keepdim=True
        ).sqrt()
        torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)
        assert (y - one).abs().max() > 0.1
