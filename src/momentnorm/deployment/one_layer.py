"""One layer of a model against its part of the file: the formula, the digits, other shapes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import inputs
from .graph import NORMALIZATIONS, REDUCTIONS, SHAPES, VIEWS, Graph, in_float64
from .layers import Facts, hypotheses
from .report import Fault, Finding, Row
from .runtimes import Runtime, reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .layers import Call, Formula
    from .match import Place

#: Bounds of the difference between the file's formula and the layer's, both in float64, relative to
#: the largest value. The numbers of the file are rounded to its dtype.
_FORMULA = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 3e-5, np.dtype(np.float16): 2e-2}

#: Bound of a runtime's error, in roundings of the dtype times the input's condition.
_ROUNDINGS = 32


@dataclass(eq=False)
class LayerCheck:
    """The comparison of one call of a layer with the file.

    Args:
        call: the call.
        place: where the layer begins in the file.
        graph: the file.
        values: of tensors of the file, on the example.
        run: the runtime.
        runtime_name: its name in messages.
    """

    call: Call
    place: Place
    graph: Graph
    values: dict[str, NDArray[Any]]
    run: Runtime
    runtime_name: str
    findings: list[Finding] = field(default_factory=list)
    row: Row = field(init=False)

    def __post_init__(self) -> None:
        self.row = Row(self.call.name)
        self.dtype = self.values[self.place.start].dtype
        self.tolerance = _FORMULA.get(self.dtype, 2e-2)
        #: The largest value of an ordinary output.
        self.scale = float(self.call.output.abs().max())

    def check(self) -> None:
        """Fill the row and the findings."""
        ends = self._ends()
        if not ends:
            self._found(
                "differs",
                "export",
                "the file computes nothing of this layer's shape from this layer's input",
                "export again, and compare the operators behind the layer's input",
            )
            return
        end = self._compare_formulas(ends)
        self._describe(end)
        if not self.findings:
            self._compare_digits(end)
            self._compare_shapes(end)

    def _found(self, kind: str, fault: Fault, message: str, fix: str) -> None:
        self.findings.append(Finding(self.call.name, kind, fault, message, fix))

    # The formula.

    def _ends(self) -> list[str]:
        """List the tensors of the output's shape that come from the layer's input and constants."""
        start = self.place.start
        names = [
            name
            for name in self.graph.reach(start)
            if self.graph.region(start, [name])[1] <= self.values.keys()
        ]
        shape = self.place.from_model(self.call.output).shape
        found = []
        try:
            outputs = self._exact(names, self.call.input.double())
        except Exception:  # an operator that the reference lacks: one tensor after the other
            return self._ends_one_by_one(names, shape)
        for name, value in zip(names, outputs, strict=True):
            if value.dtype.kind == "f" and value.shape == shape:
                found.append(name)
        return found

    def _ends_one_by_one(self, names: list[str], shape: tuple[int, ...]) -> list[str]:
        found = []
        for name in names:
            try:
                (value,) = self._exact([name], self.call.input.double())
            except Exception:  # as above: this tensor is not compared
                continue
            if value.dtype.kind == "f" and value.shape == shape:
                found.append(name)
        return found

    def _exact(self, names: list[str], x: Tensor) -> list[NDArray[Any]]:
        """Return the values of these tensors in float64, where the layer's input is x."""
        model = in_float64(self.graph.extract(self.place.start, names, self.values))
        return list(reference(model, {self.place.start: self.place.from_model(x)}))

    def _truth(self, formula: Formula, x: Tensor) -> NDArray[Any]:
        with torch.no_grad():
            return self.place.from_model(formula(x))

    def _compare_formulas(self, ends: list[str]) -> str:
        """Return the tensor nearest to the layer's output; report it if its formula is wrong."""
        tried = [self.call.input.double(), inputs.probe(self.call)]
        outputs = [self._exact(ends, x) for x in tried]

        def distances(formula: Formula) -> list[float]:
            wanted = [self._truth(formula, x) for x in tried]
            return [
                max(_error(found[i], y) for found, y in zip(outputs, wanted, strict=True))
                for i in range(len(ends))
            ]

        own = distances(self.call.truth)
        for end, distance in zip(ends, own, strict=True):
            if distance <= self.tolerance:
                self._check_scale(end)
                self._check_mode(end)
                return end
        for guess in hypotheses(self.call.exact, self._facts(ends), self.call.input.shape[1]):
            try:
                found = distances(guess.formula)
            except (ValueError, RuntimeError):  # statistics of one value
                continue
            for end, distance in zip(ends, found, strict=True):
                if distance <= self.tolerance:
                    self._found(guess.kind, "export", guess.message, guess.fix)
                    return end
        end, distance = min(zip(ends, own, strict=True), key=lambda pair: pair[1])
        self._explain(end, distance, self._nodes(ends[-1]))
        return end

    def _explain(self, end: str, distance: float, nodes: list[Any]) -> None:
        """Report a formula that is none of the known wrong ones."""
        x = self.call.input.double()
        (once,), (twice,), (thrice,) = (self._exact([end], x * factor) for factor in (1, 2, 3))
        (shifted,) = self._exact([end], x + x.abs().max())
        affine = _error(thrice - twice, twice - once) <= self.tolerance
        moves = _error(shifted, once) > 10 * self.tolerance
        taken = {node.op_type for node in nodes} & (REDUCTIONS | NORMALIZATIONS)
        if affine and moves and not self.call.frozen and taken <= {"BatchNormalization"}:
            self._found(
                "statistics",
                "export",
                "the layer uses the statistics of its input, the file constants",
                "export the layer in the mode in which it is used, as InstanceNormalization",
            )
            return
        self._found(
            "differs",
            "export",
            f"the file is off by {distance:.0e} of the largest value, in float64 arithmetic too, "
            "and no known change explains it",
            f"compare the operators between {self.place.start!r} and {end!r} with the layer",
        )

    # The numbers of the file.

    def _nodes(self, end: str) -> list[Any]:
        inside, _ = self.graph.region(self.place.start, [end])
        return [self.graph.nodes[i] for i in inside]

    def _main(self, end: str) -> Any:
        nodes = self._nodes(end)
        return next((node for node in nodes if node.op_type in NORMALIZATIONS), None)

    def _facts(self, ends: list[str]) -> Facts:
        """Numbers of the region that may be an eps, and the scale and bias of its operator."""
        eps: dict[float, None] = {}
        for node in self._nodes(ends[-1]):
            attribute = _attribute(node, "epsilon")
            if attribute is not None:
                eps[float(attribute)] = None
            for name in node.input:
                if name in self.graph.constants and self.graph.size(name) == 1:
                    value = float(self.graph.constant(name).astype(np.float64).reshape(-1)[0])
                    if 0 <= value < 1:
                        eps[value] = None
        main = self._main(ends[-1])
        if main is None:
            return Facts(tuple(eps))
        scale, bias = self._constant(main, 1), self._constant(main, 2)
        return Facts(tuple(eps), scale, bias, bool(_attribute(main, "training_mode")))

    def _constant(self, node: Any, index: int) -> NDArray[Any] | None:
        if len(node.input) > index and node.input[index] in self.graph.constants:
            return self.graph.constant(node.input[index])
        return None

    def _describe(self, end: str) -> None:
        main = self._main(end)
        self.row.output = end
        if main is None:
            names = dict.fromkeys(node.op_type for node in self._nodes(end))
            self.row.operator = "+".join([n for n in names if n not in SHAPES | VIEWS][:3])
            return
        self.row.operator = main.op_type
        epsilon = _attribute(main, "epsilon")
        self.row.eps = 1e-5 if epsilon is None else float(epsilon)
        scale = self._constant(main, 1)
        self.row.scale = None if scale is None else scale.shape

    def _check_scale(self, end: str) -> None:
        """Report a scale for each channel where the opset has one for each group."""
        main = self._main(end)
        if main is None or main.op_type != "GroupNormalization" or self.graph.opset >= 21:
            return
        scale, groups = self._constant(main, 1), _attribute(main, "num_groups")
        if scale is not None and scale.size != groups:
            self._found(
                "scale",
                "export",
                f"GroupNormalization of opset {self.graph.opset} has a scale for each of the "
                f"{groups} groups, and the file gives it {scale.size}: runtimes may refuse it, or "
                "read the first ones",
                "export with opset 21 or later, whose scale is one for each channel",
            )

    def _check_mode(self, end: str) -> None:
        main = self._main(end)
        if main is not None and main.op_type == "BatchNormalization":
            if not _attribute(main, "training_mode"):
                return
            self._found(
                "train",
                "export",
                "the file uses the statistics of the batch, as the model does in train mode: a "
                "sample's output depends on the others",
                "call model.eval() before the export",
            )

    # The digits.

    def _compare_digits(self, end: str) -> None:
        model = self.graph.extract(self.place.start, [end], self.values)
        eps = float(np.finfo(self.dtype).eps)
        for name, x in inputs.hostile(self.call, self.dtype, self._takes_any_size(end)):
            given = self.place.from_model(x).astype(self.dtype)
            feeds = {self.place.start: given}
            x = torch.from_numpy(given.astype(np.float64))
            x = x.movedim(-1, 1) if self.place.channels_last else x
            wanted = self._truth(self.call.truth, x)
            try:
                (found,) = self.run(model, feeds)
            except Exception as error:
                self._does_not_run(error)
                return
            off = _error(found, wanted, self.scale)
            self.row.errors[name] = off
            condition = float(x.abs().max()) / max(self.call.sigma(x), 1e-30)
            bound = _ROUNDINGS * eps * (1 + condition)
            try:
                (again,) = reference(model, feeds)
            except Exception:  # an operator that the reference lacks
                again = wanted
            formula_off = _error(again, wanted, self.scale)
            if off > bound:
                fault = self._fault(x, wanted, off, formula_off)
                self._lost_digits(name, fault, found, off)
                return
            # This runtime may compute a formula of several operators in a wider dtype, and others
            # may not. Operators of the reference say nothing about those of other runtimes.
            if formula_off > bound and self._main(end) is None:
                self._lost_digits(name, "export", again, formula_off)
                return

    def _does_not_run(self, error: Exception) -> None:
        self._found(
            "runs",
            "runtime",
            f"{self.runtime_name} does not run this layer: {str(error).splitlines()[0]}",
            "export with another opset, or use another runtime",
        )

    def _fault(self, x: Tensor, wanted: NDArray[Any], off: float, reference_off: float) -> Fault:
        """Name the cause of lost digits: the model itself, the file's formula, or the runtime."""
        dtype = getattr(torch, self.dtype.name)
        try:
            own_values = self._truth(_cast(self.call.layer, dtype), x.to(dtype))
            own = _error(own_values, wanted, self.scale)
        except (RuntimeError, NotImplementedError):  # a dtype without an operator on the CPU
            own = 0.0
        if own >= off / 4:
            return "model"
        return "export" if reference_off >= off / 4 else "runtime"

    def _lost_digits(self, name: str, fault: Fault, found: NDArray[Any], off: float) -> None:
        finite = bool(np.isfinite(found).all())
        half, dtype = self.dtype == np.float16, self.dtype.name
        like = "sums beyond 65,504" if half else "E[x^2] - E[x]^2"
        where = {
            "model": "the layer itself loses as much",
            "export": f"the file's formula in {dtype} does, as {like} would",
            "runtime": f"{self.runtime_name} does, the file's formula in {dtype} does not",
        }[fault]
        if fault != "export":
            fix = "compute this layer in a wider dtype, by another operator or on another runtime"
        elif half:
            fix = "keep the normalization in float32: exclude its operators from the conversion"
        else:
            fix = "use an operator, such as InstanceNormalization, in place of the formula"
        text = f"the output is off by {off:.0e} of the largest value" if finite else "NaN or inf"
        self._found("digits" if finite else "overflow", fault, f"on {name}: {text}; {where}", fix)

    # Other shapes.

    def _takes_any_size(self, end: str) -> bool:
        _, borrowed = self.graph.region(self.place.start, [end])
        return not borrowed and self._same(end, inputs.other_size(self.call.input.double())) is None

    def _compare_shapes(self, end: str) -> None:
        """Report a batch or a size that is baked in, where the file says that it takes any."""
        _, borrowed = self.graph.region(self.place.start, [end])
        if borrowed:  # values of the example: other shapes cannot be tried on this layer alone
            return
        any_batch, any_size = self.graph.dynamic()
        x = self.call.input.double()
        changes: list[tuple[bool, str, Callable[[Tensor], Tensor]]] = [
            (any_batch, "batch", inputs.other_batch),
            (any_size and x.dim() > 2, "size", inputs.other_size),
        ]
        for declared, kind, change in changes:
            problem = self._same(end, change(x)) if declared else None
            if problem is not None:
                self._found(
                    kind,
                    "export",
                    f"the file says that it takes any {kind}, and with another one {problem}",
                    f"export with a dynamic {kind} (dynamic_shapes or dynamic_axes), and look for "
                    "a Reshape with constants",
                )

    def _same(self, end: str, x: Tensor) -> str | None:
        """Describe a failure in float64 on an input of another shape; None where there is none."""
        try:
            wanted = self._truth(self.call.truth, x)
        except (RuntimeError, ValueError):  # the layer itself has a fixed size
            return None
        try:
            (found,) = self._exact([end], x)
        except Exception as error:
            return f"this layer fails: {str(error).splitlines()[0][:120]}"
        if found.shape != wanted.shape:
            return f"this layer has shape {found.shape} in place of {wanted.shape}"
        off = _error(found, wanted)
        if off <= self.tolerance:
            return None
        return f"this layer is off by {off:.0e} of the largest value"


def _error(found: NDArray[Any], wanted: NDArray[Any], scale: float = 0.0) -> float:
    """The largest difference, relative to the largest value or a scale; infinite for NaN."""
    if found.shape != wanted.shape:
        return float("inf")
    if not found.size:
        return 0.0
    with np.errstate(all="ignore"):
        difference = float(np.abs(found.astype(np.float64) - wanted).max())
    if not np.isfinite(difference):
        return float("inf")
    return difference / max(float(np.abs(wanted).max()), scale, 1e-30)


def _attribute(node: Any, name: str) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return attribute.f if name == "epsilon" else attribute.i
    return None


def _cast(layer: Any, dtype: torch.dtype) -> Any:
    return copy.deepcopy(layer).to(dtype)
