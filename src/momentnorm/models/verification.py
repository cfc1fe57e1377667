"""Trying a model before and after a change, and each layer by itself: results and times."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..layers.sequential import activation_of
from .unwrap import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

#: How far one layer may be from torch's, relative to the largest value, in epsilons of the dtype.
#: Both sum in their own order, and torch's in the dtype; what is wrong is wrong by far more.
LAYER_EPSILONS = {
    torch.float64: 4096,
    torch.float32: 1024,
    torch.bfloat16: 16,
    torch.float16: 16,
}

#: How far a whole model may be: rounding grows from layer to layer, so epsilon to this power; and
#: on the way back once more, so the gradients so many times as far.
MODEL_POWER = 1 / 3
GRADIENT_FACTOR = 3

#: Times are medians of so many runs, after one that is not counted.
RUNS = 5

#: Activations have a kink at 0, where a rounding decides about a gradient. So none is sent through
#: values that are closer to it than this part of the largest.
KINK = 1e-3


@dataclass(frozen=True)
class Replay:
    """One layer on the input that it gets in its model, torch's way and ours."""

    #: The largest difference of outputs, and of gradients in training, relative to the largest
    #: value; and how large it may be.
    difference: float
    tolerance: float
    #: Median seconds of a forward, in training with its backward.
    torch_seconds: float
    our_seconds: float
    #: Where the difference is too large: those of the two from float64, which decides.
    torch_error: float | None = None
    our_error: float | None = None

    @property
    def right(self) -> bool:
        """Whether ours agrees with torch's layer, or with float64 where torch's does not."""
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
            f"{text}; from float64 torch's by {self.torch_error:.0e}, ours by {self.our_error:.0e}"
        )

    def figures(self) -> tuple[str, str, str, str]:
        """What a table has in the columns that are named in ``COLUMNS``."""
        return (
            f"{self.difference:.0e}",
            f"{self.torch_seconds * 1e3:.2f}",
            f"{self.our_seconds * 1e3:.2f}",
            f"{self.torch_seconds / self.our_seconds:.1f}x",
        )


COLUMNS = ("difference", "torch (ms)", "ours (ms)", "faster")


@dataclass(frozen=True)
class Verification:
    """A whole model, before and after."""

    #: The largest difference of an output, relative to the largest value; in training that of all
    #: gradients together, by their root mean squares; and how large the first may be.
    outputs: float
    gradients: float | None
    tolerance: float
    #: Median seconds of a forward, in training with its backward.
    seconds_before: float
    seconds_after: float

    @property
    def right(self) -> bool:
        gradients = (self.gradients or 0.0) / GRADIENT_FACTOR
        return max(self.outputs, gradients) <= self.tolerance

    def differences(self) -> str:
        text = f"outputs differ by {self.outputs:.0e} (up to {self.tolerance:.0e} is rounding)"
        if self.gradients is None:
            return text
        allowed = GRADIENT_FACTOR * self.tolerance
        return f"{text}, gradients by {self.gradients:.0e} (up to {allowed:.0e})"

    def __str__(self) -> str:
        task = "forward" if self.gradients is None else "forward and backward"
        return (
            f"{self.differences()}\n{task}: {self.seconds_before * 1e3:.1f} ms before, "
            f"{self.seconds_after * 1e3:.1f} ms after "
            f"({self.seconds_before / self.seconds_after:.2f}x)"
        )


class _Run(NamedTuple):
    outputs: list[Tensor]
    gradients: list[Tensor]
    seconds: float


class Trial:
    """Runs a model on given inputs, and leaves it as it was."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.model = unwrapped(model)
        self.inputs = inputs if isinstance(inputs, (tuple, dict)) else (inputs,)
        self.with_gradients = (
            model.training
            and torch.is_grad_enabled()
            and any(parameter.requires_grad for parameter in model.parameters())
        )

    def compare(self, switch: Callable[[bool], None]) -> Verification:
        """The model as it was (after ``switch(False)``) and as it is (``True``), taking turns."""
        runs: dict[bool, list[_Run]] = {False: [], True: []}
        for _ in range(RUNS + 1):
            for ours in (False, True):
                switch(ours)
                runs[ours].append(self.call())
        before, again, *_ = runs[False]
        after = runs[True][0]
        tensors = [*before.outputs, *self.model.parameters()]
        dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        tolerance = max(torch.finfo(dtype).eps for dtype in dtypes) ** MODEL_POWER
        noise = _largest_difference(again.outputs, before.outputs)
        if noise > tolerance / 10:
            raise ValueError(
                f"verify= cannot compare anything: the model's outputs differ by {noise:.0e} for "
                "the same inputs and the same random numbers of torch; leave it out"
            )
        gradients = None
        if self.with_gradients:
            gradients = _difference_of_all(after.gradients, before.gradients)
        seconds = (median(run.seconds for run in runs[ours][1:]) for ours in (False, True))
        outputs = _largest_difference(after.outputs, before.outputs)
        return Verification(outputs, gradients, tolerance, *seconds)

    def replay(
        self, layers: Mapping[nn.Module, tuple[type[nn.Module], nn.Module | None]]
    ) -> dict[nn.Module, Replay]:
        """Each of these layers on its first input: as it is now, and as the class that it was.

        The activation behind it, where one is given, is ours in one pass and torch's after it.
        """
        found: dict[nn.Module, Replay] = {}

        def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            if layer not in found:
                found[layer] = _replayed(layer, *layers[layer], x, self.with_gradients)

        hooks = [layer.register_forward_pre_hook(compare, with_kwargs=True) for layer in layers]
        try:
            with torch.no_grad():
                self.call()
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def call(self) -> _Run:
        """One run, of which only the caller's own hooks can know."""
        with_gradients = self.with_gradients and torch.is_grad_enabled()
        with _undisturbed(self.model), torch.set_grad_enabled(with_gradients):
            inputs = tree_map_only(Tensor, _leaf, self.inputs)
            # A copy, since some models begin by writing over their input.
            given = tree_map_only(Tensor, Tensor.clone, inputs)
            start = time.perf_counter()
            result = self.model(**given) if isinstance(given, dict) else self.model(*given)
            outputs = [
                leaf
                for leaf in tree_leaves(result)
                if isinstance(leaf, Tensor) and leaf.is_floating_point()
            ]
            if not outputs:
                raise ValueError(
                    "verify= found no floating point tensor in what the model returns, a "
                    f"{type(result).__name__}: leave it out"
                )
            gradients = _gradients(outputs, inputs, self.model) if with_gradients else []
            elapsed = _now(outputs[0]) - start
            # Copies, since an output may be a buffer, or share its memory.
            return _Run([output.detach().clone() for output in outputs], gradients, elapsed)


