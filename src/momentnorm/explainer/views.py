"""Views: an input of any shape as a grid of planes, (N, C, *S), and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

_SPATIAL: dict[int, tuple[str, ...]] = {0: (), 1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


def spatial_axes(count: int) -> tuple[str, ...]:
    """Names of ``count`` spatial axes."""
    return _SPATIAL.get(count) or tuple(f"S{axis}" for axis in range(1, count + 1))


def axes_of(x: Tensor) -> tuple[str, ...]:
    """Names of the axes of a feature map."""
    return ("N", "C", *spatial_axes(x.dim() - 2))[: x.dim()]


@dataclass(frozen=True, eq=False)
class View:
    """Functions between the shape of an input and a grid of planes.

    Args:
        planes: reshapes the input, or a tensor of its shape, to (N, C, *S).
        full: reshapes (N, C, *S) back to the shape of the input.
        grid: reshapes values of planes, (N, C), to the axes that the input has.
        axes: names of the axes of the input.
        grid_axes: names of the axes of the result of ``grid``.
        note: a sentence for the reader about the view, or "".
        of: the word for a plane in formulas: "plane" or "row".
    """

    planes: Callable[[Tensor], Tensor]
    full: Callable[[Tensor], Tensor]
    grid: Callable[[Tensor], Tensor]
    axes: tuple[str, ...]
    grid_axes: tuple[str, ...]
    note: str = ""
    of: str = "plane"


def _unchanged(values: Tensor) -> Tensor:
    return values


def feature_map(x: Tensor) -> View:
    """View of a feature map (N, C, *S), which is a grid of planes already."""
    return View(_unchanged, _unchanged, _unchanged, axes_of(x), ("N", "C"))


def unbatched(x: Tensor) -> View:
    """View of one sample (C, *S)."""

    def squeeze(values: Tensor) -> Tensor:
        return values.squeeze(0)

    axes = ("C", *spatial_axes(x.dim() - 1))
    note = "The input has no batch: it is one sample."
    return View(lambda values: values.unsqueeze(0), squeeze, squeeze, axes, ("C",), note)


def batch_of_vectors(x: Tensor) -> View:
    """View of vectors (N, C) for statistics over N: one sample, a plane of N elements a channel."""
    return View(
        lambda values: values.t().unsqueeze(0),
        lambda values: values.squeeze(0).t(),
        lambda values: values.squeeze(0),
        ("N", "C"),
        ("C",),
        "A batch of vectors is seen as one sample: its planes are the channels, and the elements "
        "of a plane are the batch.",
    )


def points(x: Tensor) -> View:
    """View of vectors (N, C) for statistics over C: planes of one element."""
    return View(
        lambda values: values.unsqueeze(2),
        lambda values: values.squeeze(2),
        _unchanged,
        ("N", "C"),
        ("N", "C"),
        "Each plane has one element here, so the elements themselves are pooled.",
    )


def rows(x: Tensor, dimensions: int) -> View:
    """View for statistics over the last axes: each index of the first axes has one row.

    Args:
        x: the input.
        dimensions: how many axes a row has.
    """
    leading, row = x.shape[: x.dim() - dimensions], x.shape[x.dim() - dimensions :]
    axes = axes_of(x)
    return View(
        lambda values: values.reshape(1, -1, *row),
        lambda values: values.reshape(x.shape),
        lambda values: values.reshape(leading),
        axes,
        axes[: len(leading)],
        of="row",
    )
