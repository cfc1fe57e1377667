"""``explain``: the steps of one call of a layer, checked against what the layer returns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..core.dispatch import use_backend
from ..core.grid import statistics_dtype
from ..support.printable import one_line, printable
from . import adaptive as _registers  # noqa: F401
from .explanation import Explanation
from .family import explanation_of, with_our_arithmetic
from .names import build
from .trace import (
    BACKWARD,
    RUNNING,
    Check,
    ExplainError,
    Steps,
    Trace,
    TraceMismatchError,
    count_not_finite,
    largest_difference,
)

#: What two ways of computing in float64 may differ by, relative to the largest term.
_FLOAT64 = 1e-9


@torch.inference_mode(False)
def explain(
    layer: nn.Module | str,
    x: Tensor | Any,
    *operands: Any,
    gradient: Tensor | str | None = None,
    residual: Tensor | None = None,
    **options: Any,
) -> Trace:
    r"""What a layer computes, step by step, with the numbers.

    .. math:: x \to (\mu, \sigma^2) \to x - \mu \to \sqrt{\sigma^2 + \epsilon} \to \hat x
        \to \hat x \gamma + \beta \to y

    Each step has a name, a formula, a shape and its values; the arithmetic is in float64, rounded
    once at the end, as the reference backend's is. The last step is compared with the layer's own
    output, bit by bit; running statistics are shown before and after an update, and compared too.
    The layer itself is not changed: what moves is a copy.

    Args:
        layer: any layer of the family, momentnorm's or ``torch.nn``'s, in its own mode; or a name
            such as "instance" (:func:`momentnorm.explain.names` lists them), for a layer made for
            this input.
        x: the input, (N, C, \*S), or what else the layer takes; lists and arrays become tensors.
        operands: what else the layer's call takes by position: the style of AdaIN, the labels of
            ConditionalInstanceNorm2d, the map of SPADE.
        gradient: dL/dy, or "ones", or "one" (of the first output alone): adds the backward, as
            :meth:`Trace.backward` does.
        residual: what the layer's call takes under this name.
        options: with a name, what the layer is made with: ``eps``, ``num_groups``, ``momentum``,
            ``activation`` ... as its class has them, ``training=False`` for evaluation, and any
            parameter or buffer by its name (``weight=[1, 2]``, ``running_mean=...``).

    Returns:
        A :class:`Trace`: print it, save it, take it apart.

    Raises:
        ExplainError: an unknown name or option; an input that is no feature map; a class that has
            no explanation; NaN or infinities that the layer spreads in a way of its own.
        TraceMismatchError: the steps do not lead to the layer's output, as where a subclass
            computes something else.
        Exception: whatever the layer itself raises for this input.

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
            f"{', '.join(options)}: options make a layer from a name; this layer has its own, and "
            "of what its call takes by keyword, residual alone is explained"
        )
    if residual is not None:
        residual = torch.as_tensor(residual).detach()
    before = _initialized(layer, x)
    after = with_our_arithmetic(copy.deepcopy(before))
    expected = _call(after, x, residual, operands)
    with use_backend("reference"):  # what an explanation computes beforehand
        explanation = explanation_of(before, x, residual, *operands)
    steps = Steps()
    leaf = x.to(statistics_dtype(x), copy=True).requires_grad_()
    y = explanation.forward(steps, leaf)
    name = printable(" ".join(repr(layer).split()))  # one line, in whatever it is written into
    trace = Trace(name, explanation.summary, steps.recorded, [], list(explanation.notes))
    trace.checks.append(
        _check_output(trace, explanation, after, x, y, residual, operands, expected)
    )
    trace.checks += _check_buffers(trace, before, after)
    trace.notes += _more_notes(trace, before, after, x, residual)

    @torch.inference_mode(False)
    def continue_backward(given: Tensor | str) -> Trace:
        arriving = _as_gradient(given, expected)
        back = Steps()
        found = explanation.backward(back, leaf, arriving)
        longer = Trace(
            trace.layer,
            trace.summary,
            [*trace.steps, *back.recorded],
            list(trace.checks),
            list(trace.notes),
            continue_backward,
        )
        _check_backward(longer, explanation, before, leaf, residual, operands, arriving, found)
        return longer

    trace.continue_backward = continue_backward
    return trace if gradient is None else trace.backward(gradient)


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
            f"the input {tuple(found.shape)} is empty: there is nothing to explain; pass a sample"
        )
    return found


