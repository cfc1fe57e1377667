"""Numbers of the page of ``momentnorm explore``: its modules in node, and the library's layers."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import momentnorm
from momentnorm import explore

SOURCES = Path(explore.__file__).parent / "page"

#: Units of float64's epsilon, for sums in another order, and rsqrt in place of 1 / sqrt.
ULPS = 16

#: First lines of each program: a function that imports a module of the page, and the cases.
START = """
const [, folder] = process.argv;
const load = (name) => import(folder + name + ".mjs");
let text = "";
for await (const piece of process.stdin) text += piece;
const cases = JSON.parse(text);
"""


def node(program, cases):
    """Answers of a JavaScript program that imports modules of the page, for these cases."""
    executable = shutil.which("node")
    if executable is None:
        pytest.skip("node is not installed")
    result = subprocess.run(
        [executable, "--input-type=module", "-e", START + program, SOURCES.as_uri() + "/"],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def random_case(draw: random.Random, layer):
    """Random setting of the page, with an input and a plane."""
    shape = [
        draw.randint(1, 4),
        draw.choice([1, 2, 3, 4, 6]),
        draw.randint(1, 4),
        draw.randint(2, 4),
    ]
    channels = shape[1]

    def numbers(count, low=-2.0, high=2.0):
        return [draw.uniform(low, high) for _ in range(count)]

    # Some cases have a large mean and a small deviation.
    centre, width = draw.choice([(0, 1), (10, 1), (1000, 0.01), (5, 0)])
    groups = draw.choice([g for g in range(1, channels + 1) if channels % g == 0])
    setting = {
        "layer": layer,
        "shape": shape,
        "groups": groups,
        "eps": draw.choice([1e-5, 1e-3, 0.1]),
        "weight": numbers(channels),
        "bias": numbers(channels),
        "training": draw.random() < 0.5,
        "tracking": draw.random() < 0.5,
        "momentum": draw.choice([0.1, 0.9, 0.0, 1.0]),
        "runningMean": numbers(channels),
        "runningVar": numbers(channels, 0.1, 3.0),
        "meanWeight": numbers(3),
        "varWeight": numbers(3),
    }
    x = [draw.gauss(centre, width) for _ in range(math.prod(shape))]
    return {
        "setting": setting,
        "x": x,
        "plane": [draw.randrange(shape[0]), draw.randrange(channels)],
    }


def library_layer(setting):
    """Layer of the library for a setting of the page, in float64."""
    name, (_, channels, *size), eps = setting["layer"], setting["shape"], setting["eps"]
    momentum, tracking = setting["momentum"], setting["tracking"]
    options = {"momentum": momentum, "affine": True, "track_running_stats": tracking}
    if name in ("instance", "batch"):
        make = {"instance": momentnorm.InstanceNorm2d, "batch": momentnorm.BatchNorm2d}[name]
        layer = make(channels, eps, **options)
    elif name == "group":
        layer = momentnorm.GroupNorm(setting["groups"], channels, eps)
    elif name == "switchable":
        layer = momentnorm.SwitchableNorm2d(channels, eps, momentum)
    else:
        make = {"layer": momentnorm.LayerNorm, "rms": momentnorm.RMSNorm}[name]
        layer = make((channels, *size), eps)
    layer = layer.double().train(setting["training"])
    values = {
        "weight": setting["weight"],
        "bias": setting["bias"],
        "running_mean": setting["runningMean"],
        "running_var": setting["runningVar"],
        "mean_weight": setting["meanWeight"],
        "var_weight": setting["varWeight"],
    }
    with torch.no_grad():
        for key, tensor in layer.state_dict().items():
            if key in values:
                value = torch.tensor(values[key], dtype=torch.float64)
                if name in ("layer", "rms"):  # a weight per channel, not per element
                    value = value.view(-1, 1, 1).expand(tensor.shape)
                tensor.copy_(value.view(tensor.shape) if name == "switchable" else value)
    return layer


def assert_close(found, expected, amplified=1.0):
    """Compare up to rounding errors, relative to ``amplified``, the largest intermediate value."""
    expected = expected.detach().flatten()
    found = torch.tensor(found, dtype=torch.float64)
    largest = max(expected.abs().max().item(), amplified)
    bound = ULPS * torch.finfo(torch.float64).eps * largest
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
