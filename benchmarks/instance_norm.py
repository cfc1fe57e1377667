"""InstanceNorm on the CPU against torch's, and both against a copy of the same tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import momentnorm
from momentnorm.core import dispatch
from momentnorm.core.backends import reference

from .timing import interleaved

SHAPES = (
    (1, 32, 256, 256),
    (4, 64, 128, 128),
    (8, 128, 64, 64),
    (1, 32, 512, 512),
    (1, 3, 1024, 1024),
    (2, 256, 16, 16),
    (16, 512, 8, 8),
    (1, 32, 64, 64, 64),
    (2, 32, 96, 96, 96),
    (1, 64, 8192),
    (1, 8, 4, 4),
)

Layers = tuple[type[nn.Module], type[nn.Module]]
LAYERS: dict[int, Layers] = {
    3: (momentnorm.InstanceNorm1d, nn.InstanceNorm1d),
    4: (momentnorm.InstanceNorm2d, nn.InstanceNorm2d),
    5: (momentnorm.InstanceNorm3d, nn.InstanceNorm3d),
}


@dataclass(frozen=True)
class Row:
    """Median seconds for one input; ``into`` is without the output's allocation."""

    shape: str
    dtype: str
    layout: str
    backend: str
    copy: float
    into: float | None
    forward: float
    torch_forward: float
    training: float
    torch_training: float
    gigabytes: float

    @property
    def forward_speedup(self) -> float:
        return self.torch_forward / self.forward

    @property
    def training_speedup(self) -> float:
        return self.torch_training / self.training


def measure(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> Row:
    torch.manual_seed(0)
    x, gradient = (_laid_out(torch.randn(shape).to(dtype), layout) for _ in range(2))
    leaf = x.clone().requires_grad_()
    target = torch.empty_like(x)
    # Half types with float32 parameters, as in mixed precision.
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    ours, theirs = (layer(shape[1], affine=True, dtype=parameters) for layer in LAYERS[len(shape)])
    _check(ours, theirs, x)

    def step(layer: nn.Module) -> Callable[[], None]:
        def call() -> None:
            leaf.grad = None
            layer.zero_grad()
            layer(leaf).backward(gradient)

        return call

    @torch.inference_mode()
    def run(layer: nn.Module) -> None:
        layer(x)

    # The copy and the kernel alternate by themselves: each finds the cache as the other left it. Of
    # the others each has turns of several calls, and finds it as it left it itself: torch's fresh
    # pages would sweep the cache before each of our calls.
    memory: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(x)}
    backend = dispatch.choose(x).backend
    if backend is not reference:
        weight, bias = (parameter.detach() for parameter in ours.parameters())
        memory["into"] = lambda: backend.normalize(x, weight, bias, 1e-5, out=target)
    times = interleaved(memory) | interleaved(
        {
            "forward": lambda: run(ours),
            "torch_forward": lambda: run(theirs),
            "training": step(ours),
            "torch_training": step(theirs),
        },
        pause=0.01,
    )
    return Row(
        shape="x".join(map(str, shape)),
        dtype=str(dtype).removeprefix("torch."),
        layout=layout,
        backend=backend.name,
        into=times.pop("into", None),
        gigabytes=2 * x.nbytes / 1e9,
        **times,
    )


def _laid_out(x: Tensor, layout: str) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else x


def _check(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Check both functions that are timed against float64."""
    exact = nn.functional.instance_norm(x.double().contiguous())
    tolerance = 1e-5 if x.dtype == torch.float32 else 4 * torch.finfo(x.dtype).eps
    for layer in (ours, theirs):
        torch.testing.assert_close(layer(x).double(), exact, rtol=tolerance, atol=tolerance)
