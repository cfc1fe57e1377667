"""Times of benchmarks/gpu.py: calls, launches and training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import momentnorm

from . import networks
from .gpu_calls import Call, Machine, laid_out


@dataclass(frozen=True)
class Timed:
    """Median seconds on the GPU."""

    call: str
    shape: str
    dtype: str
    layout: str
    copy: float
    forward: float
    torch_forward: float
    compiled_forward: float | None
    training: float
    torch_training: float
    compiled_training: float | None
    traffic: float  # gigabytes of a copy: one reading and one writing


def _instance(channels: int) -> tuple[nn.Module, nn.Module]:
    return momentnorm.InstanceNorm2d(channels, affine=True), nn.InstanceNorm2d(
        channels, affine=True
    )


def _instance_3d(channels: int) -> tuple[nn.Module, nn.Module]:
    ours = momentnorm.InstanceNorm3d(channels, affine=True, activation="leaky_relu")
    return ours, nn.Sequential(nn.InstanceNorm3d(channels, affine=True), nn.LeakyReLU(0.01))


def _group_silu(channels: int) -> tuple[nn.Module, nn.Module]:
    groups = min(32, channels)
    ours = momentnorm.GroupNorm(groups, channels, activation="silu")
    return ours, nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU())


def _batch_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    ours = momentnorm.BatchNorm2d(channels, activation="relu")
    return ours, nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


#: Name, layers, shape, and whether torch.compile is timed as well, which is slow to compile.
TIMED: tuple[tuple[str, Callable[[int], tuple[nn.Module, nn.Module]], tuple[int, ...], bool], ...]
TIMED = (
    ("InstanceNorm", _instance, (1, 256, 64, 64), True),
    ("InstanceNorm", _instance, (8, 128, 64, 64), True),
    ("InstanceNorm", _instance, (16, 512, 8, 8), False),
    ("InstanceNorm", _instance, (4, 64, 128, 128), False),
    ("InstanceNorm", _instance, (32, 64, 256, 256), True),
    ("InstanceNorm", _instance, (1, 3, 2048, 2048), False),
    ("InstanceNorm + LeakyReLU", _instance_3d, (2, 32, 128, 128, 128), True),
    ("GroupNorm + SiLU", _group_silu, (16, 320, 64, 64), True),
    ("GroupNorm + SiLU", _group_silu, (1, 128, 20, 256, 256), True),
    ("BatchNorm + ReLU", _batch_relu, (64, 256, 56, 56), True),
)


def times(machine: Machine) -> Iterator[Timed]:
    for what, layers, shape, compiles in TIMED:
        if machine.smoke:
            shape = (2, 4, *(3,) * (len(shape) - 2))
        for dtype in (torch.bfloat16, torch.float32):
            for layout in ("contiguous", "channels_last"):
                if not machine.late:
                    compiled = compiles and dtype == torch.bfloat16
                    yield timed(machine, what, layers(shape[1]), shape, dtype, layout, compiled)


def timed(
    machine: Machine,
    what: str,
    layers: tuple[nn.Module, nn.Module],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    compiled: bool,
) -> Timed:
    torch.manual_seed(0)
    ours, theirs = (layer.to(machine.device) for layer in layers)
    x, gradient = (
        laid_out(torch.randn(shape, device=machine.device).to(dtype), layout) for _ in range(2)
    )
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    target = torch.empty_like(x)
    peers: dict[str, Callable[[Tensor], Tensor]] = {"ours": ours, "torch": theirs}
    if compiled:
        # Compiled for each shape, like the graph of a fixed network.
        torch._dynamo.reset()
        peers["compiled"] = torch.compile(
            theirs, dynamic=False, backend="eager" if machine.smoke else "inductor"
        )
    found: dict[str, float] = {}
    for name, layer in peers.items():

        def forward(layer: Callable[[Tensor], Tensor] = layer) -> None:
            with torch.no_grad():
                layer(x)

        def training(layer: Callable[[Tensor], Tensor] = layer) -> None:
            leaf.grad = None
            layer(leaf).backward(gradient)  # type: ignore[no-untyped-call]

        found[name] = machine.seconds(forward)
        found[name + " training"] = machine.seconds(training)
    return Timed(
        what,
        "x".join(map(str, shape)),
        str(dtype).removeprefix("torch."),
        layout,
        machine.seconds(lambda: target.copy_(x)),
        found["ours"],
        found["torch"],
        found.get("compiled"),
        found["ours training"],
        found["torch training"],
        found.get("compiled training"),
        2 * x.nbytes / 1e9,
    )


@dataclass(frozen=True)
class Small:
    """Seconds of a call on a small input, on the host and in a CUDA graph."""

    call: str
    ours: float
    torch: float
    ours_graph: float | None
    torch_graph: float | None


def smalls(machine: Machine) -> Iterator[Small]:
    x = torch.randn(1, 8, 4, 4, device=machine.device)
    leaf, gradient = x.clone().requires_grad_(), torch.randn_like(x)
    layers = [layer.to(machine.device) for layer in _instance(8)]

    def forward(layer: nn.Module) -> Call:
        def call() -> Tensor:
            with torch.no_grad():
                y: Tensor = layer(x)
                return y

        return call

    def training(layer: nn.Module) -> Call:
        def call() -> None:
            layer(leaf).backward(gradient)

        return call

    graphs: list[float | None] = [None, None]
    if machine.device.type == "cuda":
        graphs = [captured(machine, forward(layer), layer, x) for layer in layers]
    for task in (forward, training):
        ours, theirs = (machine.host(task(layer)) for layer in layers)
        yield Small(task.__name__, ours, theirs, *(graphs if task is forward else (None, None)))


def captured(machine: Machine, call: Call, layer: nn.Module, x: Tensor) -> float:
    """Time of a replay, whose result is compared with that of a call."""
    call()
    machine.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    x.normal_()
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(y, layer(x), rtol=0, atol=0)
    return machine.seconds(graph.replay, flush=False)


@dataclass(frozen=True)
class Trained:
    """Median seconds of a training step of a network."""

    network: str
    layout: str
    none: float
    torch: float
    ours: float
    fused: float


def trained(machine: Machine) -> Iterator[Trained]:
    features = (4, 8) if machine.smoke else (32, 64, 128, 256, 320)
    width, blocks = (4, 1) if machine.smoke else (64, 9)
    todo: tuple[tuple[str, Callable[[str], nn.Module], tuple[int, ...]], ...] = (
        (
            "residual 3D U-Net, bf16 autocast",
            lambda norm: networks.UNet(norm, features),
            (1, 1, 8, 8, 8) if machine.smoke else (2, 1, 128, 128, 128),
        ),
        (
            "CycleGAN generator, bf16 autocast",
            lambda norm: networks.generator(norm, width, blocks),
            (1, 3, 16, 16) if machine.smoke else (4, 3, 256, 256),
        ),
    )
    for name, build, shape in todo:
        for layout in ("contiguous", "channels_last"):
            if not machine.late:
                yield Trained(name, layout, **steps(machine, build, shape, layout))


def steps(
    machine: Machine, build: Callable[[str], nn.Module], shape: tuple[int, ...], layout: str
) -> dict[str, float]:
    torch.manual_seed(0)
    memory_format = torch.contiguous_format
    if layout == "channels_last":
        memory_format = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
    x = torch.randn(shape, device=machine.device).contiguous(memory_format=memory_format)
    found = {}
    for norm in networks.NORMS:
        model = build(norm).to(machine.device)
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)

        def step(model: nn.Module = model, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            with torch.autocast(machine.device.type, torch.bfloat16):
                loss = model(x).float().square().mean()
            loss.backward()
            optimizer.step()

        found[norm] = machine.seconds(step, budget=3.0, flush=False)
        del model, optimizer
    return found
