"""Stateless forms, with the signatures of ``torch.nn.functional``.

``layer_norm``, ``rms_norm`` and ``local_response_norm`` are torch's own, here for completeness:
their weights belong to elements, and their windows to neighbours, rather than to planes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, local_response_norm, rms_norm
from torch.overrides import (
    handle_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)

from . import _dispatch, _engine, _masks
from ._standard import standard_batch_norm, standard_group_norm, standard_instance_norm
from .backends import PLAIN, Tail, reference
from .pool import BATCH, INSTANCE, Policy, Pool

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "plane_affine",
    "plane_moments",
    "pooled_norm",
    "rms_norm",
]


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
    overridden = has_torch_function_variadic(*operands)
    if overridden and not _dispatch.intercept_torch(*operands):
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
    if overridden or _dispatch.takes_torchs_functions(input):
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
    _dispatch.check_instance(input, use_input_stats)
    _dispatch.check_statistics_given("use_input_stats", use_input_stats, running_mean, running_var)
    _dispatch.check_operands("instance_norm", input, weight, bias, running_mean, running_var)
    tail = _checked_tail(input, activation, negative_slope, residual)
    out = _checked_target(input, weight, bias, residual, inplace, out)
    x, valid, masked, tail = _filled(input, mask, lengths, tail)
    written = out if valid is None else None
    if use_input_stats:
        if masked is None:
            y, mean, var = _engine.normalize(x, weight, bias, eps=eps, tail=tail, out=written)
        else:
            y, mean, var = _engine.normalize_by(masked, x, weight, bias, eps=eps, tail=tail)
        if running_mean is not None and running_var is not None and input.numel():
            share: float | Tensor = momentum
            if masked is not None:
                mean, var, samples = masked.of_batch(mean, var)
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
    return y if valid is None else _blanked(y, valid, out)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
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
    r"""Normalize each channel by its mean and variance over the batch, or by the running ones.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    In training the mean and the biased variance are taken over all samples and spatial elements of
    one channel; otherwise they are ``running_mean`` and ``running_var`` (Ioffe and Szegedy, *Batch
    Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift*, arXiv
    1502.03167). Semantics, signature and errors are those of
    :func:`torch.nn.functional.batch_norm`; the memory layout of the input is kept. The keyword
    arguments are ours, and are those of :func:`instance_norm`.

    Args:
        input: the feature map, (N, C) or (N, C, \*S); float32, float64, bfloat16 or float16.
        running_mean: (C,), or None. Updated in place where ``training``, used otherwise.
        running_var: (C,), or None. Like ``running_mean``; holds the unbiased variance.
        weight: gamma, (C,), or None for ones. In the input's dtype, or float32 with a half type.
        bias: beta, (C,), or None for zeros. In the weight's dtype.
        training: normalize with statistics of the input, rather than the running ones.
        momentum: the share that this batch has in the new running statistics.
        eps: added to the variance.
        activation: "relu", "leaky_relu", "silu", "gelu" (exact, by erf), "tanh", "sigmoid" or None.
        negative_slope: of "leaky_relu".
        residual: added before the activation; in the input's shape, dtype and device.
        mask: as in :func:`instance_norm`, or (N, 1) for vectors: each valid element has the same
            share in the statistics, so that long samples have more than short ones.
        lengths: as in :func:`instance_norm`; not for vectors.
        inplace: write the output over the input. Where autograd would have to record the call
            that is an error.
        out: a tensor of the input's shape, dtype and device to write the output into, with the
            same restriction. It may be the input, or lie apart from it.

    Returns:
        The normalized feature map, with the input's shape, dtype and memory layout; ``input``
        itself with ``inplace``, ``out`` itself where given.

    Raises:
        ValueError: one value per channel, in training; one running statistic without the other; an
            eps that is negative, or 0 in training; an unknown activation; a mask or lengths that do
            not fit the input; two options that exclude each other.
        IndexError: fewer than two dimensions, in training.
        RuntimeError: no running statistics, in evaluation; operands whose shapes, dtypes or devices
            do not fit together; ``inplace`` or ``out`` where an operand requires grad, or where the
            tensor cannot be written over.
        NotImplementedError: a dtype that is not one of the four.

    >>> x = torch.tensor([[1.0, 6.0], [9.0, 4.0]])  # means 5 and 5, variances 16 and 1
    >>> batch_norm(x, None, None, training=True)
    tensor([[-1.0000,  1.0000],
            [ 1.0000, -1.0000]])
    """
    operands = (input, running_mean, running_var, weight, bias, residual, mask, lengths, out)
    overridden = has_torch_function_variadic(*operands)
    if overridden and not _dispatch.intercept_torch(*operands):
        return handle_torch_function(
            batch_norm,
            operands,
            input,
            running_mean,
            running_var,
            weight=weight,
            bias=bias,
            training=training,
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
    if overridden or _dispatch.takes_torchs_functions(input):
        return standard_batch_norm(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            training,
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
    _dispatch.check_batch(input, training, eps)
    _dispatch.check_statistics_given("training", training, running_mean, running_var)
    _dispatch.check_operands("batch_norm", input, weight, bias, running_mean, running_var)
    tail = _checked_tail(input, activation, negative_slope, residual)
    out = _checked_target(input, weight, bias, residual, inplace, out)
    if mask is not None or lengths is not None:
        return _masked_batch_norm(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            training,
            momentum,
            eps,
            mask,
            lengths,
            tail,
            out,
        )
    x, written = input, out
    vectors = input.dim() == 2
    if vectors:  # a batch of vectors is one sample, whose elements are the batch
        x = input.t().unsqueeze(0)
        if residual is not None:
            tail = tail._replace(residual=residual.t().unsqueeze(0))
        written = None if out is None else out.t().unsqueeze(0)
    if training:
        pool = INSTANCE if vectors else BATCH
        y, mean, var = _engine.normalize(
            x, weight, bias, pool=pool, eps=eps, tail=tail, out=written
        )
        if running_mean is not None and running_var is not None and input.numel():
            count = x.shape[0] * x.shape[2:].numel()
            _move_towards(running_mean, mean[0], momentum)
            _move_towards(running_var, var[0] * (count / (count - 1)), momentum)
    else:
        assert running_mean is not None
        assert running_var is not None
        y = _engine.normalize_with(
            x, running_mean, running_var, weight, bias, eps=eps, tail=tail, out=written
        )
    if out is not None:
        return out
    return y.squeeze(0).t() if vectors else y


def _masked_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    mask: Tensor | None,
    lengths: Tensor | None,
    tail: Tail,
    out: Tensor | None,
) -> Tensor:
    x, valid, masked, tail = _filled(input, mask, lengths, tail)
    assert valid is not None
    assert masked is not None
    if training:
        policy = masked.over(BATCH)
        y, mean, var = _engine.normalize_by(policy, x, weight, bias, eps=eps, tail=tail)
        if running_mean is not None and running_var is not None and input.numel():
            mean, var = policy(mean, var)
            count = masked.counts.sum()
            share = momentum * (count > 0).to(mean.dtype)
            _move_towards(running_mean, mean[0], share)
            _move_towards(running_var, var[0] * (count / (count - 1).clamp(min=1)), share)
    else:
        assert running_mean is not None
        assert running_var is not None
        y = _engine.normalize_with(x, running_mean, running_var, weight, bias, eps=eps, tail=tail)
    return _blanked(y.view(input.shape), valid, out)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
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
    r"""Normalize each group of channels of each sample by its own mean and variance.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    where the mean and the biased variance are taken over the spatial elements of C / ``num_groups``
    neighbouring channels of one sample (Wu and He, *Group Normalization*, arXiv 1803.08494). As
    many groups as channels are Instance Normalization; one group is Layer Normalization over
    (C, \*S), with a weight and a bias per channel. Semantics, signature and errors are those of
    :func:`torch.nn.functional.group_norm`; the memory layout of the input is kept. The keyword
    arguments are ours.

    Args:
        input: the feature map, (N, C) or (N, C, \*S); float32, float64, bfloat16 or float16.
        num_groups: a divisor of C.
        weight: gamma, (C,), or None for ones. In the input's dtype, or float32 with a half type.
        bias: beta, (C,), or None for zeros. In the weight's dtype.
        eps: added to the variance.
        activation: as in :func:`batch_norm`, and so are ``negative_slope``, ``residual``, ``mask``,
            ``lengths``, ``inplace`` and ``out``.

    Returns:
        The normalized feature map, with the input's shape, dtype and memory layout; ``input``
        itself with ``inplace``, ``out`` itself where given.

    Raises:
        ValueError: groups of one value, in one sample; an unknown activation; a mask or lengths
            that do not fit the input; two options that exclude each other.
        RuntimeError: fewer than two dimensions; a number of channels that ``num_groups`` does not
            divide; operands whose shapes, dtypes or devices do not fit together; ``inplace`` or
            ``out`` where an operand requires grad, or where the tensor cannot be written over.
        ZeroDivisionError: no groups.
        NotImplementedError: a dtype that is not one of the four.

    >>> x = torch.tensor([[[1.0, 6.0], [9.0, 4.0]]])  # mean 5, variance 8.5
    >>> group_norm(x, 1)
    tensor([[[-1.3720,  0.3430],
             [ 1.3720, -0.3430]]])
    """
    operands = (input, weight, bias, residual, mask, lengths, out)
    overridden = has_torch_function_variadic(*operands)
    if overridden and not _dispatch.intercept_torch(*operands):
        return handle_torch_function(
            group_norm,
            operands,
            input,
            num_groups,
            weight=weight,
            bias=bias,
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
    if overridden or _dispatch.takes_torchs_functions(input):
        return standard_group_norm(
            input,
            num_groups,
            weight,
            bias,
            eps,
            activation,
            negative_slope,
            residual,
            mask,
            lengths,
            inplace,
            out,
        )
    if type(eps) is not float:
        eps = _dispatch.number("eps", eps)
    _dispatch.check_groups(input, num_groups)
    _dispatch.check_operands("group_norm", input, weight, bias)
    tail = _checked_tail(input, activation, negative_slope, residual)
    out = _checked_target(input, weight, bias, residual, inplace, out)
    # An empty input has no channels.
    pool = Pool(1, max(1, input.shape[1] // num_groups))
    if mask is not None or lengths is not None:
        x, valid, masked, tail = _filled(input, mask, lengths, tail)
        assert valid is not None
        assert masked is not None
        y, _, _ = _engine.normalize_by(masked.over(pool), x, weight, bias, eps=eps, tail=tail)
        return _blanked(y.view(input.shape), valid, out)
    x, written = input, out
    vectors = input.dim() == 2
    if vectors:  # planes of one element
        x = input.unsqueeze(2)
        if residual is not None:
            tail = tail._replace(residual=residual.unsqueeze(2))
        written = None if out is None else out.unsqueeze(2)
    y, _, _ = _engine.normalize(x, weight, bias, pool=pool, eps=eps, tail=tail, out=written)
    if out is not None:
        return out
    return y.squeeze(2) if vectors else y


def _filled(
    input: Tensor, mask: Tensor | None, lengths: Tensor | None, tail: Tail
) -> tuple[Tensor, Tensor | None, _masks.Masked | None, Tail]:
    """The input as a feature map, its valid elements and their policy, and the tail.

    Without a mask and lengths the middle two are None; with one of them no padding holds anything.
    """
    if mask is None and lengths is None:
        return input, None, None, tail
    valid = _masks.checked_valid_elements(input, mask, lengths)
    residual = None if tail.residual is None else torch.where(valid, tail.residual, 0)
    x, planes = input, valid
    if input.dim() == 2:  # planes of one element
        x, planes = input.unsqueeze(2), valid.unsqueeze(2)
        residual = None if residual is None else residual.unsqueeze(2)
    x, masked = _masks.fill(x, planes)
    return x, valid, masked, tail if residual is None else tail._replace(residual=residual)


def _blanked(y: Tensor, valid: Tensor, out: Tensor | None) -> Tensor:
    """y with an empty padding, where it is wanted."""
    y = torch.where(valid, y, 0)
    return y if out is None else out.copy_(y)


def _checked_tail(
    input: Tensor, activation: str | None, negative_slope: float, residual: Tensor | None
) -> Tail:
    if activation is None and residual is None:
        return PLAIN
    if residual is not None:
        _dispatch.check_like_input("residual", residual, input)
    slope = _dispatch.number("negative_slope", negative_slope)
    return Tail(activation or "", slope, residual)


def _checked_target(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    inplace: bool,
    out: Tensor | None,
) -> Tensor | None:
    """What the output is written into, where that is asked for."""
    if inplace:
        if out is not None:
            raise ValueError("inplace=True writes over the input, and out= elsewhere: pass one")
        out = input
    if out is not None:
        _dispatch.check_target(out, input, (input, weight, bias, residual), inplace)
    return out


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

    where E and Var (biased) are those of each plane, one channel of one sample. Gradients of all
    orders, memory layouts and transforms follow from the policy, and the kernels do the arithmetic.

    Args:
        input: the feature map, (N, C, \*S) with at least one spatial dimension; float32, float64,
            bfloat16 or float16.
        weight: gamma, (C,), or (N, C) for one of each sample, or None for ones. In the input's
            dtype, or float32 with a half type.
        bias: beta, (C,) or (N, C), or None for zeros. In the weight's dtype.
        pool: a policy: a :class:`momentnorm.Pool`, or any function that takes ``(mean, var)``, each
            (N, C) and float64 where the device has it, and returns the two that each plane is
            normalized with: (N, C), or what broadcasts to it. Made of torch's differentiable
            operators; parameters that it uses get their gradients.
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
    """:func:`pooled_norm`, and the moments of each plane before pooling, outside autograd.

    Of a :class:`Pool` they are those of each pool.
    """
    _check_feature_map(input)
    # A pool may span more than one plane, so planes of one element are welcome.
    _dispatch.check_operands("pooled_norm", input, weight, bias, per_sample=True)
    if activation is not None:
        _dispatch.check_activation(activation)
    tail = _checked_tail(input, activation, negative_slope, residual)
    eps = _dispatch.number("eps", eps)
    if _dispatch.leaves_the_process():
        return reference.normalize_by(pool, input, weight, bias, eps, tail)
    if not isinstance(pool, Pool):
        return _engine.normalize_by(pool, input, weight, bias, eps=eps, tail=tail)
    if any(values is not None and values.dim() == 2 for values in (weight, bias)):
        return _engine.normalize_each(pool, input, weight, bias, eps=eps, tail=tail)
    return _engine.normalize(input, weight, bias, pool=pool, eps=eps, tail=tail)


def plane_moments(input: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and biased variance of each plane of a feature map, and their gradients.

    .. math:: \mu_{tc} = E[x_{tc}], \qquad \sigma^2_{tc} = E[(x_{tc} - \mu_{tc})^2]

    One half of every norm; :func:`plane_affine` is the other. Where both are of the same input and
    nothing but its planes' moments lies between them, :func:`pooled_norm` is the faster whole.

    Args:
        input: the feature map, (N, C, \*S); float32, float64, bfloat16 or float16.

    Returns:
        mean and var, (N, C), in float64 where the device has it.

    Raises:
        ValueError: fewer than three dimensions.
        NotImplementedError: a dtype that is not one of the four.

    >>> plane_moments(torch.tensor([[[1.0, 3.0]]]))
    (tensor([[2.]], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """
    if has_torch_function_unary(input):
        return handle_torch_function(plane_moments, (input,), input)
    _check_feature_map(input)
    _dispatch.check_operands("plane_moments", input, None, None)
    return reference.moments(input) if _dispatch.leaves_the_process() else _engine.moments(input)


