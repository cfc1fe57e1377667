"""Replay: compare one layer with torch's, on the input that it gets in its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.sequential import activation_of
from .measure import RUNS, largest_difference, now

#: Largest difference of one layer from torch's that counts as rounding, relative to the largest
#: value, in epsilons of the dtype. The two sum in different orders, and torch sums in the dtype.
#: Errors that are not rounding are far larger.
LAYER_EPSILONS = {
    torch.float64: 4096,
    torch.float32: 1024,
    torch.bfloat16: 16,
    torch.float16: 16,
}

#: Part of the largest output. Outputs closer to 0 than this get the gradient 0, since ReLU has a
#: kink at 0, where rounding decides between two gradients.
KINK = 1e-3


@dataclass(frozen=True)
class Replay:
    """Comparison of one layer with torch's, on the input that it gets in its model.

    Args:
        difference: the largest difference of two values, relative to the largest value. Outputs
            and buffers are compared, in training gradients too.
        tolerance: the largest difference that counts as rounding.
        torch_seconds: median time of torch's forward, in training with its backward.
        our_seconds: median time of momentnorm's.
        torch_error: difference of torch's layer from float64, if ``difference`` is too large.
        our_error: difference of momentnorm's layer from float64, likewise.
    """

    difference: float
    tolerance: float
    torch_seconds: float
    our_seconds: float
    torch_error: float | None = None
    our_error: float | None = None

    @property
    def right(self) -> bool:
        """Whether momentnorm's layer agrees with torch's, or else with float64."""
        error = self.difference if self.our_error is None else self.our_error
        return error <= self.tolerance

    def __str__(self) -> str:
        text = (
            f"differs from torch's layer by {self.difference:.0e} (up to {self.tolerance:.0e} is "
            "rounding)"
        )
        if self.our_error is None:
            return text
        return (
            f"{text}; error against float64: torch {self.torch_error:.0e}, momentnorm "
            f"{self.our_error:.0e}"
        )

    def figures(self) -> tuple[str, str, str, str]:
        """Cells of a table, in the order of ``COLUMNS``."""
        return (
            f"{self.difference:.0e}",
            f"{self.torch_seconds * 1e3:.2f}",
            f"{self.our_seconds * 1e3:.2f}",
            f"{self.torch_seconds / self.our_seconds:.1f}x",
        )


#: Headers of :meth:`Replay.figures`.
COLUMNS = ("difference", "torch (ms)", "momentnorm (ms)", "faster")


#: Calls a layer, and the activation behind it, on an input.
_Way = Callable[[nn.Module, Tensor], Tensor]


def replay(
    layer: nn.Module,
    theirs: type[nn.Module],
    follower: nn.Module | None,
    x: Tensor,
    with_gradients: bool,
) -> Replay:
    """Compare a swapped layer with the layer that it was, on the input x.

    Args:
        layer: the swapped layer.
        theirs: its class before the swap.
        follower: the activation behind it that is computed in the same pass, or None.
        x: (N, C, *S), or (C, *S) for a layer that takes it.
        with_gradients: whether to compare gradients too, and time the backward.
    """
    x = x.detach().clone(memory_format=torch.preserve_format)
    gradient = _output_gradient(layer, theirs, follower, x) if with_gradients else None

    def torch_way(twin: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = twin.forward(x)
        return y if follower is None else follower.forward(y)

    def our_way(twin: nn.Module, x: Tensor) -> Tensor:
        options = {} if follower is None else {"activation": activation_of(follower)}
        y: Tensor = twin.forward(x, **options)
        return y

    before, after = _twin(layer, theirs), _twin(layer, type(layer))
    random = torch.get_rng_state()  # timm's norms may contain a dropout.
    expected = _results(torch_way, before, x, gradient)
    torch.set_rng_state(random)
    actual = _results(our_way, after, x, gradient)
    tolerance = LAYER_EPSILONS[x.dtype] * torch.finfo(x.dtype).eps
    difference = largest_difference(actual, expected)
    torch_error = our_error = None
    if not difference <= tolerance:
        torch.set_rng_state(random)
        exact = _results(
            torch_way,
            _twin(layer, theirs, lambda tensor: tensor.to("cpu", torch.float64)),
            x.to("cpu", torch.float64).contiguous(),
            None if gradient is None else gradient.to("cpu", torch.float64).contiguous(),
        )
        torch_error = largest_difference(expected, exact)
        our_error = largest_difference(actual, exact)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for times, way, twin in zip(seconds, (torch_way, our_way), (before, after), strict=True):
            start = now(x)
            _results(way, twin, x, gradient)
            times.append(now(x) - start)
    medians = median(seconds[0]), median(seconds[1])
    return Replay(difference, tolerance, *medians, torch_error, our_error)


def _output_gradient(
    layer: nn.Module, theirs: type[nn.Module], follower: nn.Module | None, x: Tensor
) -> Tensor:
    """Random gradient of the output, in the layout of x, and 0 near the kink of an activation."""
    with torch.no_grad():
        y = _twin(layer, theirs).forward(x)
    gradient = torch.randn_like(x)
    if follower is not None or hasattr(layer, "act"):  # timm's norms have their own activation.
        gradient.masked_fill_(y.abs() < KINK * y.abs().max(), 0)
    return gradient


def _twin(
    layer: nn.Module, cls: type[nn.Module], move: Callable[[Tensor], Tensor] = Tensor.clone
) -> nn.Module:
    """Copy of a layer as an instance of ``cls``, with its own tensors and without hooks."""

    def moved(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: move(value.detach()).requires_grad_(value.requires_grad and value.is_leaf)
            if isinstance(value, Tensor)
            else value
            for name, value in tensors.items()
        }

    twin = cls.__new__(cls)
    twin.__dict__.update(moved(layer.__dict__))
    twin._parameters = moved(layer._parameters)
    twin._buffers = moved(layer._buffers)
    return twin


def _results(way: _Way, twin: nn.Module, x: Tensor, gradient: Tensor | None) -> list[Tensor]:
    """Output, gradients and buffers after one call."""
    with torch.set_grad_enabled(gradient is not None):
        x = x.detach().requires_grad_(gradient is not None)
        y = way(twin, x)
        results = [y]
        if gradient is not None:
            parameters = [p for p in twin._parameters.values() if p is not None and p.requires_grad]
            results += torch.autograd.grad(y, [x, *parameters], gradient)
    return results + [b for b in twin._buffers.values() if b is not None and b.is_floating_point()]