def _gradients(outputs: list[Tensor], inputs: Any, model: nn.Module) -> list[Tensor]:
    """Of the parameters and those inputs that want one, for a random gradient of the outputs."""
    ends = [output for output in outputs if output.requires_grad]
    sources = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    sources = [source for source in (*sources, *model.parameters()) if source.requires_grad]
    if not ends:
        return []
    gradients = [torch.randn_like(end) for end in ends]
    found = torch.autograd.grad(ends, sources, gradients, allow_unused=True)
    return [
        torch.zeros_like(source) if gradient is None else gradient
        for gradient, source in zip(found, sources, strict=True)
    ]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put buffers and torch's random generators back: so every run has the same numbers, too.

    Dropout layers are off: they draw a number for each element in the order of memory, which for
    torch's layers is not that of channels_last, and for ours is.
    """
    dropouts = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training
    ]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        for dropout in dropouts:
            dropout.training = False
        with torch.random.fork_rng(sorted(devices)):
            yield
    finally:
        for dropout in dropouts:
            dropout.training = True
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _now(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def _replayed(
    layer: nn.Module,
    theirs: type[nn.Module],
    follower: nn.Module | None,
    x: Tensor,
    with_gradients: bool,
) -> Replay:
    x = x.detach().clone(memory_format=torch.preserve_format)
    with torch.no_grad():
        y = _twin(layer, theirs).forward(x)
    gradient = torch.randn_like(x) if with_gradients else None  # in the layout of x too
    activates = follower is not None or hasattr(layer, "act")  # as timm's norms do
    if gradient is not None and activates:
        gradient.masked_fill_(y.abs() < KINK * y.abs().max(), 0)

    def torchs_way(twin: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = twin.forward(x)
        return y if follower is None else follower.forward(y)

    def our_way(twin: nn.Module, x: Tensor) -> Tensor:
        options = {} if follower is None else {"activation": activation_of(follower)}
        y: Tensor = twin.forward(x, **options)
        return y

    before, after = _twin(layer, theirs), _twin(layer, type(layer))
    random = torch.get_rng_state()  # timm's norms may drop values
    expected = _results(torchs_way, before, x, gradient)
    torch.set_rng_state(random)
    actual = _results(our_way, after, x, gradient)
    tolerance = LAYER_EPSILONS[x.dtype] * torch.finfo(x.dtype).eps
    difference = _largest_difference(actual, expected)
    errors: tuple[float | None, float | None] = (None, None)
    if not difference <= tolerance:
        torch.set_rng_state(random)
        truth = _results(
            torchs_way,
            _twin(layer, theirs, lambda tensor: tensor.to("cpu", torch.float64)),
            x.to("cpu", torch.float64).contiguous(),
            None if gradient is None else gradient.to("cpu", torch.float64).contiguous(),
        )
        errors = _largest_difference(expected, truth), _largest_difference(actual, truth)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for times, way, twin in zip(seconds, (torchs_way, our_way), (before, after), strict=True):
            start = _now(x)
            _results(way, twin, x, gradient)
            times.append(_now(x) - start)
    return Replay(difference, tolerance, median(seconds[0]), median(seconds[1]), *errors)


def _twin(
    layer: nn.Module, cls: type[nn.Module], move: Callable[[Tensor], Tensor] = Tensor.clone
) -> nn.Module:
    """The layer as a ``cls``, with tensors of its own and without hooks."""

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


def _results(
    way: Callable[[nn.Module, Tensor], Tensor], twin: nn.Module, x: Tensor, gradient: Tensor | None
) -> list[Tensor]:
    """The output, the gradients and the running statistics."""
    with torch.set_grad_enabled(gradient is not None):
        x = x.detach().requires_grad_(gradient is not None)
        y = way(twin, x)
        results = [y]
        if gradient is not None:
            parameters = [p for p in twin._parameters.values() if p is not None and p.requires_grad]
            results += torch.autograd.grad(y, [x, *parameters], gradient)
    return results + [b for b in twin._buffers.values() if b is not None and b.is_floating_point()]


def _largest_difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(map(_difference, actual, expected), default=0.0)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference of two elements, relative to the largest expected one."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if same.all():
        return 0.0
    largest = expected[expected.isfinite()].abs().max() if expected.isfinite().any() else 0.0
    relative = float((actual - expected)[~same].abs().max() / largest)
    return math.inf if math.isnan(relative) else relative


def _difference_of_all(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The root mean square of all differences, relative to that of the expected values."""

    def norm(tensors: Iterable[Tensor]) -> float:
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))

    gap = norm(a.double() - e.double() for a, e in zip(actual, expected, strict=True))
    if gap == 0:
        return 0.0
    relative = gap / (norm(expected) or math.nan)
    return math.inf if math.isnan(relative) else relative
