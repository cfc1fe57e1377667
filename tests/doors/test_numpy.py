"""``momentnorm.numpy`` against the tutorials' digits and the formulas in float64."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import momentnorm.numpy as mn

EXAMPLES = json.loads((Path(__file__).parents[1] / "data/published_examples.json").read_text())

#: Roundings of the dtype, relative to the largest value.
UNITS = {np.float16: 1, np.float32: 8, np.float64: 64}


def formula(x, axes, eps=1e-5):
    x = x.astype(np.float64)
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + eps)


def assert_within(y, expected):
    assert y.shape == expected.shape
    largest = max(np.abs(expected).max(), 1)
    atol = UNITS[y.dtype.type] * np.finfo(y.dtype).eps * largest
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=0, atol=atol)


def published(example, axis):
    """The example by the function of its layer, with the channels on this axis."""
    arguments = example["layer"]
    x = np.array(example["input"], np.float32)
    if arguments["type"] == "LayerNorm":
        return mn.layer_norm(x, axis=range(-len(arguments["normalized_shape"]), 0))
    x = np.moveaxis(x, 1, axis)
    affine = [arguments.get(name) for name in ("weight", "bias")]
    if arguments["type"] == "GroupNorm":
        y = mn.group_norm(x, *affine, num_groups=arguments["num_groups"], axis=axis)
    elif arguments["type"] == "BatchNorm2d":
        y = mn.batch_norm(x, *affine, axis=axis)
    else:
        y = mn.instance_norm(x, *affine, axis=axis)
    return np.moveaxis(y, axis, 1)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("example", EXAMPLES["examples"], ids=lambda example: example["name"])
def test_published_digits(example, axis):
    y = published(example, axis)
    np.testing.assert_allclose(y, example["expected"], rtol=0, atol=example["atol"])


def test_published_statistics():
    example = next(example for example in EXAMPLES["examples"] if "mean" in example)
    mean, var = mn.moments(example["input"])
    for found, name in ((mean, "mean"), (var, "var"), (np.sqrt(var), "std")):
        np.testing.assert_allclose(found, example[name], rtol=0, atol=5e-5)


SHAPES = {1: (3, 6, 4, 5), 2: (3, 4, 6, 5), -1: (3, 4, 5, 6)}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_each_function_is_its_formula(axis, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, SHAPES[axis]).astype(dtype)
    gamma, beta = rng.normal(1, 0.5, (2, 6)).astype(dtype)
    front = np.moveaxis(x.astype(np.float64), axis, 1)

    def affine(x_hat):
        scaled = x_hat * gamma[:, None, None].astype(np.float64) + beta[:, None, None]
        return np.moveaxis(scaled, 1, axis)

    groups = formula(front.reshape(3, 2, 3, 4, 5), (2, 3, 4)).reshape(3, 6, 4, 5)
    assert_within(mn.instance_norm(x, gamma, beta, axis=axis), affine(formula(front, (2, 3))))
    assert_within(mn.batch_norm(x, gamma, beta, axis=axis), affine(formula(front, (0, 2, 3))))
    assert_within(mn.group_norm(x, gamma, beta, num_groups=2, axis=axis), affine(groups))
    sums = front.sum((2, 3), keepdims=True)
    assert_within(mn.contrast_norm(x, axis=axis), np.moveaxis(front / sums, 1, axis))
    over = tuple(range(1, 4))
    for given in (None, over):
        assert_within(mn.layer_norm(x, axis=given), formula(x, over))
    mean, var = mn.moments(x, axis=axis)
    np.testing.assert_allclose(mean, front.mean((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(var, front.var((2, 3)), rtol=1e-6)


def test_switchable_norm_mixes_moments():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (3, 4, 5, 6))
    w_mean, w_var = [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]
    axes = (2, 3), (1, 2, 3), (0, 2, 3)
    mean = sum(w * x.mean(axis, keepdims=True) for w, axis in zip(w_mean, axes, strict=True))
    var = sum(w * x.var(axis, keepdims=True) for w, axis in zip(w_var, axes, strict=True))
    expected = (x - mean) / np.sqrt(var + 1e-5)
    assert_within(mn.switchable_norm(x, None, None, w_mean, w_var), expected)
    last = mn.switchable_norm(np.moveaxis(x, 1, -1), None, None, w_mean, w_var, axis=-1)
    assert_within(np.moveaxis(last, -1, 1), expected)


@pytest.mark.parametrize("axis", [0, 1, (0, 2), (-1, 1), [1, 2]])
def test_layer_norm_over_any_axes(axis):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (3, 4, 5)).astype(np.float32)
    axes = tuple(np.atleast_1d(axis))
    sizes = [x.shape[i] for i in sorted(i % 3 for i in axes)]
    gamma, beta = rng.normal(size=(2, *sizes)).astype(np.float32)
    shape = [x.shape[i] if i in {i % 3 for i in axes} else 1 for i in range(3)]
    expected = formula(x, axes) * gamma.reshape(shape) + beta.reshape(shape)
    assert_within(mn.layer_norm(x, gamma, beta, axis=axis), expected)
    assert_within(mn.layer_norm(x, gamma.reshape(shape), beta.reshape(shape), axis=axis), expected)


def test_a_large_mean_costs_no_digits():
    x = np.random.default_rng(0).normal(1000, 0.01, (2, 3, 40, 40)).astype(np.float32)
    assert_within(mn.instance_norm(x), formula(x, (2, 3)))
    assert_within(mn.layer_norm(x), formula(x, (1, 2, 3)))
    assert not mn.instance_norm(np.full((1, 1, 9, 9), 255, np.float32)).any()


def test_running_statistics_move_in_place():
    x = np.random.default_rng(0).normal(3, 2, (4, 2, 5))
    mean, var = np.zeros(2), np.ones(2)
    y = mn.batch_norm(x, running_mean=mean, running_var=var, training=True, momentum=0.25)
    assert_within(y, formula(x, (0, 2)))
    np.testing.assert_allclose(mean, 0.25 * x.mean((0, 2)))
    np.testing.assert_allclose(var, 0.75 + 0.25 * x.var((0, 2), ddof=1))
    y = mn.batch_norm(x, running_mean=mean, running_var=var)
    assert_within(y, (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5))


def test_channels_last_is_not_copied(monkeypatch):
    x = np.random.default_rng(0).normal(size=(2, 8, 9, 5)).astype(np.float32)
    read = []
    instance_norm = mn.functional.instance_norm

    def recorded(features, **options):
        read.append(features.data_ptr())
        return instance_norm(features, **options)

    monkeypatch.setattr(mn.functional, "instance_norm", recorded)
    y = mn.instance_norm(x, axis=-1)
    assert read == [x.ctypes.data]
    assert y.flags.c_contiguous


class Foreign:
    """An array of another library: all that it has is DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def unusual_arrays():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    frozen, record = x.copy(), np.zeros(x.shape, [("a", "i1"), ("x", "f4")])
    frozen.flags.writeable = False
    record["x"] = x
    yield "list", x, x.tolist()
    yield "read-only", x, frozen
    yield "reversed", x[:, :, ::-1], x[:, :, ::-1]
    yield "big-endian", x, x.astype(">f4")
    yield "a field", x, record["x"]
    yield "strided", x[:, :, ::2], x[:, :, ::2]
    yield "tensor", x, torch.tensor(x, requires_grad=True)
    yield "dlpack", x, Foreign(x)


