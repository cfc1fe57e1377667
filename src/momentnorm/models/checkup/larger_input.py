"""Larger input: search for an input size that gives planes of more than one value."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .call import Batch

if TYPE_CHECKING:
    from .report import Finding

#: Runs the model on other inputs.
Run = Callable[[Any], None]


def with_larger_input(finding: Finding, layer: nn.Module, inputs: Any, run: Run) -> Finding:
    """Add an input size that works to a "few-elements" error. Other findings stay unchanged.

    The search runs the model on one image of twice the size, then of four times the size.
    """
    images = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim() > 2]
    too_small = finding.kind == "few-elements" and finding.severity == "error"
    if not too_small or isinstance(layer, (Batch, nn.GroupNorm, nn.LayerNorm)) or len(images) != 1:
        return finding
    (image,) = images
    for times in (2, 4):
        larger = image.repeat(1, 1, *[times] * (image.dim() - 2))
        arrived = _arrived(layer, _replaced(inputs, image, larger), run)
        if arrived is None:
            return finding
        if math.prod(arrived[2:]) > 1:
            fix = f"an input of {tuple(larger.shape)}, {times} times as large, works"
            return dataclasses.replace(finding, fix=fix)
    return dataclasses.replace(
        finding,
        fix="a larger input does not help, since a module before this layer leaves one value, as a "
        "pooling does: remove the layer, or move it in front of that module",
    )


def _replaced(tree: Any, old: Tensor, new: Tensor) -> Any:
    """Copy of nested inputs with one tensor exchanged."""
    return tree_map(lambda leaf: new if leaf is old else leaf, tree)


def _arrived(layer: nn.Module, inputs: Any, run: Run) -> tuple[int, ...] | None:
    """Shape of the layer's input for these inputs of the model, or None if it is not called."""
    shapes: list[tuple[int, ...]] = []

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        shapes.append(tuple(args[0].shape))

    with layer.register_forward_pre_hook(note), contextlib.suppress(Exception):
        run(inputs)
    return shapes[0] if shapes else None
