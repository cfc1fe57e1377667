"""What benchmarks/gpu.py measures: whether calls are right, how accurate and how fast they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import momentnorm
from momentnorm import Pool, functional
from momentnorm.core.backends import reference
from momentnorm.core.backends import triton as backend
from momentnorm.core.tail import ACTIVATIONS, Tail

from . import accuracy, networks

Call = Callable[[], object]

#: What a GPU has to write between two calls so that neither finds its data in the L2 cache.
FLUSH = 256 << 20


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Machine:
    """Where it runs, and how a call is timed there."""

    device: torch.device
    smoke: bool
    ends: float  # when no new measurement is begun, by time.monotonic

    @property
    def late(self) -> bool:
        return time.monotonic() > self.ends

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Call, budget: float = 0.25, flush: bool = True) -> float:
        """The median time of a call on the GPU, from event to event."""
        if self.smoke:
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        cache = torch.empty(FLUSH if flush else 1, dtype=torch.int8, device=self.device)
        for _ in range(3):
            call()
        self.synchronize()
        times: list[float] = []
        stop = time.monotonic() + budget
        while len(times) < 10 or (len(times) < 200 and time.monotonic() < stop):
            pairs = [(_event(), _event()) for _ in range(10)]
            for begin_event, end_event in pairs:
                cache.zero_()
                begin_event.record()
                call()
                end_event.record()
            self.synchronize()
            times += [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
        return statistics.median(times)

    def host(self, call: Call) -> float:
        """The time that a call takes of Python's, where the GPU keeps up."""
        calls, rounds = (1, 1) if self.smoke else (50, 20)
        times: list[float] = []
        for _ in range(rounds + 1):
            self.synchronize()
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            times.append((time.perf_counter() - begin) / calls)
        self.synchronize()
        return statistics.median(times[1:])  # without the first round, which compiles


# ---- Is it right? ----


@dataclass(frozen=True)
class Right:
    """The largest errors of one call, in epsilons of the dtype, of the largest value."""

    shape: str
    dtype: str
    layout: str
    pool: str
    activation: str
    y: float
    dx: float
    parameters: float
    same_bits: bool  # twice

    @property
    def ok(self) -> bool:
        half = self.dtype != "float32"
        y, dx = (1, 4) if half else (8, 32)  # as in tests/tolerances.py
        return self.y <= y and self.dx <= dx and self.parameters <= 64 and self.same_bits


POOLS = {
    "instance": Pool(1, 1),
    "group": Pool(1, 4),
    "layer": Pool(1, None),
    "batch": Pool(None, 1),
}
#: One for each way in which work is split, and sizes that nothing divides.
SHAPES = ((2, 8, 5, 7), (8, 64, 32, 32), (4, 8, 130, 129), (2, 8, 64, 64, 64), (70000, 4, 3))
TINY = ((2, 4, 3, 5),)


def laid_out(x: Tensor, layout: str) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else x