@pytest.mark.parametrize(
    ("x", "given"), [pytest.param(x, given, id=name) for name, x, given in unusual_arrays()]
)
def test_what_is_taken_for_an_array(x, given):
    y = mn.instance_norm(given)
    assert type(y) is np.ndarray
    np.testing.assert_allclose(y, formula(x, 2), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_are_computed_in_float64(dtype):
    x = np.arange(6).reshape(1, 1, 6).astype(dtype)
    y = mn.instance_norm(x)
    assert_within(y, formula(x, 2))
    assert y.dtype == np.float64
    assert mn.instance_norm(torch.arange(6).reshape(1, 1, 6)).dtype == np.float64


def test_empty_batches():
    assert mn.instance_norm(np.zeros((0, 3, 4))).shape == (0, 3, 4)
    assert mn.layer_norm(np.zeros((0, 3, 4))).shape == (0, 3, 4)


X = np.zeros((2, 4, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mn.instance_norm(X[0]), ValueError, r"x has 2 axes, shape (4, 3), and needs"),
        (lambda: mn.instance_norm(X[:, :, :1]), ValueError, "one element for each sample"),
        (lambda: mn.instance_norm(X, axis=3), np.exceptions.AxisError, "out of bounds"),
        (lambda: mn.instance_norm(X, axis=0), np.exceptions.AxisError, "has the samples"),
        (lambda: mn.instance_norm(X, [1, 2]), ValueError, "gamma of shape (2,) could not be broad"),
        (lambda: mn.instance_norm(X, None, [1, 2, 3]), ValueError, "pass (4,) or (1, 4, 1)"),
        (lambda: mn.instance_norm(X.astype(complex)), TypeError, "x has dtype complex128"),
        (lambda: mn.instance_norm(X.astype(np.longdouble)), TypeError, "x.astype('float32')"),
        (lambda: mn.instance_norm(torch.zeros(1, 1, 2).bfloat16()), TypeError, "dtype bfloat16"),
        (lambda: mn.instance_norm(np.array([["a"]])), TypeError, "x has dtype <U1"),
        (lambda: mn.group_norm(X, num_groups=3), ValueError, "does not divide the 4 channels"),
        (lambda: mn.group_norm(X, num_groups=0), ValueError, "num_groups=0 does not divide"),
        (lambda: mn.layer_norm(X, axis=(1, -2)), ValueError, "names one axis twice"),
        (lambda: mn.layer_norm(X, axis=-4), np.exceptions.AxisError, "out of bounds"),
        (lambda: mn.layer_norm(X[0, 0]), ValueError, "has no axis to normalize"),
        (lambda: mn.layer_norm(X, np.ones(2)), ValueError, "the normalized axes, (4, 3)"),
        (lambda: mn.batch_norm(X, running_mean=np.zeros(4)), ValueError, "go together"),
        (
            lambda: mn.batch_norm(X, running_mean=[0] * 4, running_var=np.ones(4)),
            ValueError,
            "running_mean should be a writeable NumPy array of floats with shape (4,)",
        ),
        (lambda: mn.switchable_norm(X, w_var=[1, 0]), ValueError, "w_var should be three numbers"),
    ],
)
def test_errors_are_numpys(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
