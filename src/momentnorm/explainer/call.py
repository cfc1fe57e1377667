"""Call: the function ``explain``, the steps of one call of a layer."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.dispatch import use_backend
from ..core.grid import statistics_dtype
from ..support.printable import one_line, printable
from . import adaptive as _adaptive  # noqa: F401 - registers its explanations
from . import checks
from .errors import ExplainError
from .explanation import Explanation
from .family import with_our_arithmetic
from .names import build
from .registry import explanation_of
from .steps import Steps
from .trace import Trace
from .values import count_not_finite, largest_difference


@torch.inference_mode(False)
def explain(
    layer: nn.Module | str,
    x: Tensor | Any,
    *operands: Any,
    gradient: Tensor | str | None = None,
    residual: Tensor | None = None,
    **options: Any,
) -> Trace:
    r"""Trace of what a layer computes: each step with its formula and its numbers.

    .. math:: x \to (\mu, \sigma^2) \to x - \mu \to \sqrt{\sigma^2 + \epsilon} \to \hat x
        \to \hat x \gamma + \beta \to y

    Each step has a name, a formula, a shape and its values. The arithmetic is in float64 and is
    rounded once at the end, as in the reference backend. The last step is compared with the
    layer's own output, bit by bit. Running statistics are shown before and after an update, and
    compared too. The layer itself does not change: a copy makes the call.

    Args:
        layer: a layer of momentnorm or ``torch.nn``, or one registered with
            :func:`momentnorm.explainer.explains`, in training or evaluation mode; or a name such as
            "instance" (:func:`momentnorm.explainer.names` lists them), for a layer that is made for
            this input.
        x: the input, (N, C, \*S), or another shape that the layer takes. Lists and arrays become
            tensors.
        operands: further positional operands of the layer's call: the style of AdaIN, the labels of
            ConditionalInstanceNorm2d, the map of SPADE.
        gradient: dL/dy, or "ones", or "one" (for the first output alone). It adds the steps of the
            backward, as :meth:`Trace.backward` does.
        residual: the keyword argument of this name of the layer's call.
        options: with a name, the options of the layer: arguments of its class such as ``eps``,
            ``num_groups``, ``momentum``, ``activation``; ``training=False`` for evaluation; and any
            parameter or buffer by its name (``weight=[1, 2]``, ``running_mean=...``).

    Returns:
        A :class:`Trace`, to print, to save, or to read step by step.

    Raises:
        ExplainError: an unknown name or option; an input that is no feature map; a class without
            an explanation; NaN or infinities that the layer spreads differently from the steps.
        TraceMismatchError: the steps do not lead to the layer's output, for example because a
            subclass computes something else.
        Exception: the errors of the layer itself for this input.

    >>> import momentnorm
    >>> trace = momentnorm.explain("instance", [[[[1.0, 6.0], [9.0, 4.0]]]])
    >>> trace["mean"].values.item(), trace["var"].values.item()
    (5.0, 8.5)
    >>> trace.y
    tensor([[[[-1.3720,  0.3430],
              [ 1.3720, -0.3430]]]])
    """
    x = _as_input(x)
    if isinstance(layer, str):
        layer = build(layer, x, options)
    elif not isinstance(layer, nn.Module):
        raise TypeError(f"explain takes a layer or a name, not {type(layer).__name__}")
    elif options:
        raise TypeError(
            f"{', '.join(options)}: options make a layer from a name, and this layer is made "
            "already; of the keyword arguments of its call, only residual is explained"
        )
    if residual is not None:
        residual = torch.as_tensor(residual).detach()
    title = printable(" ".join(repr(layer).split()))  # one line without control characters
    trace = _Explained.of(layer, x, residual, operands).forward(title)
    return trace if gradient is None else trace.backward(gradient)


@dataclass
class _Explained:
    """One call of a layer, its explanation, and the leaf through which gradients flow."""

    call: checks.Call
    explanation: Explanation
    leaf: Tensor  # x in the dtype of the statistics

    @classmethod
    def of(
        cls, layer: nn.Module, x: Tensor, residual: Tensor | None, operands: tuple[Any, ...]
    ) -> _Explained:
        before = _initialized(layer, x)
        after = with_our_arithmetic(copy.deepcopy(before))
        call = checks.Call.of(before, after, x, residual, operands)
        with use_backend("reference"):  # some explanations compute weights
            explanation = explanation_of(before, x, residual, *operands)
        return cls(call, explanation, x.to(statistics_dtype(x), copy=True).requires_grad_())

    def forward(self, layer: str) -> Trace:
        """Trace of the forward, checked. ``layer`` is its title."""
        call, explanation, steps = self.call, self.explanation, Steps()
        y = explanation.forward(steps, self.leaf)
        trace = Trace(layer, explanation.summary, steps.recorded, [], list(explanation.notes))
        trace.checks.append(checks.check_output(trace, explanation, call, y))
        trace.checks += checks.check_buffers(trace, call)
        trace.notes += _notes(trace, call)
        trace.explain_backward = lambda gradient: self.backward(trace, gradient)
        return trace

    @torch.inference_mode(False)
    def backward(self, trace: Trace, given: Tensor | str) -> Trace:
        """Copy of the trace of the forward that ends with the steps of the backward, checked."""
        gradient = _as_gradient(given, self.call.y)
        steps = Steps()
        found = self.explanation.backward(steps, self.leaf, gradient)
        longer = replace(
            trace,
            steps=[*trace.steps, *steps.recorded],
            checks=list(trace.checks),
            notes=list(trace.notes),
        )
        checks.check_backward(longer, self.explanation, self.call, self.leaf, gradient, found)
        return longer


def _as_input(x: Any) -> Tensor:
    try:
        found = torch.as_tensor(x).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ExplainError(f"the input is no tensor of numbers: {one_line(error)}") from None
    if not isinstance(x, Tensor) and not found.is_floating_point() and not found.is_complex():
        found = found.to(torch.float32)
    if found.dim() < 2:
        raise ExplainError(
            f"expected a feature map (N, C, *S), got shape {tuple(found.shape)}: "
            "add the missing dimensions"
        )
    if not found.numel():
        raise ExplainError(
            f"the input {tuple(found.shape)} is empty: pass at least one sample with values"
        )
    return found


def _as_gradient(given: Tensor | str, y: Tensor) -> Tensor:
    """Gradient of y in the dtype of the statistics, from a tensor, "ones" or "one"."""
    dtype = statistics_dtype(y)
    if isinstance(given, str):
        if given == "ones":
            return torch.ones_like(y, dtype=dtype)
        if given == "one":
            gradient = torch.zeros_like(y, dtype=dtype, memory_format=torch.contiguous_format)
            gradient.view(-1)[:1] = 1
            return gradient
        raise ExplainError(f'gradient={given!r}: pass a tensor like y, "ones" or "one"')
    gradient = torch.as_tensor(given).detach().to(dtype=dtype, device=y.device)
    if gradient.shape != y.shape:
        raise ExplainError(
            f"the gradient should have the shape of the output, {tuple(y.shape)}, not "
            f"{tuple(gradient.shape)}"
        )
    return gradient


def _initialized(layer: nn.Module, x: Tensor) -> nn.Module:
    """Copy of a layer after it has seen x: lazy parameters have a size, RMSNorm has its eps."""
    duplicate: Any = copy.deepcopy(layer)
    if hasattr(duplicate, "has_uninitialized_params") and duplicate.has_uninitialized_params():
        duplicate._infer_parameters(duplicate, (x,))
    if isinstance(duplicate, nn.RMSNorm) and duplicate.eps is None:
        duplicate.eps = torch.finfo(x.dtype).eps  # torch's default
    prepared: nn.Module = duplicate
    return prepared


def _notes(trace: Trace, call: checks.Call) -> list[str]:
    """Notes on NaN in the input, on evaluation mode, and on torch's own arithmetic."""
    notes, x = [], call.x
    if found := count_not_finite(x):
        notes.append(
            f"The input has {found} of {x.numel()} values. They spread to all values that share "
            "statistics with them, and are shown unchanged."
        )
    if not call.before.training and any(True for _ in call.before.buffers()):
        notes.append("Evaluation: the running statistics do not move.")
    if type(call.after) is not type(call.before):
        theirs = copy.deepcopy(call.before)
        with torch.no_grad():
            difference = largest_difference(theirs(x), trace.y)
        notes.append(
            f"torch's own arithmetic, in {str(x.dtype).removeprefix('torch.')}, differs by at most "
            f"{difference:.1g}."
        )
    return notes
