"""Keras' normalization layers against ours, under the torch backend.

Run it as ``KERAS_BACKEND=torch python -m benchmarks.keras_layers``: it prints the table of
``docs/keras.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import torch

import momentnorm.keras as ours

from .timing import interleaved

#: (N, H, W, C)
SHAPES = ((8, 64, 64, 64), (4, 128, 128, 32), (8, 28, 28, 128), (16, 8, 8, 512))

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GroupNormalization(-1)": ("GroupNormalization", {"groups": -1}),
    "GroupNormalization(8)": ("GroupNormalization", {"groups": 8}),
    "BatchNormalization": ("BatchNormalization", {}),
    "LayerNormalization": ("LayerNormalization", {}),
}


def rows() -> Iterator[str]:
    """One line of the table for each layer and shape."""
    yield (
        "| layer | input (N, H, W, C) | forward (us) | Keras (us) | faster "
        "| fit step (ms) | Keras (ms) | faster |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for label, (name, options) in LAYERS.items():
        for shape in SHAPES:
            forward = interleaved(_forward(name, options, shape))
            step = interleaved(_step(name, options, shape))
            yield (
                f"| {label} | {'x'.join(map(str, shape))} "
                f"| {forward['ours'] * 1e6:.0f} | {forward['keras'] * 1e6:.0f} "
                f"| {forward['keras'] / forward['ours']:.1f}x "
                f"| {step['ours'] * 1e3:.1f} | {step['keras'] * 1e3:.1f} "
                f"| {step['keras'] / step['ours']:.1f}x |"
            )


def _layers(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "keras": getattr(keras.layers, name)(**options),
        "ours": getattr(ours, name)(**options),
    }


def _forward(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """A call of each layer, in training mode and without gradients."""
    x = torch.randn(shape)
    training = {"training": True} if name == "BatchNormalization" else {}

    def call(layer: Any) -> Any:
        with torch.no_grad():
            return layer(x, **training)

    return {key: lambda layer=layer: call(layer) for key, layer in _layers(name, options).items()}


def _step(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """A step of ``fit`` of a 1x1 convolution, the layer and ReLU, three times over."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y = np.zeros((shape[0], 1), np.float32)
    calls = {}
    for key in ("keras", "ours"):
        stack: list[Any] = [keras.Input(shape[1:])]
        for _ in range(3):
            layer = _layers(name, options)[key]
            stack += [keras.layers.Conv2D(shape[3], 1), layer, keras.layers.ReLU()]
        stack += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)]
        model = keras.Sequential(stack)
        model.compile("sgd", "mse")
        calls[key] = lambda model=model: model.train_on_batch(x, y)
    return calls


if __name__ == "__main__":
    for line in rows():
        print(line, flush=True)
