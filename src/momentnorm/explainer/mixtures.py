"""Mixtures: the statistics of Switchable and Batch-Instance Normalization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.pool import BATCH, INSTANCE, Policy, Pool
from .statistics import (
    record_moment,
    record_plane_moments,
    record_pooled_moments,
    record_pools,
)
from .steps import STATISTICS, Steps, Worked
from .values import first_of
from .views import View

#: Pool of each kind of moments that Switchable Normalization mixes, and its planes in words.
_KINDS = {
    "in": (INSTANCE, "the plane"),
    "ln": (Pool(1, None), "all channels of the sample"),
    "bn": (BATCH, "the whole batch"),
}

#: Name, word and LaTeX letter of each moment, in the order in which policies return them.
_MOMENTS = (("mean", "mean", r"\mu"), ("var", "variance", r"\sigma^2"))


@dataclass(eq=False)
class _Mixture:
    """Statistics by the policy of a layer.

    Args:
        policy: the policy of the layer, which reads the leaves in ``parameters``.
        parameters: the parameters of the policy that get a gradient.
        running: whether the moments of the batch are the running ones.
    """

    policy: Policy
    parameters: dict[str, Tensor]
    running: bool
    uses_input = True
    per_plane = False
    subtracts_mean = True

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(mean, var)


@dataclass(eq=False)
class Mixed(_Mixture):
    """Mixture of the moments of plane, sample and batch, as in Switchable Normalization.

    Its parameters are ``mean_weight`` and ``var_weight``.

    Args:
        policy, parameters, running: as in the base class.
        kinds: the kinds that the layer mixes, of "in" (plane), "ln" (sample) and "bn" (batch).
        moments_of: moments of one kind, from its name and the moments of the planes.
        unbiased_planes: whether the variance of a plane is unbiased. If not, that of a pool is.
    """

    kinds: tuple[str, ...]
    moments_of: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
    unbiased_planes: bool

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        record_plane_moments(steps, view, mean, var)
        for kind in self.kinds:
            self._record_kind(steps, view, kind, mean, var)
        mixed = self(mean, var)
        for index in range(2):
            self._record_mixture(steps, view, index, mixed[index], mean, var)

    def _record_kind(self, steps: Steps, view: View, kind: str, mean: Tensor, var: Tensor) -> None:
        """Record the pools and the moments of one kind."""
        pool, planes = _KINDS[kind]
        given = self.running and kind == "bn"
        if not given:
            record_pools(steps, view, pool, mean, f"{kind}_pools")
        for (name, word, letter), values in zip(
            _MOMENTS, self.moments_of(kind, mean, var), strict=True
        ):
            note = ""
            if name == "var" and not given:
                note = (
                    "The variance of a plane is the unbiased one here, divided by m - 1."
                    if self.unbiased_planes
                    else "The variance is unbiased: it is divided by the number of elements less 1."
                )
            record_moment(
                steps,
                view,
                f"{kind}_{name}",
                values.expand(mean.shape),
                f"{kind}_{name} = " + (f"running_{name}" if given else f"the {word} over {planes}"),
                rf"{letter}_\mathrm{{{kind}}}",
                note=note,
            )

    def _record_mixture(
        self, steps: Steps, view: View, index: int, mixed: Tensor, mean: Tensor, var: Tensor
    ) -> None:
        """Record the proportions of one moment (0 for the mean, 1 for the variance) and its sum."""
        name, _, letter = _MOMENTS[index]
        weight = self.parameters[f"{name}_weight"]
        shares = weight.softmax(0)
        exponents = weight.detach().tolist()
        total = " + ".join(["exp({})"] * len(exponents))
        steps.add(
            STATISTICS,
            f"{name}_shares",
            shares,
            ("/".join(self.kinds),),
            f"{name}_shares = softmax({name}_weight), of {', '.join(self.kinds)}",
            r"w_k = \frac{e^{\lambda_k}}{\sum_j e^{\lambda_j}}",
            worked=Worked(
                f"exp({{}}) / ({total}) = {{}}", (exponents[0], *exponents, first_of(shares))
            ),
        )
        parts = [first_of(self.moments_of(kind, mean, var)[index]) for kind in self.kinds]
        numbers = [n for pair in zip(shares.tolist(), parts, strict=True) for n in pair]
        record_moment(
            steps,
            view,
            name,
            mixed.expand(mean.shape),
            f"{name} = " + " + ".join(f"share * {kind}_{name}" for kind in self.kinds),
            rf"{letter} = \sum_k w_k {letter}_k",
            worked=Worked(
                " + ".join(["{} * {}"] * len(parts)) + " = {}", (*numbers, first_of(mixed))
            ),
        )


@dataclass(eq=False)
class Gated(_Mixture):
    """Mixture of batch and instance normalization by a gate, as in Batch-Instance Normalization.

    Its parameter is ``gate``, (C,), the share of batch normalization in each channel. The variance
    that its policy returns includes eps.

    Args:
        policy, parameters, running: as in the base class.
        batch: moments of the batch, or the running ones, from the moments of the planes.
        eps: added to both variances.
    """

    batch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    eps: float

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        record_pools(steps, view, INSTANCE, mean, "in_pools")
        record_plane_moments(steps, view, mean, var, ("in_mean", "in_var"))
        batch_mean, batch_var = self.batch(mean, var)
        if self.running:
            for name, values, latex in (
                ("mean", batch_mean, r"\mu_B"),
                ("var", batch_var, r"\sigma_B^2"),
            ):
                values = values.expand(mean.shape)
                formula = f"bn_{name} = running_{name}"
                record_moment(steps, view, f"bn_{name}", values, formula, latex)
        else:
            record_pools(steps, view, BATCH, mean, "bn_pools")
            names, of = ("bn_mean", "bn_var"), ("in_mean", "in_var")
            record_pooled_moments(steps, view, BATCH, mean, var, names, of)
        self._record_mixture(steps, view, mean, var, batch_var)

    def _record_mixture(
        self, steps: Steps, view: View, mean: Tensor, var: Tensor, batch_var: Tensor
    ) -> None:
        """Record the gate, and the mean and variance of the mixture."""
        pooled_mean, pooled_var = self(mean, var)
        gates = self.parameters["gate"].clamp(0, 1)
        formula = "gate of each channel, in [0, 1]: the share of the batch"
        steps.add(STATISTICS, "gate", gates, ("C",), formula, r"\rho")
        record_moment(
            steps,
            view,
            "mean",
            pooled_mean.expand(mean.shape),
            "mean = in_mean + (bn_mean - in_mean) * gate * s_b / s, the zero of the mixed line",
            r"\mu = \frac{\rho s_B \mu_B + (1 - \rho) s_I \mu_I}{s}",
            note="Both normalizations are lines in x, so their mixture is one line too.",
        )
        gate = first_of(gates)
        record_moment(
            steps,
            view,
            "var",
            pooled_var.expand(mean.shape),
            "var = 1 / s^2, s = gate * s_b + (1 - gate) * s_i, s_. = 1 / sqrt(var_. + eps)",
            r"\sigma^2 = s^{-2}, \quad s = \rho s_B + (1 - \rho) s_I",
            note="This variance includes eps.",
            worked=Worked(
                "1 / ({} * {} + {} * {})^2 = {}",
                (
                    gate,
                    first_of(torch.rsqrt(batch_var + self.eps)),
                    1 - gate,
                    first_of(torch.rsqrt(var + self.eps)),
                    first_of(pooled_var),
                ),
            ),
        )
