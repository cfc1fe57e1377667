"""Stateless forms, with the signatures of ``torch.nn.functional``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _dispatch, _engine, _masks
from ._standard import standard_instance_norm
from .backends import PLAIN, Tail
from .pool import INSTANCE, Policy

__all__ = ["instance_norm", "pooled_norm"]


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    r"""Normalize each channel of each sample by its own mean and variance.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    where the mean and the biased variance are taken over the spatial elements of one plane, one
    channel of one sample (Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing
    Ingredient for Fast Stylization*, arXiv 1607.08022). Semantics, signature and errors are those
    of :func:`torch.nn.functional.instance_norm`; the memory layout of the input is kept. The
    keyword arguments are ours. The residual r and the activation :math:`\phi`, where given, are
    computed in the same pass over memory, forward and backward.

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
        activation: "relu", "leaky_relu", "silu", "gelu" (exact, by erf), "tanh", "sigmoid" or None.
        negative_slope: of "leaky_relu".
        residual: added before the activation; in the input's shape, dtype and device.
        mask: (N, 1, \*S), bool or numbers of which 0 is False: True where an element is valid. The
            others, the padding, have no part in any statistic or gradient, whatever they hold, and
            are 0 in the output. A plane without valid elements is all 0, and has no part in the
            running statistics; one with a single valid element has the unbiased variance 0 there.
        lengths: (N,) for inputs (N, C, L), else (N, number of spatial dimensions): integers that
            say the same, where the valid elements are the first ones.
        inplace: write the output over the input. Where autograd would have to record the call
            that is an error.
        out: a tensor of the input's shape, dtype and device to write the output into, with the
            same restriction. It may be the input, or lie apart from it.

    Returns:
        The normalized feature map, with the input's shape, dtype and memory layout; ``input``
        itself with ``inplace``, ``out`` itself where given.

    Raises:
        ValueError: one spatial element, where statistics of the input are wanted; fewer than three
            dimensions; one running statistic without the other; an unknown activation; a mask or
            lengths that do not fit the input; two options that exclude each other.
        RuntimeError: operands whose shapes, dtypes or devices do not fit together; ``inplace`` or
            ``out`` where an operand requires grad, or where the tensor cannot be written over.
        NotImplementedError: a dtype that is not one of the four.

    >>> x = torch.tensor([[[[1.0, 6.0], [9.0, 4.0]]]])  # mean 5, variance 8.5
    >>> instance_norm(x)
    tensor([[[[-1.3720,  0.3430],
              [ 1.3720, -0.3430]]]])
    >>> instance_norm(x, activation="relu")
    tensor([[[[0.0000, 0.3430],
              [1.3720, 0.0000]]]])
    >>> instance_norm(torch.tensor([[[1.0, 2.0, 3.0, 99.0]]]), lengths=torch.tensor([3]))
    tensor([[[-1.2247,  0.0000,  1.2247,  0.0000]]])
    """
    operands = (input, running_mean, running_var, weight, bias, residual, mask, lengths, out)
    if has_torch_function_variadic(*operands):
        return handle_torch_function(
            instance_norm,
            operands,
            input,
            running_mean=running_mean,
            running_var=running_var,
            weight=weight,
            bias=bias,
            use_input_stats=use_input_stats,
            momentum=momentum,
            eps=eps,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            mask=mask,
            lengths=lengths,
            inplace=inplace,
            out=out,
        )
    if activation is not None:
        _dispatch.check_activation(activation)
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or torch.compiler.is_exporting():
        # This graph may run where momentnorm is not installed: give it the standard operators.
        return standard_instance_norm(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            use_input_stats,
            momentum,
            eps,
            activation,
            negative_slope,
            residual,
            mask,
            lengths,
            inplace,
            out,
        )
    if type(momentum) is not float or type(eps) is not float:
        momentum, eps = _dispatch.number("momentum", momentum), _dispatch.number("eps", eps)
    _dispatch.check_operands(input, running_mean, running_var, weight, bias, use_input_stats)
    tail = PLAIN
    if activation is not None or residual is not None:
        if residual is not None:
            _dispatch.check_like_input("residual", residual, input)
        slope = _dispatch.number("negative_slope", negative_slope)
        tail = Tail(activation or "", slope, residual)
    if inplace:
        if out is not None:
            raise ValueError("inplace=True writes over the input, and out= elsewhere: pass one")
        out = input
    if out is not None:
        _dispatch.check_target(out, input, (input, weight, bias, residual), inplace)
    x, valid = input, None
    pool: Policy = INSTANCE
    if mask is not None or lengths is not None:
        valid = _masks.checked_valid_elements(input, mask, lengths)
        x, pool = _masks.fill(input, valid)
        if residual is not None:
            tail = tail._replace(residual=torch.where(valid, residual, 0))
    written = out if valid is None else None
    if use_input_stats:
        y, mean, var = _engine.normalize(
            x, weight, bias, pool=pool, eps=eps, tail=tail, out=written
        )
        if running_mean is not None and running_var is not None and input.numel():
            share: float | Tensor = momentum
            if isinstance(pool, _masks.Masked):
                mean, var, samples = pool.of_batch(mean, var)
                share = momentum * (samples > 0).to(mean.dtype)
            else:
                count = input.shape[2:].numel()
                mean, var = mean.mean(0), var.mean(0) * (count / (count - 1))
            _move_towards(running_mean, mean, share)
            _move_towards(running_var, var, share)
    else:
        assert running_mean is not None
        assert running_var is not None
        y = _engine.normalize_with(
            x, running_mean, running_var, weight, bias, eps=eps, tail=tail, out=written
        )
    if valid is not None:
        y = torch.where(valid, y, 0)
        if out is not None:
            y = out.copy_(y)
    return y


def _move_towards(running: Tensor, batch: Tensor, share: float | Tensor) -> None:
    """``running += share * (batch - running)``, in place, rounded once to its own dtype."""
    running.copy_(torch.lerp(running.to(batch.dtype), batch, share))


def pooled_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    pool: Policy,
    eps: float = 1e-5,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    r"""Normalize with moments that a function of yours has pooled.

    .. math:: y = \phi\left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \gamma
        + \beta + r\right), \qquad (\mu, \sigma^2) = \mathrm{pool}(E[x], \mathrm{Var}[x])

    where E and Var (biased) are those of each plane, one channel of one sample. Gradients of both
    orders, memory layouts and transforms follow from the policy. The kernels do the arithmetic,
    unless the policy has parameters that want a gradient: then the call is made of torch's own
    operators.

    Args:
        input: the feature map, (N, C, \*S) with at least one spatial dimension; float32, float64,
            bfloat16 or float16.
        weight: gamma, (C,), or None for ones. In the input's dtype, or float32 with a half type.
        bias: beta, (C,), or None for zeros. In the weight's dtype.
        pool: a policy: a :class:`momentnorm.Pool`, or any function that takes ``(mean, var)``, each
            (N, C) and float64 where the device has it, and returns the two that each plane is
            normalized with: (N, C), or what broadcasts to it. It is called again in the backward,
            so it should depend on nothing that changes in between, and have no side effect.
        eps: added to the pooled variance.
        activation, negative_slope, residual: as in :func:`instance_norm`.

    Returns:
        The normalized feature map, with the input's shape, dtype and memory layout.

    Raises:
        ValueError: fewer than three dimensions; an unknown activation.
        RuntimeError: operands whose shapes, dtypes or devices do not fit together.
        NotImplementedError: a dtype that is not one of the four.

    >>> x = torch.tensor([[[1.0, 3.0], [2.0, 6.0]]])
    >>> pooled_norm(x, pool=lambda mean, var: (0 * mean, var + mean**2))  # by root mean squares
    tensor([[[0.4472, 1.3416],
             [0.4472, 1.3416]]])
    """
    operands = (input, weight, bias, residual)
    if has_torch_function_variadic(*operands):
        return handle_torch_function(
            pooled_norm,
            operands,
            input,
            weight=weight,
            bias=bias,
            pool=pool,
            eps=eps,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
        )
    y, _, _ = _pooled_norm(input, weight, bias, pool, eps, activation, negative_slope, residual)
    return y


def _pooled_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pool: Policy,
    eps: float,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`pooled_norm`, and the moments of each plane before pooling, outside autograd."""
    if input.dim() < 3:
        raise ValueError(
            f"expected a feature map (N, C, *S), got shape {tuple(input.shape)}: "
            "add the missing dimensions"
        )
    # A pool may span more than one plane, so planes of one element are welcome.
    _dispatch.check_feature_map("pooled_norm", input, weight, bias)
    tail = PLAIN
    if activation is not None or residual is not None:
        if activation is not None:
            _dispatch.check_activation(activation)
        if residual is not None:
            _dispatch.check_like_input("residual", residual, input)
        slope = _dispatch.number("negative_slope", negative_slope)
        tail = Tail(activation or "", slope, residual)
    return _engine.normalize(
        input, weight, bias, pool=pool, eps=_dispatch.number("eps", eps), tail=tail
    )
