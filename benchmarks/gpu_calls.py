"""Checks of benchmarks/gpu.py: right results and errors of calls, and the device of a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from momentnorm import Pool, functional
from momentnorm.core.backends import reference
from momentnorm.core.backends import triton as backend
from momentnorm.core.tail import ACTIVATIONS, Tail

from . import accuracy, accuracy_bound

Call = Callable[[], object]

#: Bytes that are written between two calls, so that their data is not in the L2 cache.
FLUSH = 256 << 20


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Machine:
    """Device of a run, and the timing of calls on it."""

    device: torch.device
    smoke: bool
    ends: float  # time.monotonic() after which no measurement starts

    @property
    def late(self) -> bool:
        return time.monotonic() > self.ends

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Call, budget: float = 0.25, flush: bool = True) -> float:
        """Median time of a call on the GPU, between two events."""
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
        """Time of a call on the host, for calls that are short on the GPU."""
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


# ---- Right results ----


@dataclass(frozen=True)
class Right:
    """Largest errors of one call, in epsilons of the dtype, relative to the largest value."""

    shape: str
    dtype: str
    layout: str
    pool: str
    activation: str
    y: float
    dx: float
    parameters: float
    same_bits: bool  # of two equal calls

    @property
    def ok(self) -> bool:
        half = self.dtype != "float32"
        y, dx = (1, 4) if half else (8, 32)  # as in tests/support/tolerances.py
        return self.y <= y and self.dx <= dx and self.parameters <= 64 and self.same_bits


POOLS = {
    "instance": Pool(1, 1),
    "group": Pool(1, 4),
    "layer": Pool(1, None),
    "batch": Pool(None, 1),
}
#: Shapes for each way to split the work, and sizes without divisors.
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
    # At the corner of a ReLU the slope of an element depends on a rounding.
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


# ---- Errors ----


def accuracies(machine: Machine) -> Iterator[accuracy_bound.Row]:
    """A part of the sweep of docs/accuracy.md."""
    sizes = (64,) if machine.smoke else (2, 64, 1024, 16384, 4**9)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for size in sizes:
            for ratio in (0.0, 1e3) if machine.smoke else (0.0, 1e1, 1e3, 1e6):
                if not machine.late and 2 * ratio < torch.finfo(dtype).max:
                    torch.manual_seed(0)
                    x = accuracy.noise(dtype, size, ratio)[: 2 if machine.smoke else 1024]
                    yield from judged(machine, x, ratio)


def judged(machine: Machine, x: Tensor, ratio: float) -> Iterator[accuracy_bound.Row]:
    gradient = torch.randn(x.shape).to(x.dtype)
    weight, bias = torch.rand(x.shape[1]) + 0.5, torch.randn(x.shape[1])
    inputs = (x, gradient, weight, bias)
    exact = accuracy_bound.Exact(*inputs, accuracy_bound.NOISE[torch.float32])
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
            errors = accuracy_bound.compare(found, exact.size, evaluate)
            yield accuracy_bound.Row(
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