def _as_gradient(given: Tensor | str, y: Tensor) -> Tensor:
    dtype = statistics_dtype(y)
    if isinstance(given, str):
        if given == "ones":
            return torch.ones_like(y, dtype=dtype)
        if given == "one":
            arriving = torch.zeros_like(y, dtype=dtype, memory_format=torch.contiguous_format)
            arriving.view(-1)[:1] = 1
            return arriving
        raise ExplainError(f'gradient={given!r}: pass a tensor like y, "ones" or "one"')
    arriving = torch.as_tensor(given).detach().to(dtype=dtype, device=y.device)
    if arriving.shape != y.shape:
        raise ExplainError(
            f"the gradient should have the shape of the output, {tuple(y.shape)}, not "
            f"{tuple(arriving.shape)}"
        )
    return arriving


def _initialized(layer: nn.Module, x: Tensor) -> nn.Module:
    """A copy as it is once it knows this input: a lazy layer's size, a default eps."""
    duplicate: Any = copy.deepcopy(layer)
    if hasattr(duplicate, "has_uninitialized_params") and duplicate.has_uninitialized_params():
        duplicate._infer_parameters(duplicate, (x,))
    if isinstance(duplicate, nn.RMSNorm) and duplicate.eps is None:
        duplicate.eps = torch.finfo(x.dtype).eps  # torch's default, which follows the dtype
    prepared: nn.Module = duplicate
    return prepared


def _call(
    layer: nn.Module, x: Tensor, residual: Tensor | None, operands: tuple[Any, ...]
) -> Tensor:
    """The layer's output by the reference. An ``inplace`` layer writes over a copy."""
    more = {} if residual is None else {"residual": residual}
    with torch.no_grad(), use_backend("reference"):
        y: Tensor = layer(x.clone(), *operands, **more)
    return y


def _in_float64(layer: nn.Module, x: Tensor) -> nn.Module:
    """A copy with the same values in the statistics' type."""
    return copy.deepcopy(layer).to(statistics_dtype(x))


def _widened(operands: tuple[Any, ...], x: Tensor) -> tuple[Any, ...]:
    """The operands that are in floating point in the statistics' type."""
    return tuple(
        one.detach().to(statistics_dtype(x))
        if isinstance(one, Tensor) and one.is_floating_point()
        else one
        for one in operands
    )


def _check_output(
    trace: Trace,
    explanation: Explanation,
    after: nn.Module,
    x: Tensor,
    y: Tensor,
    residual: Tensor | None,
    operands: tuple[Any, ...],
    expected: Tensor,
) -> Check:
    if explanation.exact:
        difference, bound = largest_difference(trace.y, expected), 0.0
        text = "the last step has the bits of the layer's output (by the reference backend)"
    else:
        wide = _in_float64(after, x)
        theirs = _call(wide, x.to(statistics_dtype(x)), residual, _widened(operands, x))
        difference = largest_difference(y.detach(), theirs)
        bound = _FLOAT64 * max(1.0, _largest(theirs))
        text = "the last step is what the layer returns in float64, to its rounding"
    if difference > bound:
        _refuse_not_finite(trace)
        raise TraceMismatchError(
            f"the steps do not lead to the output of {trace.layer}: they differ by up to "
            f"{difference:.3g}. It computes something else than its base class; register its own "
            "explanation with momentnorm.explain.explains"
        )
    return Check(text, difference)


def _refuse_not_finite(trace: Trace) -> None:
    """Two ways of computing the same need not agree on where NaN and infinities go."""
    for step in trace.steps:
        if found := count_not_finite(step.values):
            raise ExplainError(
                f"{step.name} has {found} of {step.values.numel()} values, which {trace.layer} "
                "spreads otherwise than the steps do: replace NaN and infinities, or make the "
                "input smaller, first"
            )