def plane_affine(input: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    r"""Apply one affine map to each plane of a feature map.

    .. math:: y_{tc} = (x_{tc} - \mu_{tc}) \cdot a_{tc} + b_{tc}

    Args:
        input: the feature map, (N, C, \*S); float32, float64, bfloat16 or float16.
        mean, scale, shift: mu, a and b, (N, C) or what broadcasts to it, in floating point; best in
            float64, since :math:`x - \mu` is taken as exactly as mu is given.

    Returns:
        y, in the input's shape, dtype and memory layout. Gradients flow into all four.

    Raises:
        ValueError: fewer than three dimensions; an operand that does not broadcast to (N, C).
        NotImplementedError: a dtype that is not one of the four.

    >>> one = torch.ones(1, 1)
    >>> plane_affine(torch.tensor([[[1.0, 3.0]]]), one, 2 * one, 5 * one)
    tensor([[[5., 9.]]])
    """
    operands = (input, mean, scale, shift)
    if has_torch_function_variadic(*operands):
        return handle_torch_function(plane_affine, operands, *operands)
    _check_feature_map(input)
    _dispatch.check_operands("plane_affine", input, None, None)
    grid, dtype = input.shape[:2], reference.statistics_dtype(input)
    for name, values in (("mean", mean), ("scale", scale), ("shift", shift)):
        pairs = zip(reversed(values.shape), reversed(grid), strict=False)
        if values.dim() > 2 or any(size not in (1, whole) for size, whole in pairs):
            raise ValueError(
                f"{name} should broadcast to {tuple(grid)}, one value for each plane of the input "
                f"{tuple(input.shape)}, not have shape {tuple(values.shape)}"
            )
    mean, scale, shift = (values.to(dtype).expand(grid) for values in (mean, scale, shift))
    if _dispatch.leaves_the_process():
        return reference.apply(input, mean, scale, shift)
    return _engine.affine(input, mean, scale, shift)


def _check_feature_map(input: Tensor) -> None:
    if input.dim() < 3:
        raise ValueError(
            f"expected a feature map (N, C, *S), got shape {tuple(input.shape)}: "
            "add the missing dimensions"
        )
