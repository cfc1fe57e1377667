"""One bad number in one operand changes only the results that depend on it.

A NaN, an infinity, a huge number or a subnormal is put at one place of one operand. Float64 torch
computes which results change by that. Every other result has to keep its bits. The results that
change have to be non-finite where those of float64 torch are, and near them elsewhere. NaN and
infinity count as one here, since a formula turns one into the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from momentnorm import functional
from momentnorm.core.backends import cpu
from support.layouts import LAYOUTS
from support.tolerances import GRADIENT, STATISTICS

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())

EPS, MOMENTUM = 1e-5, 0.1
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Tails: an activation, and whether there is a residual.
TAILS = ((None, False), ("relu", True), ("leaky_relu", False), ("silu", True), ("gelu", False))
Operands = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Layer and shape of its input. Every kernel has at least one case."""

    layer: str
    shape: tuple[int, int, int]  # (N, C, S)
    groups: int = 0

    @property
    def evaluates(self) -> bool:
        """Whether the layer uses running statistics."""
        return self.layer == "batch_norm_eval"

    @property
    def pooled(self) -> tuple[int, ...]:
        """Dimensions of (N, groups, channels of a group, S) that share their statistics."""
        return (2, 3) if self.layer in ("instance_norm", "group_norm") else (0, 3)

    def __str__(self) -> str:
        return f"{self.layer}-{'x'.join(map(str, self.shape))}" + f"-{self.groups}" * (
            self.groups > 0
        )


CASES = (
    # Planes and blocks of planes. In channels_last: rows of pixels, and the rest of the pixels.
    Case("instance_norm", (2, 3, 5)),
    Case("instance_norm", (2, 3, 300)),
    Case("instance_norm", (1, 2, 8209)),
    Case("instance_norm", (1, 48, 35)),
    # Small groups: several in a register, whole registers with a rest, chunks, a large group.
    Case("group_norm", (3, 6, 3), 3),
    Case("group_norm", (2, 6, 47), 3),
    Case("group_norm", (1, 30, 49), 1),
    Case("group_norm", (1, 4, 131), 2),
    # Small batches of vectors and of small planes, and batches of larger planes.
    Case("batch_norm", (9, 5, 1)),
    Case("batch_norm", (3, 5, 47)),
    Case("batch_norm", (2, 3, 131)),
    Case("batch_norm_eval", (3, 5, 1)),
    Case("batch_norm_eval", (2, 5, 47)),
    Case("batch_norm_eval", (2, 3, 131)),
)


def operands_of(case: Case, dtype: torch.dtype, with_residual: bool) -> Operands:
    channels = case.shape[1]
    operands = {
        "x": torch.randn(case.shape, dtype=torch.float64) + 1,
        "weight": torch.rand(channels, dtype=torch.float64) + 0.5,
        "bias": torch.randn(channels, dtype=torch.float64),
        "gradient": torch.randn(case.shape, dtype=torch.float64),
    }
    if case.layer != "group_norm":
        operands["running_mean"] = torch.randn(channels, dtype=torch.float64)
        operands["running_var"] = torch.rand(channels, dtype=torch.float64) + 0.5
    if with_residual:
        operands["residual"] = torch.randn(case.shape, dtype=torch.float64)
    return {name: values.to(dtype) for name, values in operands.items()}


def results_of(forward: Callable[[Operands], Tensor], operands: Operands, layout: str) -> Operands:
    """Output, all gradients, and the running statistics if there are any."""
    given = {
        name: LAYOUTS[layout](values) if values.dim() > 1 else values.clone()
        for name, values in operands.items()
    }
    differentiated = {
        name: given[name].detach().requires_grad_()
        for name in ("x", "weight", "bias", "residual")
        if name in given
    }
    y = forward(given | differentiated)
    gradients = torch.autograd.grad(y, differentiated.values(), given["gradient"])
    running = {name: given[name] for name in ("running_mean", "running_var") if name in given}
    named = {f"d{name}": values for name, values in zip(differentiated, gradients, strict=True)}
    return {"y": y.detach()} | named | running


def ours(case: Case, activation: str | None) -> Callable[[Operands], Tensor]:
    def forward(given: Operands) -> Tensor:
        x, weight, bias = given["x"], given["weight"], given["bias"]
        tail = {"activation": activation, "residual": given.get("residual")}
        if case.layer == "group_norm":
            return functional.group_norm(x, case.groups, weight, bias, EPS, **tail)
        running = given["running_mean"], given["running_var"]
        norm = functional.batch_norm if "batch" in case.layer else functional.instance_norm
        statistics = not case.evaluates if norm is functional.batch_norm else True
        return norm(x, *running, weight, bias, statistics, MOMENTUM, EPS, **tail)

    return forward


