"""Keras 3 layers on the kernels, and a door for models of TensorFlow Addons.

:class:`GroupNormalization`, :class:`LayerNormalization` and :class:`BatchNormalization` are
subclasses of Keras' own: same constructor, weights and ``get_config``.
:class:`InstanceNormalization` is ``GroupNormalization(groups=-1)`` under the name that it has in
TensorFlow Addons.

The kernels serve where Keras runs on torch (``KERAS_BACKEND=torch``). With another backend, and for
what no kernel takes, each layer does Keras' own computation.
"""

from importlib.util import find_spec

if not find_spec("keras"):
    raise ImportError(
        "momentnorm.keras needs Keras 3: pip install 'momentnorm[keras]'", name="keras"
    )

from .layers import (
    BatchNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
)
from .models import accelerate, register_addons, restore

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "accelerate",
    "register_addons",
    "restore",
]
