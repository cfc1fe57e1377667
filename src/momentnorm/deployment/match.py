"""Which tensor of the file each layer's input is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .layers import Call

#: Inputs that differ by more, relative to their root mean square, are not matched by their values.
_NEAR = 0.3


class Place(NamedTuple):
    """Where a layer begins in the file, and whether the channels are last there."""

    start: str
    channels_last: bool

    def from_model(self, x: Tensor) -> NDArray[Any]:
        """The values of a tensor of the model as the file has them."""
        moved = x.movedim(1, -1) if self.channels_last else x
        array: NDArray[Any] = moved.numpy(force=True)
        return np.ascontiguousarray(array)


def places(calls: list[Call], values: dict[str, NDArray[Any]]) -> list[Place | None]:
    """For each call the tensor with its input's values, or else the next one of its shape.

    Args:
        calls: in the order of the model.
        values: what the tensors that may be a start held on the example, in the file's order.
    """
    order = {name: i for i, name in enumerate(values)}
    found: list[Place | None] = []
    for position, call in enumerate(calls):
        expected = position / max(len(calls), 1) * len(values)
        options = [
            (distance, abs(order[place.start] - expected), place)
            for place, distance in _distances(call, values)
            if distance < _NEAR
        ]
        found.append(min(options)[2] if options else None)
    taken = {place.start for place in found if place is not None}
    last = -1
    for i, call in enumerate(calls):
        place = found[i]
        if place is None:
            rest = [
                place
                for place, _ in _distances(call, values)
                if place.start not in taken and order[place.start] > last
            ]
            if rest:
                place = found[i] = rest[0]
                taken.add(place.start)
        if place is not None:
            last = max(last, order[place.start])
    return found


def _distances(call: Call, values: dict[str, NDArray[Any]]) -> list[tuple[Place, float]]:
    """The tensors of the input's shape, and how far their values are from it."""
    wanted = {last: Place("", last).from_model(call.input.double()) for last in (False, True)}
    if call.input.dim() < 3:
        del wanted[True]
    size = max(float(np.sqrt(np.mean(wanted[False] ** 2))), 1e-30)
    found = []
    for name, value in values.items():
        for last, x in wanted.items():
            if value.shape == x.shape:
                difference = float(np.sqrt(np.mean((value.astype(np.float64) - x) ** 2)))
                distance = difference / size if np.isfinite(difference) else np.inf
                found.append((Place(name, last), distance))
    return found


def same_values(call: Call, values: dict[str, NDArray[Any]], tolerance: float) -> str | None:
    """The name of a tensor that holds the layer's output, if there is one."""
    for last in (False, True):
        if last and call.output.dim() < 3:
            continue
        wanted = Place("", last).from_model(call.output.double())
        largest = max(float(np.abs(wanted).max(initial=0)), 1e-30)
        for name, value in values.items():
            if value.shape == wanted.shape and value.dtype.kind == "f":
                difference = np.abs(value.astype(np.float64) - wanted).max(initial=0)
                if difference <= tolerance * largest:
                    return name
    return None
