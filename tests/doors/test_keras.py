"""``momentnorm.keras`` against the formulas in float64, and against Keras' own layers."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest
import torch

keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip(
        f"Keras runs on {keras.backend.backend()}, and the kernels serve torch alone",
        allow_module_level=True,
    )

mk = pytest.importorskip("momentnorm.keras")

# Keras hands torch's tensors to NumPy, which wants a keyword that they do not take.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EXAMPLES = json.loads((Path(__file__).parents[1] / "data/published_examples.json").read_text())

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


# Models and files.


def model(module, **groups):
    instance = (
        mk.InstanceNormalization(name="instance")
        if module is mk
        else keras.layers.GroupNormalization(-1, name="instance")
    )
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="conv"),
            module.BatchNormalization(name="batch"),
            instance,
            module.GroupNormalization(2, gamma_regularizer="l2", name="group"),
            keras.layers.Conv2D(4, 3, name="conv_2"),
            module.LayerNormalization(axis=[1, 2, 3], name="layer"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(1, name="dense"),
        ]
    )


def test_fit_learns_what_keras_learns():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8, 8, 3)).astype(np.float32), rng.normal(size=(16, 1))
    found = []
    keras.utils.set_random_seed(0)
    start = model(keras.layers).get_weights()
    for module in (keras.layers, mk):
        network = model(module)
        network.set_weights(start)
        network.compile(keras.optimizers.SGD(0.05), "mse")
        network.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        found.append([*network.get_weights(), network.predict(x, verbose=0)])
    assert len(start) == len(found[0]) - 1
    for theirs, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_files_go_both_ways(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    network = model(mk)
    y = array(network(x))
    network.save(tmp_path / "ours.keras")
    again = keras.saving.load_model(tmp_path / "ours.keras")
    np.testing.assert_array_equal(array(again(x)), y)
    assert [type(layer) for layer in again.layers] == [type(layer) for layer in network.layers]

    names = ["batch", "instance", "group", "layer"]
    assert mk.restore(again) == names
    again.save(tmp_path / "theirs.keras")
    theirs = keras.saving.load_model(tmp_path / "theirs.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in theirs.layers)
    np.testing.assert_allclose(array(theirs(x)), y, atol=1e-5)

    assert mk.accelerate(theirs) == names
    np.testing.assert_array_equal(array(theirs(x)), y)
    assert mk.accelerate(theirs) == []


@pytest.mark.parametrize("name", [*NAMES, "InstanceNormalization"])
def test_configurations_are_keras_own(name):
    options = {"axis": 1, "epsilon": 0.5, "gamma_regularizer": "l2", "beta_constraint": "non_neg"}
    if name == "GroupNormalization":
        options["groups"] = 2
    layer = getattr(mk, name)(**options, name="norm")
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    theirs = getattr(keras.layers, name.replace("Instance", "Group"))
    assert set(theirs().get_config()) - set(layer.get_config()) <= {"groups"}
    assert layer.supports_masking
    layer.build((2, 4, 5))
    assert [weight.name for weight in layer.weights][:2] == ["gamma", "beta"]
    assert len(layer.losses) == 1
    assert layer.compute_output_shape((2, 4, 5)) == (2, 4, 5)


def addons_layer(kind, name, **options):
    """A layer in the configuration of a Keras 2 model."""
    config = {
        "name": name, "trainable": True, "dtype": "float32", "axis": -1, "epsilon": 0.01,
        "center": True, "scale": True,
        "beta_initializer": {"class_name": "Zeros", "config": {}},
        "gamma_initializer": {"class_name": "Ones", "config": {}},
        "beta_regularizer": None, "gamma_regularizer": None,
        "beta_constraint": None, "gamma_constraint": None,
        **options,
    }  # fmt: skip
    return {"class_name": f"Addons>{kind}", "config": config}


def addons_file(path, layers, weights):
    """Write a model of Keras 2, input (4, 4, 6), as its ``model.save(path)`` did."""
    h5py = pytest.importorskip("h5py")
    first = {
        "batch_input_shape": [None, 4, 4, 6], "dtype": "float32", "sparse": False,
        "ragged": False, "name": "input_1",
    }  # fmt: skip
    entries = [{"class_name": "InputLayer", "config": first}, *layers]
    model_config = {
        "class_name": "Sequential",
        "config": {"name": "sequential", "layers": entries},
    }
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = "tensorflow"
        file.attrs["keras_version"] = "2.11.0"
        file.attrs["model_config"] = json.dumps(model_config)
        group = file.create_group("model_weights")
        names = [layer["config"]["name"] for layer in layers]
        group.attrs["layer_names"] = [name.encode() for name in names]
        for name, values in zip(names, weights, strict=True):
            members = group.create_group(name)
            stored = [f"{name}/{key}:0" for key in values]
            members.attrs["weight_names"] = [entry.encode() for entry in stored]
            for entry, value in zip(stored, values.values(), strict=True):
                members[entry] = value


def test_files_of_tensorflow_addons(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (2, 4, 4, 6)).astype(np.float32)
    gamma, beta, shift = rng.uniform(0.5, 1.5, (3, 6)).astype(np.float32)
    file = tmp_path / "model.h5"
    described = [
        addons_layer("InstanceNormalization", "instance_normalization", groups=6),
        addons_layer("GroupNormalization", "group_normalization", groups=3, scale=False),
    ]
    addons_file(file, described, [{"gamma": gamma, "beta": beta}, {"beta": shift}])
    mk.register_addons()
    network = keras.saving.load_model(file, compile=False)
    assert [type(layer) for layer in network.layers] == [
        mk.InstanceNormalization,
        mk.GroupNormalization,
    ]
    first = group_formula(x, 6, -1, 0.01) * gamma + beta
    assert_within(network(x), group_formula(first, 3, -1, 0.01) + shift, units=16)
    network.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(again(x)), array(network(x)))


def test_a_keras_file_of_tensorflow_addons(tmp_path):
    """The .keras files of Keras 2.12 and later name the class and its package."""
    mk.register_addons()
    entry = addons_layer("InstanceNormalization", "norm", groups=6, axis=1)
    entry = {
        "module": "tensorflow_addons.layers.normalizations",
        "class_name": "InstanceNormalization",
        "registered_name": "Addons>InstanceNormalization",
        "config": entry["config"],
        "build_config": {"input_shape": [None, 6, 5]},
    }
    layer = keras.saving.deserialize_keras_object(entry)
    assert type(layer) is mk.InstanceNormalization
    assert layer.gamma.shape == (6,)


def test_options_that_addons_did_not_have():
    mk.register_addons()
    entry = addons_layer("InstanceNormalization", "norm", flavour="sweet")
    with pytest.raises(ValueError, match="did not have: flavour; pass custom_objects") as caught:
        keras.layers.deserialize(entry)
    assert "\n" not in re.split("Addons>", str(caught.value), maxsplit=1)[1]
