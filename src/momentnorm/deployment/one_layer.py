"""Comparison of one layer with its operators in the file: formula, digits, other shapes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import inputs
from .graph import NORMALIZATIONS, REDUCTIONS, SHAPES, VIEWS
from .hypotheses import hypotheses
from .region import attribute
from .report import Fault, Finding, Row, baked_in
from .runtimes import Runtime, reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .calls import Formula
    from .region import Region

#: Bounds of the difference between the file's formula and the layer's, both in float64, relative to
#: the largest value. The numbers of the file are rounded to its dtype.
_FORMULA = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 3e-5, np.dtype(np.float16): 2e-2}

#: Bound of a runtime's error, in roundings of the dtype times the input's condition.
_ROUNDINGS = 32


@dataclass(eq=False)
class LayerCheck:
    """The comparison of one call of a layer with its operators in the file.

    Args:
        region: the call and the operators.
        run: the runtime.
        runtime_name: its name in messages.
    """

    region: Region
    run: Runtime
    runtime_name: str
    findings: list[Finding] = field(default_factory=list)
    row: Row = field(init=False)

    def __post_init__(self) -> None:
        self.call, self.place = self.region.call, self.region.place
        self.row = Row(self.call.name)
        self.dtype = self.region.values[self.place.start].dtype
        self.tolerance = _FORMULA.get(self.dtype, 2e-2)
        #: The largest value of an ordinary output.
        self.scale = float(self.call.output.abs().max())

    def check(self) -> None:
        """Compare formula, digits and shapes, and fill the row and the findings."""
        ends = self.region.ends()
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

    def _compare_formulas(self, ends: list[str]) -> str:
        """Return the tensor nearest to the layer's output; report it if its formula is wrong."""
        tried = [self.call.input.double(), inputs.probe(self.call)]
        outputs = [self.region.exact(ends, x) for x in tried]

        def distances(formula: Formula) -> list[float]:
            wanted = [self.region.truth(formula, x) for x in tried]
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
        for guess in hypotheses(self.call, self.region.facts(ends[-1])):
            try:
                found = distances(guess.formula)
            except (ValueError, RuntimeError):  # statistics of one value, or an operand's shape
                continue
            for end, distance in zip(ends, found, strict=True):
                if distance <= self.tolerance:
                    self._found(guess.kind, "export", guess.message, guess.fix)
                    return end
        end, distance = min(zip(ends, own, strict=True), key=lambda pair: pair[1])
        self._explain(end, distance, self.region.nodes(ends[-1]))
        return end

    def _explain(self, end: str, distance: float, nodes: list[Any]) -> None:
        """Report a formula that is none of the known wrong ones."""
        x = self.call.input.double()
        (once,), (twice,), (thrice,) = (
            self.region.exact([end], x * factor) for factor in (1, 2, 3)
        )
        (shifted,) = self.region.exact([end], x + x.abs().max())
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

    def _describe(self, end: str) -> None:
        main = self.region.main(end)
        self.row.output = end
        if main is None:
            names = dict.fromkeys(node.op_type for node in self.region.nodes(end))
            self.row.operator = "+".join([n for n in names if n not in SHAPES | VIEWS][:3])
            return
        self.row.operator = main.op_type
        epsilon = attribute(main, "epsilon")
        self.row.eps = 1e-5 if epsilon is None else float(epsilon)
        scale = self.region.constant(main, 1)
        self.row.scale = None if scale is None else scale.shape

    def _check_scale(self, end: str) -> None:
        """Report a scale for each channel where the opset has one for each group."""
        main = self.region.main(end)
        opset = self.region.graph.opset
        if main is None or main.op_type != "GroupNormalization" or opset >= 21:
            return
        scale, groups = self.region.constant(main, 1), attribute(main, "num_groups")
        if scale is not None and scale.size != groups:
            self._found(
                "scale",
                "export",
                f"GroupNormalization of opset {opset} has a scale for each of the {groups} groups, "
                f"the file gives it {scale.size}: runtimes may refuse it, or read the first ones",
                "export with opset 21 or later, whose scale is one for each channel",
            )

    def _check_mode(self, end: str) -> None:
        main = self.region.main(end)
        if main is not None and main.op_type == "BatchNormalization":
            if not attribute(main, "training_mode"):
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
        model = self.region.model([end])
        eps = float(np.finfo(self.dtype).eps)
        for name, x in inputs.hostile(self.call, self.dtype, self._takes_any_size(end)):
            given = self.place.from_model(x).astype(self.dtype)
            feeds = {self.place.start: given}
            x = torch.from_numpy(given.astype(np.float64))
            x = x.movedim(-1, 1) if self.place.channels_last else x
            wanted = self.region.truth(self.call.truth, x)
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
            # A runtime may compute a formula of several operators in a wider dtype, and the next
            # one may not, so the reference decides. It cannot decide about a single operator,
            # which each runtime implements in its own way.
            if formula_off > bound and self.region.main(end) is None:
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
        """Find the cause of lost digits: the model, the file's formula, or the runtime."""
        dtype = getattr(torch, self.dtype.name)
        try:
            layer = copy.deepcopy(self.call.layer).to(dtype)
            own_values = self.region.truth(lambda x: self.call.apply(layer, x), x.to(dtype))
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
            "model": "the layer itself loses as many digits",
            "export": f"the file's formula in {dtype} is the cause, such as {like}",
            "runtime": f"{self.runtime_name} is the cause, not the file's formula in {dtype}",
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
        return (
            not self.region.borrowed(end)
            and self._same(end, inputs.other_size(self.call.input.double())) is None
        )

    def _compare_shapes(self, end: str) -> None:
        """Report a batch or a size that is baked in, where the file says that it takes any."""
        if self.region.borrowed(end):  # these values have the example's shape
            return
        any_batch, any_size = self.region.graph.dynamic()
        x = self.call.input.double()
        changes: list[tuple[bool, str, Callable[[Tensor], Tensor]]] = [
            (any_batch, "batch", inputs.other_batch),
            (any_size and x.dim() > 2, "size", inputs.other_size),
        ]
        for declared, kind, change in changes:
            problem = self._same(end, change(x)) if declared else None
            if problem is not None:
                self.findings.append(baked_in(self.call.name, kind, problem))

    def _same(self, end: str, x: Tensor) -> str | None:
        """Describe a failure in float64 on an input of another shape; None where there is none."""
        try:
            wanted = self.region.truth(self.call.truth, x)
        except (RuntimeError, ValueError):  # the layer has a fixed size
            return None
        try:
            (found,) = self.region.exact([end], x)
        except Exception as error:
            return f"this layer fails: {str(error).splitlines()[0][:120]}"
        if found.shape != wanted.shape:
            return f"this layer has shape {found.shape} in place of {wanted.shape}"
        off = _error(found, wanted)
        if off <= self.tolerance:
            return None
        return f"this layer is off by {off:.0e} of the largest value"


def _error(found: NDArray[Any], wanted: NDArray[Any], scale: float = 0.0) -> float:
    """Return the largest difference relative to the largest value or a scale, infinite for NaN."""
    if found.shape != wanted.shape:
        return float("inf")
    if not found.size:
        return 0.0
    with np.errstate(all="ignore"):
        difference = float(np.abs(found.astype(np.float64) - wanted).max())
    if not np.isfinite(difference):
        return float("inf")
    return difference / max(float(np.abs(wanted).max()), scale, 1e-30)