def _check_buffers(trace: Trace, before: nn.Module, after: nn.Module) -> list[Check]:
    """The running statistics of the trace against those of a copy that did the call."""
    recorded = {step.name: step.values for step in trace.part(RUNNING)}
    moved = dict(after.named_buffers())
    checks = []
    for name, old in before.named_buffers():
        if name.endswith("num_batches_tracked"):
            continue
        expected = recorded.get(name, old).reshape(old.shape)
        difference = largest_difference(expected, moved[name])
        if difference:
            raise TraceMismatchError(
                f"{name} of {trace.layer} moves otherwise than the steps say, by up to "
                f"{difference:.3g}: register its own explanation with momentnorm.explain.explains"
            )
        if name in recorded:
            checks.append(Check(f"{name} after is what the layer would have written, bit by bit"))
    return checks


def _check_backward(
    trace: Trace,
    explanation: Explanation,
    before: nn.Module,
    x: Tensor,
    residual: Tensor | None,
    operands: tuple[Any, ...],
    gradient: Tensor,
    found: dict[str, Tensor],
) -> None:
    """Adds the outcome to the trace, or raises."""
    if not (bool(x.isfinite().all()) and bool(gradient.isfinite().all())):
        trace.notes.append("The backward is not checked: the input or gradient is not finite.")
        return
    by_graph = explanation.autograd(x, gradient)
    by_layer = _layers_own_backward(before, x, residual, operands, gradient)
    backward = trace.part(BACKWARD)
    coefficients = [step.values for step in backward if step.name.split(".")[-1] == "a"]
    reach = max([1.0, *map(_largest, coefficients)])
    for source, theirs in (
        ("autograd through the steps of the forward", by_graph),
        ("the layer's own backward in float64", by_layer),
    ):
        worst = 0.0
        for name, values in found.items():
            if name not in theirs:
                continue
            expected = theirs[name].reshape(values.shape)
            # What cancels are terms of this size.
            size = reach * _largest(gradient) if name in ("x", "residual") else gradient.abs().sum()
            bound = _FLOAT64 * max(float(size), _largest(expected))
            difference = largest_difference(values.detach(), expected.detach())
            if difference > bound:
                raise TraceMismatchError(
                    f"d{name} by the formulas and by {source} differ by up to {difference:.3g}"
                )
            worst = max(worst, difference)
        names = ", ".join(f"d{name}" for name in found if name in theirs)
        trace.checks.append(Check(f"{names}: as by {source}, to its rounding", worst))


def _layers_own_backward(
    before: nn.Module,
    x: Tensor,
    residual: Tensor | None,
    operands: tuple[Any, ...],
    gradient: Tensor,
) -> dict[str, Tensor]:
    layer: Any = with_our_arithmetic(_in_float64(before, x.detach()))
    if hasattr(layer, "inplace"):
        layer.inplace = False
    wanted: dict[str, Tensor] = {"x": x.detach().clone().requires_grad_()}
    more = {}
    if residual is not None:
        wanted["residual"] = residual.to(x.dtype).requires_grad_()
        more["residual"] = wanted["residual"]
    wanted |= {name: values for name, values in layer.named_parameters() if values.requires_grad}
    with torch.enable_grad(), use_backend("reference"):
        y = layer(wanted["x"], *_widened(operands, x), **more)
        gradients = torch.autograd.grad(
            y, list(wanted.values()), gradient, allow_unused=True, materialize_grads=True
        )
    return dict(zip(wanted, gradients, strict=True))


def _largest(values: Tensor) -> float:
    values = values.detach()
    values = values[values.isfinite()]
    return values.abs().max().item() if values.numel() else 0.0


def _more_notes(
    trace: Trace, before: nn.Module, after: nn.Module, x: Tensor, residual: Tensor | None
) -> list[str]:
    notes = []
    if found := count_not_finite(x):
        notes.append(
            f"The input has {found} of {x.numel()} values: they spread to all that shares "
            "statistics with them, and are shown as they are."
        )
    if not before.training and any(True for _ in before.buffers()):
        notes.append("Evaluation: the running statistics do not move.")
    if type(after) is not type(before):
        theirs = copy.deepcopy(before)
        with torch.no_grad():
            difference = largest_difference(theirs(x), trace.y)
        notes.append(
            f"torch's own arithmetic, in {str(x.dtype).removeprefix('torch.')}, returns the same "
            f"to within {difference:.1g}."
        )
    return notes
