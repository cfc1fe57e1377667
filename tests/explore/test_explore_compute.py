"""Numbers of the page, on random settings, against the library's layers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from momentnorm.figure import figure
from support.explore_numbers import assert_close, library_layer, node, random_case

NORMALIZE = """
const { normalize, shares, updated, keepsRunning } = await load("compute");
const answers = cases.map(({ setting, x, plane }) => {
  try {
    const found = normalize(setting, Float64Array.from(x));
    const answer = { y: Array.from(found.y), shares: Array.from(shares(setting, ...plane)) };
    if (keepsRunning(setting)) answer.updated = updated(setting, found.planes);
    return answer;
  } catch (error) {
    return { field: error.field, message: error.message };
  }
});
console.log(JSON.stringify(answers));
"""


every_layer = pytest.mark.parametrize("layer", figure.KINDS)


@every_layer
def test_numbers_equal_the_librarys(layer):
    draw = random.Random(0)
    cases = [random_case(draw, layer) for _ in range(200)]
    with_running = 0
    for case, answer in zip(cases, node(NORMALIZE, cases), strict=True):
        setting = case["setting"]
        module = library_layer(setting)
        x = torch.tensor(case["x"], dtype=torch.float64).view(setting["shape"])
        smallest = (x.var((2, 3), correction=0).min() + setting["eps"]).sqrt()
        scale = max(map(abs, setting["weight"])) / smallest.item()
        assert_close(answer["y"], module(x), amplified=x.abs().max().item() * scale)
        if setting["training"] and getattr(module, "running_mean", None) is not None:
            with_running += 1
            assert_close(answer["updated"]["mean"], module.running_mean, x.abs().max().item())
            assert_close(answer["updated"]["var"], module.running_var)
    assert (with_running > 20) == (layer in ("instance", "batch", "switchable"))


@every_layer
def test_shares_equal_those_of_the_pools(layer):
    draw = random.Random(1)
    cases = [random_case(draw, layer) for _ in range(30)]
    for case in cases:
        case["setting"] |= {"training": True, "meanWeight": [1, 1, 1]}
    for case, answer in zip(cases, node(NORMALIZE, cases), strict=True):
        samples, channels, *_ = shape = case["setting"]["shape"]
        policy = figure.policy(layer, shape, case["setting"]["groups"])
        expected = figure.shares(policy, samples, channels, *case["plane"])
        assert_close(answer["shares"], expected)


@pytest.mark.parametrize(
    ("layer", "changes", "field"),
    [
        ("instance", {"shape": [2, 2, 1, 1]}, "shape"),
        ("batch", {"shape": [1, 2, 1, 1]}, "shape"),
        ("batch", {"eps": 0}, "eps"),
        ("batch", {"eps": -1, "training": False}, "eps"),
        ("group", {"shape": [2, 6, 2, 2], "groups": 4}, "groups"),
        ("group", {"shape": [1, 2, 1, 1], "groups": 2}, "shape"),
        ("switchable", {"shape": [2, 2, 1, 1]}, "shape"),
    ],
)
def test_refused_is_what_the_library_refuses(layer, changes, field):
    case = random_case(random.Random(2), layer)
    setting = case["setting"]
    setting |= {"training": True, "tracking": True, "shape": [2, 2, 2, 2], "groups": 2} | changes
    channels = setting["shape"][1]
    for name in ("weight", "bias", "runningMean", "runningVar"):
        setting[name] = [1.0] * channels
    case |= {"x": [1.0] * math.prod(setting["shape"]), "plane": [0, 0]}
    (answer,) = node(NORMALIZE, [case])
    assert answer["field"] == field
    with pytest.raises((ValueError, RuntimeError)):
        library_layer(setting)(torch.ones(setting["shape"], dtype=torch.float64))


@pytest.mark.parametrize(
    ("layer", "changes"),
    [
        ("instance", {"shape": [2, 2, 1, 1], "training": False}),
        ("batch", {"shape": [1, 2, 1, 1], "training": False}),
        ("layer", {"shape": [1, 1, 1, 1]}),
        ("rms", {"shape": [1, 2, 1, 1]}),
        ("group", {"shape": [2, 2, 1, 1], "groups": 2}),
        ("instance", {"eps": 0.0, "x": [3.0] * 16}),
    ],
)
def test_odd_but_allowed(layer, changes):
    case = random_case(random.Random(3), layer)
    setting = case["setting"]
    setting |= {"training": True, "tracking": True, "shape": [2, 2, 2, 2]} | changes
    for name in ("weight", "bias", "runningMean", "runningVar"):
        setting[name] = [2.0] * setting["shape"][1]
    case["x"] = setting.pop("x", [float(i) for i in range(math.prod(setting["shape"]))])
    case["plane"] = [0, 0]
    (answer,) = node(NORMALIZE, [case])
    x = torch.tensor(case["x"], dtype=torch.float64).view(setting["shape"])
    assert_close(answer["y"], library_layer(setting)(x), amplified=10)


def test_the_example_is_the_published_one():
    published = json.loads((Path(__file__).parents[1] / "data/published_examples.json").read_text())
    first = published["examples"][0]
    program = """
    const { EXAMPLE } = await load("state");
    const { moments } = await load("compute");
    const found = moments(Float64Array.from(EXAMPLE.x), EXAMPLE.shape);
    console.log(JSON.stringify([EXAMPLE, Array.from(found.mean), Array.from(found.var)]));
    """
    example, mean, variance = node(program, [])
    x = torch.tensor(example["x"]).view(example["shape"])
    assert x.tolist() == first["input"]
    assert mean == [value for row in first["mean"] for value in row] == [5.0, 13.5, 5.0, 15.5]
    assert variance == [value for row in first["var"] for value in row] == [8.5, 7.25, 6.5, 8.75]
