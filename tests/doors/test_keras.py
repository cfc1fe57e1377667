"""Layers of ``momentnorm.keras`` against the formulas in float64, and against Keras' own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from support.keras_cases import (
    IGNORED_WARNING,
    NAMES,
    array,
    assert_within,
    formula,
    group_formula,
    keras,
    mk,
    with_weights,
)

pytestmark = IGNORED_WARNING

EXAMPLES = json.loads((Path(__file__).parents[1] / "data/published_examples.json").read_text())


# Group and Instance Normalization, on the shapes, axes and groups that TensorFlow Addons tests.


@pytest.mark.parametrize(
    ("shape", "axis", "groups"),
    [
        *(((10, 100), 1, groups) for groups in (-1, 1, 2, 5)),
        *(((10, 30, 30, 3), axis, groups) for axis in (1, 2, 3) for groups in (-1, 1, 3)),
        *(((2, 4, 5, 6), axis, 2) for axis in (-1, -3)),
        *(((2, 3, 4, 5, 6), axis, 3) for axis in (1, 4)),
        ((4, 60, 40, 24), -1, 3),
    ],
)
def test_groups_are_the_formula(shape, axis, groups):
    x = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
    whole = shape[axis] if groups == -1 else groups
    expected = group_formula(x, whole, axis, 1e-5)
    to_axis = [1] * len(shape)
    to_axis[axis] = shape[axis]
    for center, scale in itertools.product((True, False), repeat=2):
        layer = mk.GroupNormalization(groups, axis, 1e-5, center=center, scale=scale)
        layer, gamma, beta = with_weights(layer, x)
        gamma, beta = (v if np.ndim(v) == 0 else v.reshape(to_axis) for v in (gamma, beta))
        assert_within(layer(x), expected * gamma + beta)
        assert len(layer.trainable_weights) == center + scale


@pytest.mark.parametrize("axis", [1, -1])
def test_instance_normalization_is_a_group_for_each_channel(axis):
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    layer = mk.InstanceNormalization(axis=axis)
    assert_within(layer(x), group_formula(x, x.shape[axis], axis, 1e-3))
    assert isinstance(layer, keras.layers.GroupNormalization)
    assert "groups" not in layer.get_config()


def test_groups_of_one_value_are_beta():
    layer = mk.GroupNormalization(-1, beta_initializer="ones")
    x = torch.tensor([[7.0, 8.0, torch.nan]], requires_grad=True)
    y = layer(x)
    np.testing.assert_array_equal(array(y), [[1, 1, np.nan]])
    (gradient,) = torch.autograd.grad(y[0, :2].sum(), x)
    assert gradient.tolist() == [[0, 0, 0]]


def test_samples_do_not_depend_on_their_batch():
    x = np.random.default_rng(0).uniform(size=(4, 60, 40, 24)).astype(np.float32)
    layer = mk.GroupNormalization(groups=3)
    alone = np.concatenate([array(layer(x[i : i + 1])) for i in range(4)])
    np.testing.assert_array_equal(array(layer(x)), alone)


@pytest.mark.parametrize(
    ("layer", "x", "expected"),
    [
        (
            {"groups": 4},
            [[[-1, 1, 0, 2], [1, 3, -4, -2]]],
            [[[-1, -1, 1, 1], [1, 1, -1, -1]]],
        ),
        (
            {"groups": 1},
            [[-1, -1, 1, 1, 2, 2, 0, -2]],
            [[-0.898, -0.898, 0.539, 0.539, 1.257, 1.257, -0.180, -1.616]],
        ),
        (
            {"groups": 2, "axis": 1},
            [[-1, -1, 1, 1, 2, 2, 0, -2]],
            [[-1, -1, 1, 1, 0.904, 0.904, -0.301, -1.507]],
        ),
        (
            {"groups": 2, "axis": 2},
            [[[-1, -1, 2, 2], [1, 1, 0, -2]]],
            [[[-1, -1, 0.904, 0.904], [1, 1, -0.301, -1.507]]],
        ),
        (
            {"groups": 2, "axis": 1},
            np.arange(16).reshape(1, 4, 2, 2),
            np.tile([-1.5274, -1.0910, -0.6546, -0.2182, 0.2182, 0.6546, 1.0910, 1.5274], 2),
        ),
    ],
)
def test_values_that_keras_tests(layer, x, expected):
    y = mk.GroupNormalization(**layer, scale=False, center=False)(np.array(x, np.float32))
    np.testing.assert_allclose(array(y), np.reshape(expected, y.shape), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.GroupNormalization(5)(np.ones((2, 2, 4))), "more than the number of channels"),
        (lambda: mk.GroupNormalization(3)(np.ones((2, 2, 4))), "multiple of the number"),
        (lambda: mk.GroupNormalization(0), "argument `groups`"),
        (
            lambda: mk.GroupNormalization()(keras.Input((2, None))),
            "should have a defined",
        ),
        (lambda: mk.InstanceNormalization(axis=0), "axis=0 has the samples"),
    ],
)
def test_bad_groups(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Layer Normalization.


@pytest.mark.parametrize("axis", [-1, 1, 2, [1, 2], [2, 3], [-1, 1], [-1, -2], [1, 2, 3], [0, 2]])
def test_layer_normalization_is_the_formula(axis):
    x = np.random.default_rng(0).normal(2, 3, (3, 4, 4, 4)).astype(np.float32)
    layer, gamma, beta = with_weights(mk.LayerNormalization(axis, epsilon=1e-5), x)
    given = [i % 4 for i in np.atleast_1d(layer.axis)]
    order = [given.index(i) for i in sorted(given)]
    shape = [4 if i in given else 1 for i in range(4)]
    if 0 in given:
        shape[0] = 3
    gamma, beta = (v.transpose(order).reshape(shape) for v in (gamma, beta))
    axes = tuple(sorted(given))
    assert_within(layer(x), formula(x, axes, 1e-5) * gamma + beta, units=32)


def test_layer_normalization_over_one_value_is_beta():
    layer = mk.LayerNormalization(axis=1, beta_initializer="ones")
    np.testing.assert_array_equal(array(layer(np.full((2, 1, 3), 7.0, np.float32))), 1)


@pytest.mark.parametrize(
    ("options", "x", "expected"),
    [
        ({"beta_initializer": "ones"}, [[0, 1, 2, 3, 4]], [-0.41386, 0.29307, 1, 1.70693, 2.41386]),
        ({}, np.zeros((1, 0, 10)), []),
    ],
)
def test_values_of_layer_normalization(options, x, expected):
    y = array(mk.LayerNormalization(**options)(np.array(x, np.float32)))
    np.testing.assert_allclose(y.ravel(), expected, atol=1e-5)


# Batch Normalization.


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3), (5, 3, 3, 2)])
def test_batch_normalization_is_the_formula(shape, axis):
    x = np.random.default_rng(0).normal(5, 10, shape).astype(np.float32)
    axis %= len(shape)
    axes = tuple(i for i in range(len(shape)) if i != axis)
    layer = mk.BatchNormalization(axis=axis, momentum=0.75, moving_mean_initializer="ones")
    assert_within(layer(x, training=True), formula(x, axes, 1e-3))
    mean, var = 0.75 + 0.25 * x.mean(axes), 0.75 + 0.25 * x.var(axes)
    np.testing.assert_allclose(array(layer.moving_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(array(layer.moving_variance), var, rtol=1e-5)
    to_axis = [1] * len(shape)
    to_axis[axis] = -1
    mean, var = (array(v).reshape(to_axis) for v in (layer.moving_mean, layer.moving_variance))
    evaluated = layer(x, training=False)
    assert_within(evaluated, (x - mean.astype(float)) / np.sqrt(var + 1e-3))
    layer.trainable = False
    np.testing.assert_array_equal(array(layer(x, training=True)), array(evaluated))


@pytest.mark.parametrize(
    ("options", "shape", "call"),
    [
        ({"renorm": True}, (4, 3), {}),
        ({}, (4, 5, 3), {"mask": np.arange(20).reshape(4, 5) % 3 > 0}),
        ({}, (1, 3), {}),
        ({"epsilon": 0.0}, (4, 3), {}),
    ],
)
def test_what_is_keras_own_computation(options, shape, call):
    if "renorm" in options and "renorm" not in keras.layers.BatchNormalization().get_config():
        pytest.skip("this Keras has no renorm")
    x = np.random.default_rng(0).normal(5, 2, shape).astype(np.float32)
    found = []
    for module in (keras.layers, mk):
        layer = module.BatchNormalization(**options)
        call = {name: keras.ops.convert_to_tensor(value) for name, value in call.items()}
        y = layer(x, training=True, **call)
        found.append([array(y), *(array(weight) for weight in layer.weights)])
    for theirs, ours in zip(*found, strict=True):
        np.testing.assert_array_equal(theirs, ours)


# All of them.


def layers(module):
    """Layers of each class, from Keras or from here."""
    yield module.GroupNormalization(2)
    yield module.GroupNormalization(2, axis=1, scale=False)
    yield module.GroupNormalization(-1, center=False)
    yield module.LayerNormalization()
    yield module.LayerNormalization(axis=[1, 2, 3])
    yield module.BatchNormalization()
    yield module.BatchNormalization(axis=1, momentum=0.5)


@pytest.mark.parametrize("index", range(7))
def test_same_values_gradients_and_weights_as_keras(index):
    x = np.random.default_rng(0).normal(2, 3, (4, 6, 5, 8))
    dy = torch.tensor(np.random.default_rng(2).normal(size=x.shape))
    theirs, ours = (list(layers(module))[index] for module in (keras.layers, mk))
    theirs = type(theirs).from_config({**theirs.get_config(), "dtype": "float64"})
    call = {"training": True} if isinstance(ours, mk.BatchNormalization) else {}
    found = []
    for layer, dtype in ((theirs, torch.float64), (ours, torch.float32)):
        with_weights(layer, x.astype(np.float32), **call)
        input = torch.tensor(x, dtype=dtype, requires_grad=True)
        y = layer(input, **call)
        weights = [weight.value for weight in layer.trainable_weights]
        gradients = torch.autograd.grad(y, (input, *weights), dy.to(dtype))
        found.append([y, *gradients, *(weight.value for weight in layer.weights)])
    for expected, value in zip(*found, strict=True):
        assert_within(value, array(expected), units=64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("policy", "given"),
    [
        ("mixed_float16", "float32"),
        ("mixed_float16", "float16"),
        ("mixed_bfloat16", "bfloat16"),
        ("float32", "float64"),
        ("float64", "float64"),
        ("float32", "int32"),
    ],
)
def test_dtypes_are_those_of_keras(name, policy, given):
    x = np.random.default_rng(0).normal(5, 20, (3, 4, 32))
    x = keras.ops.cast(keras.ops.convert_to_tensor(x), given)
    theirs, ours = (getattr(module, name)(dtype=policy)(x) for module in (keras.layers, mk))
    assert ours.dtype == theirs.dtype
    # In float64 Keras 3.15 on torch has the digits of float32.
    units = 4 * max(torch.finfo(ours.dtype).eps, torch.finfo(torch.float32).eps)
    largest = theirs.detach().abs().max().item()
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=units * largest)


def test_float64_has_its_digits():
    x = np.random.default_rng(0).normal(5, 20, (3, 4, 32))
    x = keras.ops.cast(keras.ops.convert_to_tensor(x), "float64")
    expected = group_formula(array(x), 32, -1, 1e-3)
    assert_within(mk.InstanceNormalization(dtype="float64")(x), expected, units=64)


def test_no_overflow_in_half_precision():
    x = keras.ops.full((2, 4, 8), 70000.0)  # above float16
    y = mk.GroupNormalization(groups=2, dtype="mixed_float16")(x)
    np.testing.assert_array_equal(array(y), 0)


def hostile():
    """Inputs whose E[x^2] - E[x]^2 in float32 has no right digit. Keras 3.15 on torch fails."""
    rng = np.random.default_rng(0)
    yield "large mean", rng.normal(1000, 0.01, (2, 16, 16, 8)).astype(np.float32)
    yield "constant", np.full((2, 16, 16, 8), 255.3, np.float32)


@pytest.mark.parametrize("x", [pytest.param(x, id=name) for name, x in hostile()])
@pytest.mark.parametrize(
    ("name", "options", "axes"),
    [
        ("GroupNormalization", {"groups": -1}, (1, 2)),
        ("GroupNormalization", {"groups": 1, "axis": 1}, (1, 2, 3)),
        ("LayerNormalization", {"axis": 1}, (1,)),
        ("BatchNormalization", {}, (0, 1, 2)),
    ],
)
def test_digits_on_hostile_inputs(name, options, axes, x):
    expected = formula(x, axes, 1e-6)
    call = {"training": True} if name == "BatchNormalization" else {}
    assert_within(getattr(mk, name)(epsilon=1e-6, **options)(x, **call), expected)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("example", EXAMPLES["examples"], ids=lambda example: example["name"])
def test_published_digits(example, axis):
    arguments = example["layer"]
    kind = arguments["type"]
    x = np.array(example["input"], np.float32)
    if kind == "LayerNorm":
        over = list(range(-len(arguments["normalized_shape"]), 0))
        y = array(mk.LayerNormalization(over, epsilon=1e-5)(x))
    else:
        x = np.moveaxis(x, 1, axis)
        if kind == "BatchNorm2d":
            layer = mk.BatchNormalization(axis, epsilon=1e-5)
        elif kind == "GroupNorm":
            layer = mk.GroupNormalization(arguments["num_groups"], axis, epsilon=1e-5)
        else:
            layer = mk.InstanceNormalization(axis, epsilon=1e-5)
        layer.build(x.shape)
        for name, keras_name in (("weight", "gamma"), ("bias", "beta")):
            if name in arguments:
                getattr(layer, keras_name).assign(arguments[name])
        call = {"training": True} if kind == "BatchNorm2d" else {}
        y = np.moveaxis(array(layer(x, **call)), axis, 1)
    np.testing.assert_allclose(y, example["expected"], rtol=0, atol=example["atol"])


@pytest.mark.parametrize("axis", [1, -1])
def test_no_copy_and_no_other_computation(axis, monkeypatch):
    read = []
    group_norm = mk.layers.functional.group_norm

    def recorded(x, *operands):
        read.append(x.data_ptr())
        return group_norm(x, *operands)

    monkeypatch.setattr(mk.layers.functional, "group_norm", recorded)
    x = torch.randn(2, 4, 6, 8)
    y = mk.GroupNormalization(2, axis=axis)(x)
    assert read == [x.data_ptr()]
    assert y.is_contiguous()


@pytest.mark.parametrize("index", range(7))
def test_other_backends_do_keras_own_computation(index, monkeypatch):
    x = torch.randn(4, 6, 5, 8)
    theirs, ours = (list(layers(module))[index] for module in (keras.layers, mk))
    expected = theirs(x)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(mk.layers, "functional", None)
    assert torch.equal(ours(x), expected)
