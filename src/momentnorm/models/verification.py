"""Verification: compare a whole model before and after a swap of its layers."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .measure import RUNS, difference_of_all, largest_difference, now
from .replay import Replay, replay
from .unwrap import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Largest difference of a whole model that counts as rounding: epsilon to this power, since
#: rounding grows from layer to layer.
MODEL_POWER = 1 / 3

#: Gradients may differ by this many times the limit for outputs: their rounding grows further.
GRADIENT_FACTOR = 3


@dataclass(frozen=True)
class Verification:
    """Comparison of a whole model before and after.

    Args:
        outputs: the largest difference of two outputs, relative to the largest value.
        gradients: root mean square of the differences of all gradients, relative to that of the
            gradients; None outside of training.
        tolerance: the largest difference of outputs that counts as rounding.
        seconds_before: median time of a forward, in training with its backward.
        seconds_after: the time after the swap.
    """

    outputs: float
    gradients: float | None
    tolerance: float
    seconds_before: float
    seconds_after: float

    @property
    def right(self) -> bool:
        """Whether outputs and gradients agree up to rounding."""
        gradients = (self.gradients or 0.0) / GRADIENT_FACTOR
        return max(self.outputs, gradients) <= self.tolerance

    def differences(self) -> str:
        """Sentence with the differences and their limits."""
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
    """Results and time of one run of a model."""

    outputs: list[Tensor]
    gradients: list[Tensor]
    seconds: float


class Trial:
    """Runs of a model on given inputs, which leave the model unchanged."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.model = unwrapped(model)
        self.inputs = inputs if isinstance(inputs, (tuple, dict)) else (inputs,)
        self.with_gradients = (
            model.training
            and torch.is_grad_enabled()
            and any(parameter.requires_grad for parameter in model.parameters())
        )

    def compare(self, switch: Callable[[bool], None]) -> Verification:
        """Compare the model with torch's layers and with momentnorm's, by turns.

        Args:
            switch: gives the layers momentnorm's classes for True, their earlier ones for False.
        """
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
        noise = largest_difference(again.outputs, before.outputs)
        if noise > tolerance / 10:
            raise ValueError(
                f"verify= cannot compare anything: the model's outputs differ by {noise:.0e} from "
                "run to run, with equal inputs and torch's random numbers fixed: leave it out"
            )
        gradients = None
        if self.with_gradients:
            gradients = difference_of_all(after.gradients, before.gradients)
        seconds = (median(run.seconds for run in runs[ours][1:]) for ours in (False, True))
        outputs = largest_difference(after.outputs, before.outputs)
        return Verification(outputs, gradients, tolerance, *seconds)

    def replay(
        self, layers: Mapping[nn.Module, tuple[type[nn.Module], nn.Module | None]]
    ) -> dict[nn.Module, Replay]:
        """Compare each of these layers with torch's, on its first input in the model.

        Args:
            layers: for each layer its class before the swap, and the activation behind it, if there
                is one. momentnorm computes both in one pass, torch one after the other.
        """
        found: dict[nn.Module, Replay] = {}

        def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            if layer not in found:
                found[layer] = replay(layer, *layers[layer], x, self.with_gradients)

        hooks = [layer.register_forward_pre_hook(compare, with_kwargs=True) for layer in layers]
        try:
            with torch.no_grad():
                self.call()
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def call(self) -> _Run:
        """Run the model once. Buffers, random generators and ``.grad`` do not change."""
        with_gradients = self.with_gradients and torch.is_grad_enabled()
        with _undisturbed(self.model), torch.set_grad_enabled(with_gradients):
            inputs = tree_map_only(Tensor, _leaf, self.inputs)
            # A model may overwrite its input, so it gets a copy.
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
            elapsed = now(outputs[0]) - start
            # An output may share memory with a buffer, so keep copies.
            return _Run([output.detach().clone() for output in outputs], gradients, elapsed)


def _gradients(outputs: list[Tensor], inputs: Any, model: nn.Module) -> list[Tensor]:
    """Gradients of inputs and parameters, for a random gradient of the outputs."""
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
    """Copy of a tensor outside of every graph, which requires a gradient if the tensor does."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put buffers and torch's random generators back afterwards, so that all runs are alike.

    Dropout layers are off. They draw numbers in the order of memory. In channels_last that order
    differs between torch's InstanceNorm, whose output is contiguous, and momentnorm's.
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
