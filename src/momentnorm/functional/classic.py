"""Classic norms: instance, batch and group normalization with torch's signatures."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..core import checks, engine, standard_operators
from ..core.context import intercept_torch, takes_torch_functions
from ..core.grid import unbiased, update_running
from ..core.options import Options, Pair, Prepared, prepare
from ..core.pool import BATCH, INSTANCE, Pool
from ..core.tail import Activation


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
    activation: Activation = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    r"""Normalize each channel of each sample by its own mean and variance.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    Mean and biased variance are taken over the spatial elements of one plane, one channel of one
    sample (Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing Ingredient for Fast
    Stylization*, arXiv 1607.08022). Semantics, signature and errors are those of
    :func:`torch.nn.functional.instance_norm`. The output keeps the memory layout of the input. The
    keyword arguments are additions: the residual r and the activation :math:`\phi` are computed in
    the same pass over memory as the normalization, forward and backward.

    Args:
        input: the feature map, (N, C, \*S) with at least one spatial dimension; float32, float64,
            bfloat16 or float16.
        running_mean: (C,), or None. Updated in place with ``use_input_stats``, used without it.
        running_var: (C,), or None. Like ``running_mean``; holds the unbiased variance.
        weight: gamma, (C,), or None for ones. In the input's dtype, or float32 with a half type.
        bias: beta, (C,), or None for zeros. In the weight's dtype.
        use_input_stats: whether to normalize with statistics of the input, not the running ones.
        momentum: share of this batch in the new running statistics.
        eps: added to the variance.
        activation: "relu", "leaky_relu", "silu", "gelu" (exact, by erf), "tanh", "sigmoid" or None;
            or ``("leaky_relu", 0.2)`` for another negative slope than 0.01.
        residual: added before the activation; with the shape, dtype and device of the input.
        mask: (N, 1, \*S), bool or numbers of which 0 is False: True where an element is valid. The
            other elements are the padding. They have no part in any statistic or gradient, and are
            0 in the output. A plane without valid elements is all 0 and has no part in the running
            statistics. A plane with one valid element has the unbiased variance 0 there.
        lengths: another way to give the mask: the first elements of each sample are valid. Integers
            (N,) for inputs (N, C, L), else (N, number of spatial dimensions).
        inplace: whether to write the output over the input. An error where autograd would have to
            record the call.
        out: a tensor with the shape, dtype and device of the input to write the output into. It may
            be the input, or lie apart from it. An error where autograd would have to record.

    Returns:
        The normalized feature map, with the shape, dtype and memory layout of the input; ``input``
        itself with ``inplace``; ``out`` itself where given.

    Raises:
        ValueError: one spatial element, if ``use_input_stats``; fewer than three dimensions; one
            running statistic without the other; an unknown activation; a mask or lengths that do
            not fit the input; two options that exclude each other.
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
    options = Options(activation, residual, mask, lengths, inplace, out)
    statistics = running_mean, running_var
    parameters = weight, bias
    operands = (input, *statistics, *parameters, residual, mask, lengths, out)
    overridden = has_torch_function_variadic(*operands)
    if overridden and not intercept_torch(*operands):
        settings = use_input_stats, momentum, eps
        return handle_torch_function(
            instance_norm,
            operands,
            *(input, *statistics, *parameters, *settings),
            **options._asdict(),
        )
    if overridden or takes_torch_functions(input):
        return standard_operators.instance_norm(
            input, statistics, parameters, use_input_stats, momentum, eps, options
        )
    momentum, eps = checks.number("momentum", momentum), checks.number("eps", eps)
    checks.check_instance(input, use_input_stats)
    checks.check_statistics_given("use_input_stats", use_input_stats, *statistics)
    checks.check_operands("instance_norm", input, *parameters, *statistics)
    call = prepare(input, *parameters, options)
    if not use_input_stats:
        return call.finish(_normalize_with(call, statistics, parameters, eps))
    updates = running_mean is not None and input.numel()
    if call.masked is None:
        y, mean, var = engine.normalize(call.x, weight, bias, eps=eps, tail=call.tail, out=call.out)
        if updates:
            var = unbiased(var.mean(0), input.shape[2:].numel())
            update_running(statistics, mean.mean(0), var, momentum)
    else:
        y, mean, var = engine.normalize_by(
            call.masked, call.x, weight, bias, eps=eps, tail=call.tail
        )
        if updates:
            mean, var, samples = call.masked.of_batch(mean, var)
            update_running(statistics, mean, var, momentum * (samples > 0).to(mean.dtype))
    return call.finish(y)


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
    activation: Activation = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    r"""Normalize each channel by its mean and variance over the batch, or by running statistics.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    In training, mean and biased variance are taken over all samples and spatial elements of one
    channel. Otherwise they are ``running_mean`` and ``running_var`` (Ioffe and Szegedy, *Batch
    Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift*, arXiv
    1502.03167). Semantics, signature and errors are those of
    :func:`torch.nn.functional.batch_norm`. The output keeps the memory layout of the input. The
    keyword arguments are those of :func:`instance_norm`.

    Args:
        input: the feature map, (N, C) or (N, C, \*S); float32, float64, bfloat16 or float16.
        running_mean: (C,), or None. Updated in place in ``training``, used otherwise.
        running_var: (C,), or None. Like ``running_mean``; holds the unbiased variance.
        weight: gamma, (C,), or None for ones. In the input's dtype, or float32 with a half type.
        bias: beta, (C,), or None for zeros. In the weight's dtype.
        training: whether to normalize with statistics of the input, not the running ones.
        momentum: share of this batch in the new running statistics.
        eps: added to the variance.
        activation, residual, inplace, out: as in :func:`instance_norm`.
        mask: as in :func:`instance_norm`, or (N, 1) for vectors. Each valid element has the same
            share in the statistics, so long samples count more than short ones.
        lengths: as in :func:`instance_norm`; not for vectors.

    Returns:
        The normalized feature map, with the shape, dtype and memory layout of the input; ``input``
        itself with ``inplace``; ``out`` itself where given.

    Raises:
        ValueError: one value per channel, in training; one running statistic without the other; an
            eps that is negative, or 0 in training; an unknown activation; a mask or lengths that do
            not fit the input; two options that exclude each other.
        IndexError: fewer than two dimensions, in training.
        RuntimeError: no running statistics, without ``training``; operands whose shapes, dtypes or
            devices do not fit together; ``inplace`` or ``out`` where an operand requires grad, or
            where the tensor cannot be written over.
        NotImplementedError: a dtype that is not one of the four.

    >>> x = torch.tensor([[1.0, 6.0], [9.0, 4.0]])  # means 5 and 5, variances 16 and 1
    >>> batch_norm(x, None, None, training=True)
    tensor([[-1.0000,  1.0000],
            [ 1.0000, -1.0000]])
    """
    options = Options(activation, residual, mask, lengths, inplace, out)
    statistics = running_mean, running_var
    parameters = weight, bias
    operands = (input, *statistics, *parameters, residual, mask, lengths, out)
    overridden = has_torch_function_variadic(*operands)
    if overridden and not intercept_torch(*operands):
        return handle_torch_function(
            batch_norm,
            operands,
            *(input, *statistics, *parameters, training, momentum, eps),
            **options._asdict(),
        )
    if overridden or takes_torch_functions(input):
        return standard_operators.batch_norm(
            input, statistics, parameters, training, momentum, eps, options
        )
    momentum, eps = checks.number("momentum", momentum), checks.number("eps", eps)
    checks.check_batch(input, training, eps)
    checks.check_statistics_given("training", training, *statistics)
    checks.check_operands("batch_norm", input, *parameters, *statistics)
    call = prepare(input, *parameters, options)
    vectors = input.dim() == 2 and call.masked is None
    if vectors:  # the vectors of a batch are the elements of one sample
        call = call.reshaped(lambda values: values.t().unsqueeze(0))
    if not training:
        y = _normalize_with(call, statistics, parameters, eps)
    elif call.masked is not None:
        y = _masked_batch_norm(call, statistics, parameters, momentum, eps)
    else:
        y, mean, var = engine.normalize(
            call.x,
            weight,
            bias,
            pool=INSTANCE if vectors else BATCH,
            eps=eps,
            tail=call.tail,
            out=call.out,
        )
        if running_mean is not None and input.numel():
            count = call.x.shape[0] * call.x.shape[2:].numel()
            update_running(statistics, mean[0], unbiased(var[0], count), momentum)
    return call.finish(y.squeeze(0).t() if vectors else y)


