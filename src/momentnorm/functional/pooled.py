"""Pooled norm: normalization by any policy, and its two halves, moments and an affine map."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import (
    handle_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)

from ..core import checks, engine
from ..core.backends import reference
from ..core.context import leaves_the_process
from ..core.grid import statistics_dtype
from ..core.options import tail_of
from ..core.pool import Policy, Pool
from ..core.tail import Activation


def pooled_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    pool: Policy,
    eps: float = 1e-5,
    activation: Activation = None,
    residual: Tensor | None = None,
) -> Tensor:
    r"""Normalize with moments that a function of yours has pooled.

    .. math:: y = \phi\left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \gamma
        + \beta + r\right), \qquad (\mu, \sigma^2) = \mathrm{pool}(E[x], \mathrm{Var}[x])

    E and the biased Var are those of each plane, one channel of one sample. Kernels, gradients of
    all orders, memory layouts and transforms are those of the classic norms.

    Args:
        input: the feature map, (N, C, \*S) with at least one spatial dimension; float32, float64,
            bfloat16 or float16.
        weight: gamma, (C,), or (N, C) for one of each sample, or None for ones. In the dtype of
            the input, or float32 with a half type.
        bias: beta, (C,) or (N, C), or None for zeros. In the weight's dtype.
        pool: a policy, which is a :class:`momentnorm.Pool` or a function of ``(mean, var)``. It
            takes the moments of each plane, (N, C), in float64 where the device has it. It returns
            the mean and variance that each plane is normalized with, (N, C) or broadcastable to it.
            It calls torch's differentiable operators, so that its parameters get gradients.
        eps: added to the pooled variance.
        activation, residual: as in :func:`instance_norm`.

    Returns:
        The normalized feature map, with the shape, dtype and memory layout of the input.

    Raises:
        ValueError: fewer than three dimensions; an unknown activation.
        RuntimeError: operands whose shapes, dtypes or devices do not fit together.
        NotImplementedError: a dtype that is not one of the four.

    >>> x = torch.tensor([[[1.0, 3.0], [2.0, 6.0]]])
    >>> pooled_norm(x, pool=lambda mean, var: (0 * mean, var + mean**2))  # root mean squares
    tensor([[[0.4472, 1.3416],
             [0.4472, 1.3416]]])
    """
    operands = (input, weight, bias, residual)
    if has_torch_function_variadic(*operands):
        return handle_torch_function(
            pooled_norm,
            operands,
            *(input, weight, bias),
            pool=pool,
            eps=eps,
            activation=activation,
            residual=residual,
        )
    y, _, _ = pooled_norm_and_moments(input, weight, bias, pool, eps, activation, residual)
    return y


def pooled_norm_and_moments(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pool: Policy,
    eps: float,
    activation: Activation = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Result of :func:`pooled_norm`, and moments outside autograd, for running statistics.

    For a :class:`Pool` without parameters of each sample, the moments are those of each pool. For
    any other policy they are those of each plane before pooling.
    """
    _check_feature_map(input)
    # A pool may span more than one plane, so planes of one element are allowed.
    checks.check_operands("pooled_norm", input, weight, bias, per_sample=True)
    tail = tail_of(input, activation, residual)
    eps = checks.number("eps", eps)
    if leaves_the_process():
        return reference.normalize_by(pool, input, weight, bias, eps, tail)
    if not isinstance(pool, Pool):
        return engine.normalize_by(pool, input, weight, bias, eps=eps, tail=tail)
    if any(values is not None and values.dim() == 2 for values in (weight, bias)):
        return engine.normalize_each(pool, input, weight, bias, eps=eps, tail=tail)
    return engine.normalize(input, weight, bias, pool=pool, eps=eps, tail=tail)


def plane_moments(input: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and biased variance of each plane of a feature map, with their gradients.

    .. math:: \mu_{tc} = E[x_{tc}], \qquad \sigma^2_{tc} = E[(x_{tc} - \mu_{tc})^2]

    A norm is this function, arithmetic on its results, and :func:`plane_affine`. If the arithmetic
    needs the moments alone, :func:`pooled_norm` does all three faster.

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
    checks.check_operands("plane_moments", input, None, None)
    return reference.moments(input) if leaves_the_process() else engine.moments(input)


def plane_affine(input: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    r"""Apply one affine map to each plane of a feature map.

    .. math:: y_{tc} = (x_{tc} - \mu_{tc}) \cdot a_{tc} + b_{tc}

    Args:
        input: the feature map, (N, C, \*S); float32, float64, bfloat16 or float16.
        mean, scale, shift: mu, a and b, (N, C) or broadcastable to it, in floating point. Pass
            float64, if you have it: an error of mu is an error of :math:`x - \mu`.

    Returns:
        y, with the shape, dtype and memory layout of the input. Gradients flow into all operands.

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
    checks.check_operands("plane_affine", input, None, None)
    planes, dtype = input.shape[:2], statistics_dtype(input)
    for name, values in (("mean", mean), ("scale", scale), ("shift", shift)):
        pairs = zip(reversed(values.shape), reversed(planes), strict=False)
        if values.dim() > 2 or any(size not in (1, whole) for size, whole in pairs):
            raise ValueError(
                f"{name} should broadcast to {tuple(planes)}, one value for each plane of the "
                f"input {tuple(input.shape)}, but has shape {tuple(values.shape)}"
            )
    mean, scale, shift = (values.to(dtype).expand(planes) for values in (mean, scale, shift))
    if leaves_the_process():
        return reference.apply(input, mean, scale, shift)
    return engine.affine(input, mean, scale, shift)


def _check_feature_map(input: Tensor) -> None:
    if input.dim() < 3:
        raise ValueError(
            f"expected a feature map (N, C, *S), got shape {tuple(input.shape)}: "
            "add the missing dimensions"
        )
