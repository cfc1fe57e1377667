"""The operators of a file that compute one call of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .calls import MIXTURES
from .graph import NORMALIZATIONS, Graph, in_float64
from .hypotheses import Facts
from .runtimes import reference

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray
    from torch import Tensor

    from .calls import Call, Formula
    from .match import Place

#: The most operators in which an ordinary layer is looked for, and the most for a layer that takes
#: several statistics or a mask.
_OPERATORS, _MANY_OPERATORS = 48, 200


@dataclass(eq=False)
class Region:
    """The operators behind one tensor of a file, for one call of a layer.

    Args:
        call: the call.
        place: the tensor at which the layer begins.
        graph: the file.
        values: values of the file's tensors on the example.
    """

    call: Call
    place: Place
    graph: Graph
    values: dict[str, NDArray[Any]]

    def ends(self) -> list[str]:
        """List the tensors of the output's shape that come from the layer's input and constants."""
        start = self.place.start
        simple = not self.call.options and not isinstance(self.call.layer, MIXTURES)
        names = [
            name
            for name in self.graph.reach(start, _OPERATORS if simple else _MANY_OPERATORS)
            if self.borrowed(name) <= self.values.keys()
        ]
        shape = self.place.from_model(self.call.output).shape
        try:
            outputs = self.exact(names, self.call.input.double())
        except Exception:  # an operator that the reference lacks
            outputs = [self._exact_or_nothing(name) for name in names]
        found = [
            name
            for name, value in zip(names, outputs, strict=True)
            if value.dtype.kind == "f" and value.shape == shape
        ]
        inner = {self.graph.cast(name) for name in found}  # the layer ends behind its last Cast
        return [name for name in found if name not in inner]

    def _exact_or_nothing(self, name: str) -> NDArray[Any]:
        try:
            (value,) = self.exact([name], self.call.input.double())
        except Exception:  # an operator that the reference lacks
            return np.zeros(0)
        return value

    def borrowed(self, end: str) -> set[str]:
        """Names of the tensors that the operators need besides the layer's input."""
        return self.graph.region(self.place.start, [end])[1]

    def model(self, ends: list[str]) -> onnx.ModelProto:
        """Return the operators as a file of their own."""
        return self.graph.extract(self.place.start, ends, self.values)

    def exact(self, ends: list[str], x: Tensor) -> list[NDArray[Any]]:
        """Return the values of these tensors in float64, where the layer's input is x."""
        return list(
            reference(in_float64(self.model(ends)), {self.place.start: self.place.from_model(x)})
        )

    def dtype_of(self, end: str) -> np.dtype[Any]:
        """Return the dtype of a tensor of the file."""
        (value,) = reference(self.model([end]), {self.place.start: self.values[self.place.start]})
        return value.dtype

    def truth(self, formula: Formula, x: Tensor) -> NDArray[Any]:
        """Return a formula's output on the layer's input x, as the file has it."""
        with torch.no_grad():
            return self.place.from_model(formula(x))

    def nodes(self, end: str) -> list[Any]:
        """Return the operators up to this tensor."""
        inside, _ = self.graph.region(self.place.start, [end])
        return [self.graph.nodes[i] for i in inside]

    def main(self, end: str) -> Any:
        """Return the first operator that is a normalization by itself, or None."""
        return next((node for node in self.nodes(end) if node.op_type in NORMALIZATIONS), None)

    def constant(self, node: Any, index: int) -> NDArray[Any] | None:
        """Return an input of an operator, where it is a constant."""
        if len(node.input) > index and node.input[index] in self.graph.constants:
            return self.graph.constant(node.input[index])
        return None

    def facts(self, end: str) -> Facts:
        """Return the numbers that may be an eps, and the scale and bias of the operator."""
        eps: dict[float, None] = {}
        for node in self.nodes(end):
            epsilon = attribute(node, "epsilon")
            if epsilon is not None:
                eps[float(epsilon)] = None
            for name in node.input:
                if name in self.graph.constants and self.graph.size(name) == 1:
                    value = float(self.graph.constant(name).astype(np.float64).reshape(-1)[0])
                    if 0 <= value < 1:
                        eps[value] = None
        main = self.main(end)
        if main is None:
            return Facts(tuple(eps))
        scale, bias = self.constant(main, 1), self.constant(main, 2)
        return Facts(tuple(eps), scale, bias, bool(attribute(main, "training_mode")))


def attribute(node: Any, name: str) -> Any:
    """Return an attribute of an operator, a number; None where it has none of this name."""
    for found in node.attribute:
        if found.name == name:
            return found.f if name == "epsilon" else found.i
    return None