def _masked_batch_norm(
    call: Prepared, statistics: Pair, parameters: Pair, momentum: float, eps: float
) -> Tensor:
    """y of a training step with a mask."""
    assert call.masked is not None
    policy = call.masked.over(BATCH)
    y, mean, var = engine.normalize_by(policy, call.x, *parameters, eps=eps, tail=call.tail)
    if statistics[0] is not None and call.x.numel():
        mean, var = policy(mean, var)
        count = call.masked.counts.sum()
        share = momentum * (count > 0).to(mean.dtype)
        update_running(statistics, mean[0], unbiased(var[0], count), share)
    return y


def _normalize_with(call: Prepared, statistics: Pair, parameters: Pair, eps: float) -> Tensor:
    """y of an evaluation with running statistics."""
    mean, var = statistics
    assert mean is not None
    assert var is not None
    return engine.normalize_with(
        call.x, mean, var, *parameters, eps=eps, tail=call.tail, out=call.out
    )


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    r"""Normalize each group of channels of each sample by its own mean and variance.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    Mean and biased variance are taken over the spatial elements of C / ``num_groups`` neighbouring
    channels of one sample (Wu and He, *Group Normalization*, arXiv 1803.08494). As many groups as
    channels are Instance Normalization. One group is Layer Normalization over (C, \*S), with a
    weight and a bias per channel. Semantics, signature and errors are those of
    :func:`torch.nn.functional.group_norm`. The output keeps the memory layout of the input.

    Args:
        input: the feature map, (N, C) or (N, C, \*S); float32, float64, bfloat16 or float16.
        num_groups: a divisor of C.
        weight: gamma, (C,), or None for ones. In the input's dtype, or float32 with a half type.
        bias: beta, (C,), or None for zeros. In the weight's dtype.
        eps: added to the variance.
        activation, residual, mask, lengths, inplace, out: as in :func:`batch_norm`.

    Returns:
        The normalized feature map, with the shape, dtype and memory layout of the input; ``input``
        itself with ``inplace``; ``out`` itself where given.

    Raises:
        ValueError: groups of one value, if there is one sample; an unknown activation; a mask or
            lengths that do not fit the input; two options that exclude each other.
        RuntimeError: fewer than two dimensions; a ``num_groups`` that does not divide the number of
            channels; operands whose shapes, dtypes or devices do not fit together; ``inplace`` or
            ``out`` where an operand requires grad, or where the tensor cannot be written over.
        ZeroDivisionError: a ``num_groups`` of 0.
        NotImplementedError: a dtype that is not one of the four.

    >>> x = torch.tensor([[[1.0, 6.0], [9.0, 4.0]]])  # mean 5, variance 8.5
    >>> group_norm(x, 1)
    tensor([[[-1.3720,  0.3430],
             [ 1.3720, -0.3430]]])
    """
    options = Options(activation, residual, mask, lengths, inplace, out)
    operands = (input, weight, bias, residual, mask, lengths, out)
    overridden = has_torch_function_variadic(*operands)
    if overridden and not intercept_torch(*operands):
        return handle_torch_function(
            group_norm, operands, input, num_groups, weight, bias, eps, **options._asdict()
        )
    if overridden or takes_torch_functions(input):
        return standard_operators.group_norm(input, num_groups, weight, bias, eps, options)
    eps = checks.number("eps", eps)
    checks.check_groups(input, num_groups)
    checks.check_operands("group_norm", input, weight, bias)
    call = prepare(input, weight, bias, options)
    # An input without channels would have groups of 0 channels, which no pool can have.
    pool = Pool(1, max(1, input.shape[1] // num_groups))
    if call.masked is not None:
        policy = call.masked.over(pool)
        y, _, _ = engine.normalize_by(policy, call.x, weight, bias, eps=eps, tail=call.tail)
        return call.finish(y)
    vectors = input.dim() == 2
    if vectors:  # vectors are planes of one element
        call = call.reshaped(lambda values: values.unsqueeze(2))
    y, _, _ = engine.normalize(
        call.x, weight, bias, pool=pool, eps=eps, tail=call.tail, out=call.out
    )
    return call.finish(y.squeeze(2) if vectors else y)
