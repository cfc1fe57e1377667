"""An ONNX file as a graph, from which parts are cut out as files of their own."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

#: Operators that are a normalization by themselves. The first input is the data.
NORMALIZATIONS = {
    "BatchNormalization",
    "GroupNorm",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
}
#: Operators that take statistics.
REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "GlobalAveragePool"}
#: Operators that move values, or change their dtype, and nothing else.
VIEWS = {"Cast", "CastLike", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
#: Operators between a tensor and its mean square.
_POWERS = {"Abs", "Mul", "Pow"}
_ARITHMETIC = {
    "Abs",
    "Add",
    "Ceil",
    "Clip",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Less",
    "Log",
    "Max",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Swish",
    "Tanh",
    "Where",
}
#: Operators on shapes and constants.
SHAPES = {
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Expand",
    "Gather",
    "Range",
    "Shape",
    "Size",
    "Slice",
    "Tile",
    "ReduceProd",
}
#: Operators that normalizations and activations are made of. All others end a region.
_LIGHT = NORMALIZATIONS | REDUCTIONS | VIEWS | _ARITHMETIC | SHAPES | {"Dropout"}

#: The most operators that one normalization is looked for in.
_REGION = 48

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


class Graph:
    """A loaded file, with its functions inlined.

    Args:
        model: the file, as ``onnx.load`` returns it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.inliner.inline_local_functions(model) if model.functions else model
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value for value in graph.input if value.name not in self.initializers]
        self.opset = max(
            (entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")),
            default=0,
        )
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output}
        self.consumers: dict[str, list[int]] = defaultdict(list)
        self.constants = set(self.initializers)
        self._computed: dict[str, NDArray[Any]] = {}
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.consumers[name].append(i)
            if node.op_type in _LIGHT and all(not n or n in self.constants for n in node.input):
                self.constants.update(node.output)

    def dynamic(self) -> tuple[bool, bool]:
        """Tell whether the file declares any batch, and any size."""
        batch = size = False
        for value in self.inputs:
            free = [not dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim]
            batch |= bool(free) and free[0]
            size |= any(free[2:])
        return batch, size

    def starts(self) -> list[str]:
        """Names of tensors that may be the input of a normalization, in the file's order."""
        found: dict[str, None] = {}
        for node in self.nodes:
            data = [name for name in node.input if name and name not in self.constants]
            if not data or data[0] != node.input[0]:
                continue
            constant = [name for name in node.input if name in self.constants]
            affine = node.op_type in {"Mul", "Add", "Sub", "Div"} and any(
                self.size(name) > 1 for name in constant
            )
            if node.op_type in NORMALIZATIONS | REDUCTIONS or affine:
                name = data[0]
                found[name] = None
                while (producer := self.producer.get(name)) is not None:
                    before = self.nodes[producer]
                    if before.op_type not in VIEWS | _POWERS:
                        break
                    name = before.input[0]
                    found[name] = None
        return [name for name in found if name not in self.constants]

    def reach(self, start: str) -> list[str]:
        """Names of tensors that are computed from this one by light operators, nearest first."""
        found, queue, visited = [], [start], 0
        seen = {start}
        while queue and visited < _REGION:
            for i in self.consumers[queue.pop(0)]:
                node = self.nodes[i]
                if node.op_type not in _LIGHT:
                    continue
                visited += 1
                for name in node.output:
                    if name and name not in seen:
                        seen.add(name)
                        found.append(name)
                        queue.append(name)
        return found

    def region(self, start: str, ends: Iterable[str]) -> tuple[list[int], set[str]]:
        """Return the operators between these tensors, and the other tensors that they need."""
        stack, inside, borrowed = list(ends), set(), set()
        while stack:
            name = stack.pop()
            if not name or name == start or name in self.initializers:
                continue
            producer = self.producer.get(name)
            if producer is None or self.nodes[producer].op_type not in _LIGHT:
                borrowed.add(name)
            elif producer not in inside:
                inside.add(producer)
                stack.extend(self.nodes[producer].input)
        return sorted(inside), borrowed

    def extract(
        self, start: str, ends: Sequence[str], values: dict[str, NDArray[Any]]
    ) -> onnx.ModelProto:
        """Make a file of the operators from one tensor to others; it takes any batch and size.

        ``values`` has the other tensors that they need, from a run of the whole file.
        """
        inside, borrowed = self.region(start, ends)
        nodes = [self.nodes[i] for i in inside]
        used = {name for node in nodes for name in node.input}
        initializers = [self.initializers[name] for name in used if name in self.initializers]
        initializers += [numpy_helper.from_array(values[name], name) for name in borrowed]
        kind = helper.np_dtype_to_tensor_dtype(values[start].dtype)
        graph = helper.make_graph(
            nodes,
            "region",
            [helper.make_tensor_value_info(start, kind, [None] * values[start].ndim)],
            [onnx.ValueInfoProto(name=name) for name in ends],
            initializers,
        )
        return helper.make_model(
            graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )

    def exposing(
        self, names: Iterable[str], fixed: dict[str, NDArray[Any]] | None = None
    ) -> onnx.ModelProto:
        """Return the whole file with these tensors as further outputs, and others as constants."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        fixed = fixed or {}
        for node in model.graph.node:
            for i, name in enumerate(node.output):
                if name in fixed:
                    node.output[i] = f"{name} as computed"
        model.graph.initializer.extend(
            numpy_helper.from_array(values, name) for name, values in fixed.items()
        )
        there = {value.name for value in model.graph.output}
        model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in names if name not in there
        )
        return model

    def constant(self, name: str) -> NDArray[Any]:
        """Return the values of a constant."""
        if name not in self._computed:
            self._computed[name] = self._compute(name)
        return self._computed[name]

    def _compute(self, name: str) -> NDArray[Any]:
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        inside, _ = self.region("", [name])
        nodes = [self.nodes[i] for i in inside]
        used = {n for node in nodes for n in node.input if n in self.initializers}
        graph = helper.make_graph(
            nodes,
            "constant",
            [],
            [onnx.ValueInfoProto(name=name)],
            [self.initializers[n] for n in used],
        )
        from .runtimes import reference

        model = helper.make_model(graph, opset_imports=self.model.opset_import)
        (found,) = reference(model, {})
        return found

    def size(self, name: str) -> int:
        """The number of elements of a constant; 0 where it cannot be computed."""
        if name in self.initializers:
            return int(np.prod(self.initializers[name].dims))
        try:
            return int(self.constant(name).size)
        except Exception:  # an operator that the evaluator does not know
            return 0


def in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the file with every floating-point number and operator in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    double = onnx.TensorProto.DOUBLE

    def widen(tensor: onnx.TensorProto) -> None:
        if tensor.data_type in _FLOATS:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    for tensor in wide.graph.initializer:
        widen(tensor)
    for value in wide.graph.input:
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = double
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
                attribute.i = double
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = attribute.f if attribute.name == "value_float" else attribute.floats
                tensor = numpy_helper.from_array(np.array(values, np.float64))
                attribute.CopyFrom(helper.make_attribute("value", tensor))
    return wide
