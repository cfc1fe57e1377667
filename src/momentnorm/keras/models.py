"""Models that are already there: their layers' classes, and files of TensorFlow Addons."""

from __future__ import annotations

from typing import Any

import keras

from .layers import (
    BatchNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
)

#: Each class of Keras, and ours.
_PAIRS = {
    keras.layers.GroupNormalization: GroupNormalization,
    keras.layers.LayerNormalization: LayerNormalization,
    keras.layers.BatchNormalization: BatchNormalization,
}
_BACK = {ours: theirs for theirs, ours in _PAIRS.items()} | {
    InstanceNormalization: keras.layers.GroupNormalization
}


def accelerate(model: Any) -> list[str]:
    """Give Keras' normalization layers in a model, or a layer, our classes.

    The layers stay the same objects, with their weights, names and connections. Subclasses of
    Keras' layers are left alone.

    Args:
        model: a model or a layer of Keras.

    Returns:
        the names of the layers that were changed.

    >>> model = keras.Sequential([keras.layers.GroupNormalization(2, name="norm")])
    >>> accelerate(model)
    ['norm']
    >>> isinstance(model.layers[0], GroupNormalization)
    True
    """
    return _change(model, _PAIRS)


def restore(model: Any) -> list[str]:
    """Give our layers in a model, or a layer, Keras' classes: the reverse of :func:`accelerate`.

    A file that is saved afterwards opens where momentnorm is not installed.
    :class:`InstanceNormalization` becomes Keras' ``GroupNormalization`` with a group for each
    channel.

    Args:
        model: a model or a layer of Keras.

    Returns:
        the names of the layers that were changed.

    >>> model = keras.Sequential([InstanceNormalization(name="norm")])
    >>> restore(model)
    ['norm']
    >>> type(model.layers[0]) is keras.layers.GroupNormalization
    True
    """
    return _change(model, _BACK)


def _change(model: Any, classes: dict[Any, Any]) -> list[str]:
    changed = []
    for layer in model._flatten_layers():
        wanted = classes.get(type(layer))
        if wanted is not None:
            object.__setattr__(layer, "__class__", wanted)
            changed.append(layer.name)
    return changed


#: The options of a layer of TensorFlow Addons.
_OPTIONS = {
    "groups",
    "axis",
    "epsilon",
    "center",
    "scale",
    *(
        f"{weight}_{kind}"
        for weight in ("beta", "gamma")
        for kind in ("initializer", "regularizer", "constraint")
    ),
}
#: The options of every layer of Keras 2.
_BASE = {"name", "trainable", "dtype", "batch_input_shape"}


class _AddonsGroupNormalization:
    """Stands for ``Addons>GroupNormalization`` while a file is read, and makes our layer."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        options = {"groups": 2, **_checked(config, "GroupNormalization")}
        return GroupNormalization.from_config(options)


class _AddonsInstanceNormalization:
    """Stands for ``Addons>InstanceNormalization`` while a file is read, and makes our layer."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        options = _checked(config, "InstanceNormalization")
        options.pop("groups", None)  # the number of channels
        return InstanceNormalization.from_config(options)


def _checked(config: dict[str, Any], name: str) -> dict[str, Any]:
    unknown = sorted(config.keys() - _OPTIONS - _BASE)
    if unknown:
        raise ValueError(
            f"Addons>{name} in this file has options that TensorFlow Addons' layer did not have: "
            f"{', '.join(unknown)}; pass custom_objects={{'Addons>{name}': your class}} to load it"
        )
    return {key: value for key, value in config.items() if key != "batch_input_shape"}


def register_addons() -> None:
    """Let Keras load files with ``Addons>InstanceNormalization`` and ``Addons>GroupNormalization``.

    The layers of TensorFlow Addons become :class:`InstanceNormalization` and
    :class:`GroupNormalization`, with their weights. It works for ``.h5`` and ``.keras`` files and
    for ``keras.models.model_from_json``. Keras 3 reads no SavedModel folders.

    >>> register_addons()
    >>> layer = {"class_name": "Addons>InstanceNormalization", "config": {"groups": 3, "axis": 1}}
    >>> keras.layers.deserialize(layer).axis
    1
    """
    objects = keras.saving.get_custom_objects()
    objects["Addons>GroupNormalization"] = _AddonsGroupNormalization
    objects["Addons>InstanceNormalization"] = _AddonsInstanceNormalization
