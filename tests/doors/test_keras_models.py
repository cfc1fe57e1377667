"""Models and files of ``momentnorm.keras``: training, serialization, TensorFlow Addons."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from support.keras_cases import (
    IGNORED_WARNING,
    NAMES,
    array,
    assert_within,
    group_formula,
    keras,
    mk,
)

pytestmark = IGNORED_WARNING


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