def off(found: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    largest = exact.abs().max().clamp(min=1)
    return float(((found.double() - exact).abs().max() / largest) / torch.finfo(dtype).eps)


def rights(machine: Machine) -> Iterator[Right]:
    calls = 0
    for shape in TINY if machine.smoke else SHAPES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for layout in ("contiguous", "channels_last"):
                for name, pool in POOLS.items():
                    activation = ("", *ACTIVATIONS)[calls % 7]
                    calls += 1
                    if not machine.late:
                        yield right(machine, shape, dtype, layout, name, pool, activation)


def right(
    machine: Machine,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    name: str,
    pool: Pool,
    activation: str,
) -> Right:
    torch.manual_seed(0)
    x, gradient, residual = (
        laid_out((torch.randn(shape, device=machine.device) + mean).to(dtype), layout)
        for mean in (3, 0, 0)
    )
    weight, bias = (torch.rand(shape[1], device=machine.device) + 0.5 for _ in range(2))
    tail = Tail(activation, 0.1, residual)

    def run() -> list[Tensor]:
        y, mean, var = backend.normalize(x, weight, bias, 1e-5, pool, tail)
        dx, _, dweight, dbias, _ = backend.normalize_backward(
            gradient, x, mean, var, weight, bias, 1e-5, pool, tail
        )
        return [y, dx, dweight, dbias]

    found, again = run(), run()
    wide, wide_weight, wide_bias = (t.double() for t in (x, weight, bias))
    exact_tail = tail._replace(residual=residual.double())
    y, mean, var = reference.normalize(wide, wide_weight, wide_bias, 1e-5, pool, exact_tail)
    dx, _, dweight, dbias, _ = reference.normalize_backward(
        gradient.double(), wide, mean, var, wide_weight, wide_bias, 1e-5, pool, exact_tail
    )
    # At the kink of a ReLU a rounding decides which slope an element has.
    before, _, _ = reference.normalize(
        wide, wide_weight, wide_bias, 1e-5, pool, exact_tail._replace(activation="")
    )
    found[1] = torch.where(before.abs() > 1e-5, found[1].double(), dx)
    return Right(
        "x".join(map(str, shape)),
        str(dtype).removeprefix("torch."),
        layout,
        name,
        activation,
        off(found[0], y, dtype),
        off(found[1], dx, dtype),
        max(off(found[2], dweight, torch.float32), off(found[3], dbias, torch.float32)),
        all(map(torch.equal, found, again)),
    )


# ---- How accurate? ----


def accuracies(machine: Machine) -> Iterator[accuracy.Row]:
    """The sweep of docs/accuracy.md, in part."""
    sizes = (64,) if machine.smoke else (2, 64, 1024, 16384, 4**9)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for size in sizes:
            for ratio in (0.0, 1e3) if machine.smoke else (0.0, 1e1, 1e3, 1e6):
                if not machine.late and 2 * ratio < torch.finfo(dtype).max:
                    torch.manual_seed(0)
                    x = accuracy.noise(dtype, size, ratio)[: 2 if machine.smoke else 1024]
                    yield from judged(machine, x, ratio)


def judged(machine: Machine, x: Tensor, ratio: float) -> Iterator[accuracy.Row]:
    gradient = torch.randn(x.shape).to(x.dtype)
    weight, bias = torch.rand(x.shape[1]) + 0.5, torch.randn(x.shape[1])
    inputs = (x, gradient, weight, bias)
    exact = accuracy.Exact(*inputs, accuracy.NOISE[torch.float32])
    eps = torch.finfo(x.dtype).eps

    def there(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, _: None, __: None, *parameters: Tensor, **options: float) -> Tensor:
            moved = (t.to(machine.device) for t in parameters)
            return function(x.to(machine.device), None, None, *moved, **options).cpu()

        return call

    functions = {"ours": functional.instance_norm, "torch": F.instance_norm}
    for layout in accuracy.LAYOUTS:
        results = {
            name: accuracy.results(there(function), *inputs, layout)
            for name, function in functions.items()
        }
        for i, (result, evaluate) in enumerate((("y", exact.forward), ("dx", exact.backward))):
            found = {name: both[i] for name, both in results.items()}
            errors = accuracy.compare(found, exact.size, evaluate)
            yield accuracy.Row(
                input="noise",
                dtype=str(x.dtype).removeprefix("torch."),
                size=exact.size,
                ratio=ratio,
                result=result,
                layout=layout,
                ours=errors["ours"][0] / eps,
                torch=errors["torch"][0] / eps,
                share=errors["ours"][1],
            )


# ---- How fast? ----


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
    traffic: float  # gigabytes of a copy: read once, written once


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


#: What, of which shape, and whether torch.compile is timed too (it takes long to compile).
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
        # Recompiled for each shape, as the graph of a fixed network would be.
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
    """Seconds of Python for a call on a small input, and in a CUDA graph."""

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
    """The time of a replay, which gives what a call gives."""
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
