"""Moments: count, mean and variance of a set of numbers, as a value that merges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .core import engine


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Count, mean and biased variance of sets of numbers, usually one set for each plane.

    The moments of two sets merge into those of both together (Chan, Golub and LeVeque, 1979). So
    the tiles of an image, the frames of a film or the ranks of a job can be measured one by one:

    .. math::
        \delta = \mu_b - \mu_a, \qquad
        \mu = \mu_a + \delta \frac{n_b}{n}, \qquad
        \sigma^2 = \frac{n_a \sigma_a^2 + n_b \sigma_b^2}{n} + \delta^2 \frac{n_a n_b}{n^2}

    Args:
        count: number of elements of each set, a tensor that broadcasts to ``mean``.
        mean: mean of each set, usually (N, C), in float64 where the device has it.
        var: biased variance of each set, like ``mean``.

    >>> left, right = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 6.0]]])
    >>> (Moments.of(left) + Moments.of(right)).var  # the variance of 1, 2, 3, 6
    tensor([[3.5000]], dtype=torch.float64)
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, x: Tensor) -> Moments:
        """Moments of each plane of a feature map (N, C, \\*S), outside autograd.

        Raises:
            ValueError: fewer than three dimensions.
        """
        if x.dim() < 3:
            raise ValueError(
                f"expected a feature map (N, C, *S), got shape {tuple(x.shape)}: "
                "add the missing dimensions"
            )
        mean, var = engine.moments(x)
        return cls(torch.tensor(x.shape[2:].numel(), dtype=mean.dtype, device=x.device), mean, var)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together. A set with count 0 changes nothing."""
        count = self.count + other.count
        share = torch.where(count > 0, other.count / count.clamp(min=1), 0)
        # An empty set has the mean NaN, which must not reach the result.
        mine = torch.where(self.count > 0, self.mean, other.mean)
        delta = torch.where(other.count > 0, other.mean - mine, 0)
        my_var = torch.where(self.count > 0, self.var, 0)
        other_var = torch.where(other.count > 0, other.var, 0)
        var = my_var * (1 - share) + other_var * share + delta.square() * (share * (1 - share))
        return Moments(count, mine + delta * share, torch.where(count > 0, var, torch.nan))

    __add__ = merge

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors ``count``, ``mean`` and ``var`` by name, for ``torch.save`` or safetensors."""
        return {"count": self.count, "mean": self.mean, "var": self.var}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> Moments:
        """Moments from the tensors that :meth:`state_dict` gave.

        Raises:
            ValueError: a missing name.
        """
        missing = {"count", "mean", "var"} - state.keys()
        if missing:
            raise ValueError(
                f"moments need count, mean and var; missing: {sorted(missing)}: pass a dictionary "
                "that Moments.state_dict() returned"
            )
        return cls(state["count"], state["mean"], state["var"])
