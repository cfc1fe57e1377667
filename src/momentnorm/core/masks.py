"""Masks: statistics of the valid elements of a feature map, without its padding.

The kernels have no masks. :func:`fill` sets the padding of each plane to a constant near the mean
of the valid elements. The engine takes the moments of the filled plane. A policy, :class:`Masked`,
computes the moments of the valid elements from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import context
from .grid import statistics_dtype, unbiased
from .pool import Policy, Pool


def valid_elements(input: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
    """True where an element of the input is valid: bool, (N, 1, \\*S).

    For vectors, (N, C), a mask (N, 1) has one value for each sample.

    Raises:
        ValueError: both a mask and lengths, or neither; a shape that does not fit the input;
            lengths that are not integers.
    """
    samples, spatial = input.size(0), input.dim() - 2
    if mask is not None:
        if lengths is not None:
            raise ValueError("mask and lengths both say which elements are valid: pass one of them")
        expected = [samples, 1, *input.shape[2:]]
        if list(mask.shape) != expected:
            raise ValueError(
                f"mask should have shape {expected}, (N, 1, *S) or unbatched (1, *S), not "
                f"{list(mask.shape)}: pass one value for each place, for all channels"
            )
        return mask if mask.dtype == torch.bool else mask != 0
    if lengths is None:
        raise ValueError("pass a mask or lengths")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths are integers, not {lengths.dtype}: convert them with .long()")
    if spatial == 1 and lengths.dim() == 1:
        lengths = lengths.unsqueeze(1)
    if list(lengths.shape) != [samples, spatial]:
        raise ValueError(
            f"lengths should have shape {[samples, spatial]}, one for each spatial dimension of "
            f"each sample, or (N,) for inputs (N, C, L); not {list(lengths.shape)}"
        )
    valid = torch.ones([samples, 1] + [1] * spatial, dtype=torch.bool, device=input.device)
    for dimension in range(spatial):
        size = input.size(2 + dimension)
        inside = torch.arange(size, device=input.device) < lengths[:, dimension : dimension + 1]
        shape = [samples, 1] + [1] * spatial
        shape[2 + dimension] = size
        valid = valid & inside.view(shape)
    return valid


def checked_valid_elements(input: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Do :func:`valid_elements` with checks of type, device and range.

    The range of the lengths is checked on the CPU alone. On another device the check would make the
    program wait.

    Raises:
        TypeError: a mask or lengths that are not a tensor.
        RuntimeError: a mask or lengths on another device than the input.
        ValueError: a length below 0 or above the size of the input; all of :func:`valid_elements`.
    """
    for name, given in (("mask", mask), ("lengths", lengths)):
        if given is None:
            continue
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a Tensor or None, not {type(given).__name__}")
        if given.device != input.device:
            raise RuntimeError(
                f"{name} is on {given.device} and the input on {input.device}: "
                "move it with .to(input.device)"
            )
    valid = valid_elements(input, mask, lengths)
    if lengths is not None and lengths.device.type == "cpu" and not _symbolic(lengths):
        sizes = torch.tensor(input.shape[2:], device="cpu")
        if bool(((lengths < 0) | (lengths > sizes)).any()):
            raise ValueError(
                f"lengths should lie between 0 and {tuple(input.shape[2:])}, the sizes of the "
                f"input, not {lengths.tolist()}"
            )
    return valid


def _symbolic(lengths: Tensor) -> bool:
    compiling = torch.compiler.is_compiling()
    return compiling or context.transform_in_progress(lengths) is not None


@dataclass(frozen=True, eq=False)
class Masked:
    r"""Policy: the moments of the valid elements, from those of the filled plane.

    A plane of n elements has v valid ones, and the others are a constant c. With the moments
    :math:`\mu', \sigma'^2` of all n elements,

    .. math::
        \mu = c + (\mu' - c) \frac{n}{v}, \qquad
        \sigma^2 = \sigma'^2 \frac{n}{v} - (\mu - c)^2 \, \frac{n - v}{n}

    The subtracted term is small, since c is near the mean, so no digits are lost. The results do
    not depend on c, so no gradient flows into it. A plane without valid elements has mean and
    variance 0.

    Args:
        size: n, the number of elements of a plane.
        counts: v, the number of valid elements of the planes of each sample, (N, 1).
        fill: c, the constant of each plane, (N, C).
    """

    size: int
    counts: Tensor
    fill: Tensor

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.size / self.counts.clamp(min=1)
        offset = (mean - self.fill) * ratio
        padding = (self.size - self.counts) / self.size
        return self.fill + offset, (var * ratio - offset.square() * padding).clamp(min=0)

    def over(self, pool: Pool) -> Policy:
        """Policy of a pool of planes, in which each valid element has the same weight."""

        def policy(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            mean, var = self(mean, var)
            grid, counts = mean.shape, self.counts.expand(mean.shape)
            share = counts / pool.spread(pool.average(counts), grid).clamp(min=1 / grid.numel())
            centre = pool.spread(pool.average(share * mean), grid)
            off_centre = (mean - centre).square()
            return centre, pool.spread(pool.average(share * (var + off_centre)), grid)

        return policy

    def of_batch(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Averages for running statistics, from the moments of the filled planes.

        Returns mean and unbiased variance, (C,), averaged over the samples with valid elements, and
        the number of these samples. A plane with one valid element has the variance 0.
        """
        mean, var = self(mean, var)
        samples = (self.counts > 0).sum(dtype=mean.dtype)
        divisor = samples.clamp(min=1)
        return mean.sum(0) / divisor, unbiased(var, self.counts).sum(0) / divisor, samples


def fill(x: Tensor, valid: Tensor) -> tuple[Tensor, Masked]:
    """Fill the padding of x, and make the policy of the valid elements.

    No gradient flows into the padding.
    """
    dtype = statistics_dtype(x)
    spatial = tuple(range(2, x.dim()))
    counts = valid.sum(spatial, dtype=dtype)
    sums = torch.where(valid, x.detach(), 0).sum(spatial, dtype=dtype)
    # The policy takes the constant as it is after rounding to the dtype of x.
    constant = (sums / counts.clamp(min=1)).to(x.dtype)
    filled = torch.where(valid, x, constant.view(constant.shape + (1,) * len(spatial)))
    return filled, Masked(x.shape[2:].numel(), counts, constant.to(dtype))
