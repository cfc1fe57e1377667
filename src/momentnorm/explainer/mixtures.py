"""Statistics that are mixed: Switchable and Batch-Instance Normalization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.pool import INSTANCE, Policy, Pool
from .statistics import first_of, record_plane_moments, record_pooled, record_pools
from .trace import STATISTICS, Steps, Worked
from .views import View


@dataclass(eq=False)
class Mixed:
    """Switchable Normalization: learned proportions of the plane's, sample's and batch's moments.

    Args:
        policy: the layer's own, of the leaves in ``parameters``.
        kinds: of "in" (plane), "ln" (sample) and "bn" (batch), those that the layer mixes.
        moments_of: of a kind, from the moments of the planes.
        running: whether the batch's are the running ones.
        unbiased: whether the variance of a plane is, rather than that of the pool.
        parameters: ``mean_weight`` and ``var_weight``.
    """

    policy: Policy
    kinds: tuple[str, ...]
    moments_of: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
    running: bool
    unbiased: bool
    parameters: dict[str, Tensor]
    of_input = True
    as_it_is = False
    centres = True

    _POOLS = {"in": INSTANCE, "ln": Pool(1, None), "bn": Pool(None, 1)}  # noqa: RUF012

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(mean, var)

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        record_plane_moments(steps, view, mean, var)
        what = {"in": "the plane", "ln": "all channels of the sample", "bn": "the whole batch"}
        for kind in self.kinds:
            given = self.running and kind == "bn"
            if not given:
                record_pools(steps, view, self._POOLS[kind], mean, f"{kind}_pools")
            words = {"mean": "the mean", "var": "the variance"}
            for name, letter, unit, values in zip(
                ("mean", "var"),
                (r"\mu", r"\sigma^2"),
                ("x", "x^2"),
                self.moments_of(kind, mean, var),
                strict=True,
            ):
                note = ""
                if name == "var" and not given:
                    note = "Planes have their unbiased variance here, divided by m - 1."
                    if not self.unbiased:
                        note = "It is the unbiased one, divided by the number of elements less 1."
                steps.add(
                    STATISTICS,
                    f"{kind}_{name}",
                    view.grid(values.expand(mean.shape)),
                    view.grid_axes,
                    f"{kind}_{name} = "
                    + (f"running_{name}" if given else f"{words[name]} over {what[kind]}"),
                    rf"{letter}_\mathrm{{{kind}}}",
                    unit=unit,
                    note=note,
                )
        mixed = dict(zip(("mean", "var"), self(mean, var), strict=True))
        for name, letter in (("mean", r"\mu"), ("var", r"\sigma^2")):
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
            parts = [
                first_of(self.moments_of(kind, mean, var)[name == "var"]) for kind in self.kinds
            ]
            numbers = [n for pair in zip(shares.tolist(), parts, strict=True) for n in pair]
            steps.add(
                STATISTICS,
                name,
                view.grid(mixed[name].expand(mean.shape)),
                view.grid_axes,
                f"{name} = " + " + ".join(f"share * {kind}_{name}" for kind in self.kinds),
                rf"{letter} = \sum_k w_k {letter}_k",
                unit="x" if name == "mean" else "x^2",
                worked=Worked(
                    " + ".join(["{} * {}"] * len(parts)) + " = {}",
                    (*numbers, first_of(mixed[name])),
                ),
            )


@dataclass(eq=False)
class Gated:
    """Batch-Instance Normalization: per channel, a gate's share of batch, the rest of instance.

    Args:
        policy: the layer's own; the variance that it returns has eps inside.
        batch: the batch's moments, or the running ones, from those of the planes.
        eps: added to both variances.
        parameters: ``gate``, (C,).
    """

    policy: Policy
    batch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    running: bool
    eps: float
    parameters: dict[str, Tensor]
    of_input = True
    as_it_is = False
    centres = True

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(mean, var)

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        record_pools(steps, view, INSTANCE, mean, "in_pools")
        record_plane_moments(steps, view, mean, var, ("in_mean", "in_var"))
        batch_mean, batch_var = self.batch(mean, var)
        if self.running:
            for name, values, unit in (("mean", batch_mean, "x"), ("var", batch_var, "x^2")):
                steps.add(
                    STATISTICS,
                    f"bn_{name}",
                    view.grid(values.expand(mean.shape)),
                    view.grid_axes,
                    f"bn_{name} = running_{name}",
                    r"\mu_B" if name == "mean" else r"\sigma_B^2",
                    unit=unit,
                )
        else:
            record_pools(steps, view, Pool(None, 1), mean, "bn_pools")
            record_pooled(
                steps, view, Pool(None, 1), mean, var, ("bn_mean", "bn_var"), ("in_mean", "in_var")
            )
        pooled_mean, pooled_var = self(mean, var)
        steps.add(
            STATISTICS,
            "gate",
            self.parameters["gate"].clamp(0, 1),
            ("C",),
            "gate of each channel, in [0, 1]: the batch's share",
            r"\rho",
        )
        gate = first_of(self.parameters["gate"].clamp(0, 1))
        steps.add(
            STATISTICS,
            "mean",
            view.grid(pooled_mean.expand(mean.shape)),
            view.grid_axes,
            "mean = in_mean + (bn_mean - in_mean) * gate * s_b / s, the zero of the mixed line",
            r"\mu = \frac{\rho s_B \mu_B + (1 - \rho) s_I \mu_I}{s}",
            unit="x",
            note="Both normalizations are lines in x, so their mixture is one line too.",
        )
        steps.add(
            STATISTICS,
            "var",
            view.grid(pooled_var.expand(mean.shape)),
            view.grid_axes,
            "var = 1 / s^2, s = gate * s_b + (1 - gate) * s_i, s_. = 1 / sqrt(var_. + eps)",
            r"\sigma^2 = s^{-2}, \quad s = \rho s_B + (1 - \rho) s_I",
            unit="x^2",
            note="eps is inside already.",
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
