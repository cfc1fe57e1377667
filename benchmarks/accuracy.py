"""The error of InstanceNorm on the CPU against float64, ours and torch's, on hard inputs.

``python -m benchmarks.accuracy`` prints the table that the README quotes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from momentnorm import functional

SHAPE = (2, 8, 64, 64)


def cases() -> dict[str, tuple[Tensor, float]]:
    """name: an input, and the eps to normalize it with."""
    torch.manual_seed(0)
    noise = torch.randn(SHAPE, dtype=torch.float64)
    return {
        "mean 0, std 1": (noise.float(), 1e-5),
        "mean 10, std 1": ((noise + 10).float(), 1e-5),
        "mean 1000, std 0.01": ((0.01 * noise + 1000).float(), 1e-5),
        "constant 255": (torch.full(SHAPE, 255.0), 1e-5),
        "float16 constant 255, eps 1e-12": (torch.full(SHAPE, 255.0).half(), 1e-12),
        "values near 1e25": ((1e25 * noise).float(), 1e-5),
    }


def error(function: Callable[..., Tensor], x: Tensor, eps: float) -> float:
    """The largest difference from the formula in float64, about the plane's own mean."""
    planes = x.double().flatten(2)
    centred = planes - planes[..., :1]
    centred = centred - centred.mean(2, keepdim=True)
    exact = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    return float((function(x, eps=eps).double().flatten(2) - exact).abs().max())


def gradient_error(function: Callable[..., Tensor]) -> float:
    """Of the gradient of one channels_last sample, relative to the gradient's largest value."""
    torch.manual_seed(0)
    x, direction = torch.randn(2, 1, *SHAPE[1:]).unbind()
    gradients: list[Tensor] = []
    for dtype, memory_format in (
        (torch.float32, torch.channels_last),
        (torch.float64, torch.contiguous_format),
    ):
        leaf = x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        towards = direction.to(dtype).contiguous(memory_format=memory_format)
        gradients += torch.autograd.grad(function(leaf), leaf, towards)
    return float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())


def table() -> str:
    lines = []
    functions = (nn.functional.instance_norm, functional.instance_norm)
    for name, (x, eps) in cases().items():
        theirs, ours = (error(function, x, eps) for function in functions)
        lines.append(f"| {name} | {theirs:.0e} | {ours:.0e} |")
    theirs, ours = (gradient_error(function) for function in functions)
    lines.append(f"| gradient of one channels_last sample, relative | {theirs:.0e} | {ours:.0e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
