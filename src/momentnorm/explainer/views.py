"""How a layer sees its input as a grid of planes, (N, C, *S), and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

_SPATIAL: dict[int, tuple[str, ...]] = {0: (), 1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


def spatial_axes(count: int) -> tuple[str, ...]:
    """The names of so many spatial axes."""
    return _SPATIAL.get(count) or tuple(f"S{axis}" for axis in range(1, count + 1))


def axes_of(x: Tensor) -> tuple[str, ...]:
    """The names of the axes of a feature map."""
    return ("N", "C", *spatial_axes(x.dim() - 2))[: x.dim()]


@dataclass(frozen=True, eq=False)
class View:
    """The input as planes, and back.

    Args:
        planes: the input (or what is shaped like it) as (N, C, *S).
        full: (N, C, *S) in the input's own shape.
        grid: what is there for each plane, (N, C), without axes that the input does not have.
        axes: the names of the input's axes.
        grid_axes: those of what ``grid`` returns.
        note: one sentence for the reader, where this is more than the input itself.
        of: what shares its statistics with itself alone: a plane, or a row.
    """

    planes: Callable[[Tensor], Tensor]
    full: Callable[[Tensor], Tensor]
    grid: Callable[[Tensor], Tensor]
    axes: tuple[str, ...]
    grid_axes: tuple[str, ...]
    note: str = ""
    of: str = "plane"


def _same(values: Tensor) -> Tensor:
    return values


def feature_map(x: Tensor) -> View:
    """(N, C, *S) as it is."""
    return View(_same, _same, _same, axes_of(x), ("N", "C"))


def unbatched(x: Tensor) -> View:
    """(C, *S): one sample."""

    def squeeze(values: Tensor) -> Tensor:
        return values.squeeze(0)

    axes = ("C", *spatial_axes(x.dim() - 1))
    note = "The input has no batch: it is one sample."
    return View(lambda values: values.unsqueeze(0), squeeze, squeeze, axes, ("C",), note)


def batch_of_vectors(x: Tensor) -> View:
    """(N, C), for statistics over N: one sample, whose planes are the channels."""
    return View(
        lambda values: values.t().unsqueeze(0),
        lambda values: values.squeeze(0).t(),
        lambda values: values.squeeze(0),
        ("N", "C"),
        ("C",),
        "A batch of vectors is one sample here: its planes are the channels, their elements the "
        "batch.",
    )


def points(x: Tensor) -> View:
    """(N, C), for statistics over C: planes of one element."""
    return View(
        lambda values: values.unsqueeze(2),
        lambda values: values.squeeze(2),
        _same,
        ("N", "C"),
        ("N", "C"),
        "Each plane is one element here: what is pooled are the elements themselves.",
    )


def rows(x: Tensor, dimensions: int) -> View:
    """Statistics over the last ``dimensions`` axes: each place of the others has one row."""
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
