"""Checks: the comparisons of a trace with the layer that it explains."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.dispatch import use_backend
from ..core.grid import statistics_dtype
from .errors import ExplainError, TraceMismatchError
from .explanation import Explanation
from .family import with_our_arithmetic
from .steps import BACKWARD, RUNNING, Check
from .trace import Trace
from .values import count_not_finite, largest, largest_difference

#: Largest difference between two computations in float64, relative to the largest term.
_FLOAT64 = 1e-9

_FIX = "register an explanation of its own with momentnorm.explainer.explains"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer by the reference backend."""

    before: nn.Module  # copy of the layer before the call
    after: nn.Module  # copy of the layer after the call, a class of momentnorm
    x: Tensor
    residual: Tensor | None
    operands: tuple[Any, ...]
    y: Tensor

    @classmethod
    def of(
        cls,
        before: nn.Module,
        after: nn.Module,
        x: Tensor,
        residual: Tensor | None,
        operands: tuple[Any, ...],
    ) -> Call:
        """Make the call: ``after`` is called, and its buffers move."""
        y = _output(after, x, residual, operands)
        return cls(before, after, x, residual, operands, y)

    def output_in_float64(self) -> Tensor:
        """Output of the layer if layer, input and operands are in the dtype of the statistics."""
        layer = _in_float64(self.after, self.x)
        x = self.x.to(statistics_dtype(self.x))
        return _output(layer, x, self.residual, self.operands_in_float64())

    def operands_in_float64(self) -> tuple[Any, ...]:
        """Operands, with floating point tensors in the dtype of the statistics."""
        return tuple(
            one.detach().to(statistics_dtype(self.x))
            if isinstance(one, Tensor) and one.is_floating_point()
            else one
            for one in self.operands
        )


def _output(
    layer: nn.Module, x: Tensor, residual: Tensor | None, operands: tuple[Any, ...]
) -> Tensor:
    """Output by the reference backend. An ``inplace`` layer writes over a copy of x."""
    more = {} if residual is None else {"residual": residual}
    with torch.no_grad(), use_backend("reference"):
        y: Tensor = layer(x.clone(), *operands, **more)
    return y


def _in_float64(layer: nn.Module, x: Tensor) -> nn.Module:
    """Copy of a layer with its values in the dtype of the statistics of x."""
    return copy.deepcopy(layer).to(statistics_dtype(x))


def check_output(trace: Trace, explanation: Explanation, call: Call, y: Tensor) -> Check:
    """Compare the last step with the layer's output.

    Args:
        trace: the trace of the forward.
        explanation: the explanation that made it.
        call: the call that it explains.
        y: the last step before it is rounded to the dtype of the input.

    Raises:
        ExplainError: they differ, and a step has NaN or infinities.
        TraceMismatchError: they differ.
    """
    if explanation.exact:
        difference, bound = largest_difference(trace.y, call.y), 0.0
        text = "the last step has the bits of the layer's output (by the reference backend)"
    else:
        theirs = call.output_in_float64()
        difference = largest_difference(y.detach(), theirs)
        bound = _FLOAT64 * max(1.0, largest(theirs))
        text = "the last step equals the layer's output in float64, up to rounding"
    if difference > bound:
        _refuse_not_finite(trace)
        raise TraceMismatchError(
            f"the steps do not lead to the output of {trace.layer}: they differ by up to "
            f"{difference:.3g}. The layer computes something else than its base class; {_FIX}"
        )
    return Check(text, difference)


def _refuse_not_finite(trace: Trace) -> None:
    """Raise if a step has NaN or infinities, which two formulas may spread differently."""
    for step in trace.steps:
        if found := count_not_finite(step.values):
            raise ExplainError(
                f"{step.name} has {found} of {step.values.numel()} values, which {trace.layer} "
                "spreads differently from the steps: replace NaN and infinities, or make the "
                "input smaller, first"
            )


def check_buffers(trace: Trace, call: Call) -> list[Check]:
    """Compare the running statistics of the trace with those of the layer after the call.

    Raises:
        TraceMismatchError: they differ.
    """
    recorded = {step.name: step.values for step in trace.part(RUNNING)}
    moved = dict(call.after.named_buffers())
    checks = []
    for name, old in call.before.named_buffers():
        if name.endswith("num_batches_tracked"):
            continue
        expected = recorded.get(name, old).reshape(old.shape)
        difference = largest_difference(expected, moved[name])
        if difference:
            raise TraceMismatchError(
                f"{name} of {trace.layer} moves otherwise than the steps say, by up to "
                f"{difference:.3g}: {_FIX}"
            )
        if name in recorded:
            checks.append(Check(f"{name} after has the bits that the layer writes"))
    return checks


def check_backward(
    trace: Trace,
    explanation: Explanation,
    call: Call,
    x: Tensor,
    gradient: Tensor,
    found: dict[str, Tensor],
) -> None:
    """Compare gradients with autograd, and add the checks, or a note, to the trace.

    Args:
        trace: the trace with the steps of the backward.
        explanation: the explanation that made it.
        call: the call that it explains.
        x: the input as a leaf in the dtype of the statistics.
        gradient: dL/dy.
        found: the gradients of the trace by name.

    Raises:
        TraceMismatchError: they differ.
    """
    if not (bool(x.isfinite().all()) and bool(gradient.isfinite().all())):
        trace.notes.append("The backward is not checked: the input or gradient is not finite.")
        return
    coefficients = [s.values for s in trace.part(BACKWARD) if s.name.split(".")[-1] == "a"]
    reach = max([1.0, *map(largest, coefficients)])
    for source, theirs in (
        ("autograd through the steps of the forward", explanation.autograd(x, gradient)),
        ("the layer's own backward in float64", _backward_of_layer(call, x, gradient)),
    ):
        worst = 0.0
        for name, values in found.items():
            if name not in theirs:
                continue
            expected = theirs[name].reshape(values.shape)
            # Terms of this size cancel in the gradient, so its rounding error is relative to it.
            size = reach * largest(gradient) if name in ("x", "residual") else gradient.abs().sum()
            bound = _FLOAT64 * max(float(size), largest(expected))
            difference = largest_difference(values.detach(), expected.detach())
            if difference > bound:
                raise TraceMismatchError(
                    f"d{name} by the formulas and by {source} differ by up to {difference:.3g}"
                )
            worst = max(worst, difference)
        names = ", ".join(f"d{name}" for name in found if name in theirs)
        trace.checks.append(Check(f"{names}: equal to {source}, up to rounding", worst))


def _backward_of_layer(call: Call, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients of x, residual and parameters by the layer itself, in the dtype of ``x``."""
    layer: Any = with_our_arithmetic(_in_float64(call.before, x.detach()))
    if hasattr(layer, "inplace"):
        layer.inplace = False
    wanted: dict[str, Tensor] = {"x": x.detach().clone().requires_grad_()}
    more = {}
    if call.residual is not None:
        wanted["residual"] = call.residual.to(x.dtype).requires_grad_()
        more["residual"] = wanted["residual"]
    wanted |= {name: values for name, values in layer.named_parameters() if values.requires_grad}
    with torch.enable_grad(), use_backend("reference"):
        y = layer(wanted["x"], *call.operands_in_float64(), **more)
        gradients = torch.autograd.grad(
            y, list(wanted.values()), gradient, allow_unused=True, materialize_grads=True
        )
    return dict(zip(wanted, gradients, strict=True))
