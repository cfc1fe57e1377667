"""Keras on torch for tests: formulas in float64, and layers with filled weights."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip(
        f"Keras runs on {keras.backend.backend()}, and the kernels serve torch alone",
        allow_module_level=True,
    )

mk = pytest.importorskip("momentnorm.keras")

#: Keras hands torch's tensors to NumPy, which wants a keyword that they do not take.
IGNORED_WARNING = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

#: The layers whose names and arguments are those of Keras.
NAMES = ("GroupNormalization", "LayerNormalization", "BatchNormalization")


def array(values):
    return keras.ops.convert_to_numpy(getattr(values, "value", values))


def formula(x, axes, eps):
    x = np.asarray(x, np.float64)
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + eps)


def group_formula(x, groups, axis, eps):
    """Normalize groups of the channels on this axis, one sample at a time."""
    front = np.moveaxis(np.asarray(x, np.float64), axis, 1)
    grouped = front.reshape(len(x), groups, -1)
    return np.moveaxis(formula(grouped, 2, eps).reshape(front.shape), 1, axis)


def assert_within(y, expected, units=8):
    y = array(y)
    assert y.shape == expected.shape
    largest = max(np.abs(expected).max(), 1)
    atol = units * np.finfo(y.dtype).eps * largest
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=0, atol=atol)


def with_weights(layer, x, **call):
    """The layer, built, with weights that are neither 0 nor 1; and these as arrays."""
    layer(x, **call)
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    gamma, beta = (1.0 if v is None else array(v) for v in (layer.gamma, layer.beta))
    return layer, gamma, 0.0 if layer.beta is None else beta