def exact(case: Case, activation: str | None) -> Callable[[Operands], Tensor]:
    """y by the definition, in torch's operators."""

    def forward(given: Operands) -> Tensor:
        samples, channels, size = case.shape
        groups = case.groups or channels
        x = given["x"].reshape(samples, groups, channels // groups, size)
        if case.evaluates:
            mean, var = (given[f"running_{moment}"].view(1, -1, 1, 1) for moment in ("mean", "var"))
        else:
            mean = x.mean(case.pooled, keepdim=True)
            var = (x - mean).square().mean(case.pooled, keepdim=True)
            update_running(case, given, mean.detach(), var.detach())
        x_hat = ((x - mean) / (var + EPS).sqrt()).view(case.shape)
        y = x_hat * given["weight"][:, None] + given["bias"][:, None]
        if "residual" in given:
            y = y + given["residual"]
        return y if activation is None else getattr(torch.nn.functional, activation)(y)

    return forward


def update_running(case: Case, given: Operands, mean: Tensor, var: Tensor) -> None:
    if case.layer == "group_norm":
        return
    samples, _, size = case.shape
    count = size if case.layer == "instance_norm" else samples * size
    for name, values in ("running_mean", mean), ("running_var", var * (count / (count - 1))):
        given[name].mul_(1 - MOMENTUM).add_(values.mean((0, 2, 3)), alpha=MOMENTUM)


def scales_of(case: Case, operands: Operands, results: Operands) -> Operands:
    """Magnitude for the error of each result: the largest value in its pool.

    Gradients are sums of terms as large as the gradient of y. These may cancel.
    """
    samples, channels, size = case.shape
    groups = case.groups or channels
    gradient = operands["gradient"].double().abs()
    weight = operands["weight"].double().abs()[:, None]
    terms = {"dx": gradient * weight, "dresidual": gradient}
    # A sum of samples * size terms. In most of them x_hat is below 4.
    of_parameter = 4 * (samples * size) ** 0.5 * gradient.amax((0, 2)).clamp(min=1)
    scales = {}
    for name, values in results.items():
        scale = values.abs()
        if values.dim() > 1:
            scale = torch.maximum(scale, terms.get(name, scale)).nan_to_num(posinf=0)
            by_pool = scale.view(samples, groups, channels // groups, size)
            scale = by_pool.amax(case.pooled, keepdim=True).expand_as(by_pool)
        elif name.startswith("d"):
            scale = scale + of_parameter
        scales[name] = scale.clamp(min=1)
    return scales


def flat(results: Operands) -> Tensor:
    return torch.cat([values.double().flatten() for values in results.values()])


def differ(one: Tensor, other: Tensor) -> Tensor:
    return (one != other) & ~(one.isnan() & other.isnan())


def bad_numbers(dtype: torch.dtype) -> dict[str, float]:
    huge = 6e4 if dtype is torch.float16 else 1e37
    return {
        "nan": torch.nan,
        "inf": torch.inf,
        "huge": huge,
        "subnormal": torch.finfo(dtype).tiny / 4,
    }


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_bad_number(case, dtype, layout, restored):
    places = random.Random(f"{case} {dtype} {layout}")
    activation, with_residual = TAILS[places.randrange(len(TAILS))]
    operands = operands_of(case, dtype, with_residual)
    sets = cpu.instruction_sets()

    def computed(given: Operands) -> list[Tensor]:
        found = []
        for instruction_set in sets:
            cpu.choose_instruction_set(instruction_set)
            found.append(flat(results_of(ours(case, activation), given, layout)))
        return found

    def wanted(given: Operands) -> Operands:
        in_double = {name: values.double() for name, values in given.items()}
        return results_of(exact(case, activation), in_double, "contiguous")

    clean, exact_clean = computed(operands), flat(wanted(operands))
    failures = []
    for name, values in operands.items():
        for number, value in bad_numbers(dtype).items():
            place = places.choice((0, values.numel() - 1, places.randrange(values.numel())))
            poisoned = values.clone()
            poisoned.view(-1)[place] = value
            given = operands | {name: poisoned}
            reference = wanted(given)
            found = computed(given)
            scales = scales_of(case, given, reference)
            problem = problem_of(dtype, reference, scales, exact_clean, clean, found)
            if problem:
                failures.append(f"{number} at {place} of {name}: {problem}")
    assert not failures, f"{activation}\n" + "\n".join(failures)


def problem_of(
    dtype: torch.dtype,
    reference: Operands,
    scales: Operands,
    exact_clean: Tensor,
    clean: list[Tensor],
    found: list[Tensor],
) -> str:
    """Describe the wrong results of each instruction set, or return ""."""
    exact_results = flat(reference)
    rounded = flat({name: values.to(dtype) for name, values in reference.items()})
    may_change = differ(exact_results, exact_clean)
    units = GRADIENT[dtype] * torch.finfo(dtype).eps + STATISTICS[dtype]
    bound = units * flat(scales)
    for name, before, after in zip(cpu.instruction_sets(), clean, found, strict=True):
        wrong = {
            "changes and should not": differ(before, after) & ~may_change,
            "is finite and should not be, or the other way": after.isfinite() ^ rounded.isfinite(),
            "is far off": rounded.isfinite() & ((after - rounded).abs() > bound),
            "differs between instruction sets": differ(after, found[0]),
        }
        for what, where in wrong.items():
            if where.any():
                return describe(reference, name, what, where, after, rounded)
    return ""


def describe(
    reference: Operands, name: str, what: str, where: Tensor, after: Tensor, wanted: Tensor
) -> str:
    """Describe the first wrong result and the number of wrong results."""
    names = [f"{result}[{i}]" for result in reference for i in range(reference[result].numel())]
    first = int(where.nonzero()[0])
    return (
        f"{name}: {names[first]} {what}: {after[first]} for {wanted[first]}; "
        f"{int(where.sum())} such results"
    )
