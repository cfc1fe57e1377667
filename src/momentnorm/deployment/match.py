"""Match the inputs of a model's layers with tensors of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .layers import Call

#: Inputs that differ by more, relative to their root mean square, are not matched by their values.
_NEAR = 0.1


class Place(NamedTuple):
    """The tensor at which a layer begins in the file, and whether its channels are last."""

    start: str
    channels_last: bool

    def from_model(self, x: Tensor) -> NDArray[Any]:
        """The values of a tensor of the model as the file has them."""
        moved = x.movedim(1, -1) if self.channels_last else x
        array: NDArray[Any] = moved.numpy(force=True)
        return np.ascontiguousarray(array)


def by_values(call: Call, values: dict[str, NDArray[Any]], share: float) -> Place | None:
    """The tensor that has the values of the call's input on the example, if there is one.

    Args:
        call: the call.
        values: of the tensors that may be a start, on the example, in the file's order.
        share: how far into the model the call is, from 0 to 1; it decides between equals.
    """
    order = {name: i for i, name in enumerate(values)}
    options = [
        (distance, abs(order[place.start] - share * len(values)), place)
        for place, distance in _distances(call, values)
        if distance < _NEAR
    ]
    return min(options)[2] if options else None


def by_order(call: Call, values: dict[str, NDArray[Any]], behind: str | None) -> Place | None:
    """The next tensor of the shape of the call's input, behind that of the layer before it.

    It serves a layer whose input has other values in the file.
    """
    names = list(values)
    rest = names[names.index(behind) + 1 :] if behind in names else names
    options = _distances(call, {name: values[name] for name in rest})
    return options[0][0] if options else None


def _distances(call: Call, values: dict[str, NDArray[Any]]) -> list[tuple[Place, float]]:
    """Return the tensors of the input's shape, and the distance of their values from it."""
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
