"""GroupNorm, BatchNorm and LayerNorm over (C, *S) on the CPU against torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import geometric_mean

import torch
from torch import Tensor, nn

import momentnorm

from .instance_norm import LAYERS
from .timing import interleaved

NOTES = """\
- *forward* is without autograd; of BatchNorm it is in training mode, with running statistics, and
  *eval* is with those. *training* is forward and backward with gradients of x, weight and bias.
- Times are ours, with torch's as a multiple of them: above 1 ours is faster.
- LayerNorm with a weight for each element is torch's own class: the ratio is 1 by definition, and
  it is not measured. With a weight for each channel it is GroupNorm of one group.
"""

SHAPES = (
    (8, 64, 56, 56),
    (8, 128, 28, 28),
    (8, 512, 7, 7),
    (2, 32, 32, 32, 32),
    (128, 256),
)
GROUPS = (32, 8, 1)
BATCH_NORMS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    2: (momentnorm.BatchNorm1d, nn.BatchNorm1d),
    4: (momentnorm.BatchNorm2d, nn.BatchNorm2d),
    5: (momentnorm.BatchNorm3d, nn.BatchNorm3d),
}


@dataclass(frozen=True)
class Row:
    """Median seconds of one layer on one input: ``eval`` of BatchNorm alone, LayerNorm without."""

    layer: str
    shape: str
    dtype: str
    layout: str
    forward: float | None = None
    torch_forward: float | None = None
    training: float | None = None
    torch_training: float | None = None
    eval: float | None = None
    torch_eval: float | None = None

    def speedup(self, task: str) -> float | None:
        """torch's time over ours, if this was measured."""
        ours, theirs = getattr(self, task), getattr(self, f"torch_{task}")
        return theirs / ours if ours else None


TASKS = ("forward", "training", "eval")


def rows() -> Iterator[Row]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            for shape in SHAPES:
                if layout == "channels_last" and len(shape) == 2:
                    continue  # vectors have one layout
                for groups in GROUPS:
                    yield measure(f"GroupNorm({groups})", shape, dtype, layout)
                yield measure("BatchNorm", shape, dtype, layout)
                yield Row("LayerNorm", *_named(shape, dtype), layout)


def _named(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[str, str]:
    return "x".join(map(str, shape)), str(dtype).removeprefix("torch.")


def layers(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's; half types with float32 parameters, as in mixed precision."""
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    if name == "InstanceNorm":
        ours, theirs = LAYERS[len(shape)]
        return (
            ours(shape[1], affine=True, dtype=parameters),
            theirs(shape[1], affine=True, dtype=parameters),
        )
    if name == "BatchNorm":
        ours, theirs = BATCH_NORMS[len(shape)]
        return ours(shape[1], dtype=parameters), theirs(shape[1], dtype=parameters)
    groups = int(name.removeprefix("GroupNorm(").removesuffix(")"))
    return (
        momentnorm.GroupNorm(groups, shape[1], dtype=parameters),
        nn.GroupNorm(groups, shape[1], dtype=parameters),
    )


def measure(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    budget: float = 1.0,
    x: Tensor | None = None,
) -> Row:
    """Times of this layer on noise in this layout, or on a given x, whose layout has that name."""
    torch.manual_seed(0)
    gradient = _laid_out(torch.randn(shape).to(dtype), layout)
    if x is None:
        x = _laid_out(torch.randn(shape).to(dtype), layout)
    leaf = x.detach().requires_grad_()
    ours, theirs = layers(name, shape, dtype)
    _check(ours, x)

    def step(layer: nn.Module) -> Callable[[], None]:
        def call() -> None:
            leaf.grad = None
            layer.zero_grad()
            layer(leaf).backward(gradient)

        return call

    @torch.inference_mode()
    def run(layer: nn.Module) -> None:
        layer(x)

    times = interleaved(
        {
            "forward": lambda: run(ours),
            "torch_forward": lambda: run(theirs),
            "training": step(ours),
            "torch_training": step(theirs),
        },
        budget=budget,
        pause=0.01 if budget else 1e-9,
    )
    if name == "BatchNorm":
        ours.eval()
        theirs.eval()
        times |= interleaved(
            {"eval": lambda: run(ours), "torch_eval": lambda: run(theirs)},
            budget=budget,
            pause=0.01 if budget else 1e-9,
        )
    text, element = _named(shape, dtype)
    return Row(layer=name, shape=text, dtype=element, layout=layout, **times)


def _laid_out(x: Tensor, layout: str) -> Tensor:
    last = layout.startswith("channels_last")
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def _check(ours: nn.Module, x: Tensor) -> None:
    """Check the functions that are timed against float64."""
    exact = x.double().contiguous()
    if isinstance(ours, nn.modules.instancenorm._InstanceNorm):
        exact = nn.functional.instance_norm(exact)
    elif isinstance(ours, nn.GroupNorm):
        exact = nn.functional.group_norm(exact, ours.num_groups)
    else:
        exact = nn.functional.batch_norm(exact, None, None, training=True)
    tolerance = 1e-5 if x.dtype == torch.float32 else 4 * torch.finfo(x.dtype).eps
    torch.testing.assert_close(ours(x).double(), exact, rtol=tolerance, atol=tolerance)


def table(rows: list[Row]) -> str:
    """One line for each layer and input; the means; and whatever is slower."""
    lines = [
        "| layer | input | forward (us) | torch | training (us) | torch | eval (us) | torch |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row.forward is None:
            lines.append(f"| {row.layer} | {row.shape} | torch's own kernel | 1x | | | | |")
            continue
        cells = []
        for task in TASKS:
            speedup = row.speedup(task)
            if speedup is None:
                cells.append(" | ")
            else:
                cells.append(f"{getattr(row, task) * 1e6:.0f} | {speedup:.2f}x")
        lines.append(f"| {row.layer} | {row.shape} | {' | '.join(cells)} |")
    found = {
        task: [(speedup, row) for row in rows if (speedup := row.speedup(task))] for task in TASKS
    }
    means = ", ".join(
        f"{task} {geometric_mean([speedup for speedup, _ in cells]):.2f}x"
        for task, cells in found.items()
        if cells
    )
    lines.append(f"\nGeometric mean: {means}.")
    slower = ", ".join(
        f"{row.layer} {row.shape} {task} ({speedup:.2f}x)"
        for task, cells in found.items()
        for speedup, row in cells
        if speedup < 1
    )
    if slower:
        lines.append(f"Ours is slower: {slower}.")
    return "\n".join(lines) + "\n"
