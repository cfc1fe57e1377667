"""Stateless forms, with the signatures of ``torch.nn.functional``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _dispatch, _engine

__all__ = ["instance_norm"]


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalize each channel of each sample by its own mean and variance.

    .. math:: y = \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    where the mean and the biased variance are taken over the spatial elements of one plane, one
    channel of one sample (Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing
    Ingredient for Fast Stylization*, arXiv 1607.08022). Semantics, signature and errors are those
    of :func:`torch.nn.functional.instance_norm`; the memory layout of the input is kept.

    Args:
        input: the feature map, (N, C, \*S) with at least one spatial dimension; float32, float64,
            bfloat16 or float16.
        running_mean: (C,), or None. Updated in place where ``use_input_stats``, used otherwise.
        running_var: (C,), or None. Like ``running_mean``; holds the unbiased variance.
        weight: gamma, (C,), or None for ones. In the input's dtype, or float32 with a half type.
        bias: beta, (C,), or None for zeros. In the weight's dtype.
        use_input_stats: normalize with statistics of the input, rather than the running ones.
        momentum: the share that this batch has in the new running statistics.
        eps: added to the variance.

    Returns:
        The normalized feature map, with the input's shape, dtype and memory layout.

    Raises:
        ValueError: one spatial element, where statistics of the input are wanted; fewer than three
            dimensions; one running statistic without the other.
        RuntimeError: operands whose shapes, dtypes or devices do not fit together.
        NotImplementedError: a dtype that is not one of the four.

    >>> x = torch.tensor([[[[1.0, 6.0], [9.0, 4.0]]]])  # mean 5, variance 8.5
    >>> instance_norm(x)
    tensor([[[[-1.3720,  0.3430],
              [ 1.3720, -0.3430]]]])
    """
    if has_torch_function_variadic(input, running_mean, running_var, weight, bias):
        return handle_torch_function(
            instance_norm,
            (input, running_mean, running_var, weight, bias),
            input,
            running_mean=running_mean,
            running_var=running_var,
            weight=weight,
            bias=bias,
            use_input_stats=use_input_stats,
            momentum=momentum,
            eps=eps,
        )
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or torch.compiler.is_exporting():
        # This graph may run where momentnorm is not installed: give it the standard operator.
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    if type(momentum) is not float or type(eps) is not float:
        momentum, eps = _dispatch.number("momentum", momentum), _dispatch.number("eps", eps)
    _dispatch.check_operands(input, running_mean, running_var, weight, bias, use_input_stats)
    if not use_input_stats:
        assert running_mean is not None
        assert running_var is not None
        return _engine.normalize_with(input, running_mean, running_var, weight, bias, eps=eps)
    y, mean, var = _engine.normalize(input, weight, bias, eps=eps)
    if running_mean is not None and running_var is not None and input.numel():
        count = input.shape[2:].numel()
        _move_towards(running_mean, mean.mean(0), momentum)
        _move_towards(running_var, var.mean(0) * (count / (count - 1)), momentum)
    return y


def _move_towards(running: Tensor, batch: Tensor, momentum: float) -> None:
    """``running += momentum * (batch - running)``, in place, rounded once to its own dtype."""
    running.copy_(torch.lerp(running.to(batch.dtype), batch, momentum))
