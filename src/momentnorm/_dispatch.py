"""Which backend takes a call, and why; and the checks of a call's operands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .backends import cpu, reference

#: In the order in which they are asked.
BACKENDS: tuple[ModuleType, ...] = (cpu, reference)


class Choice(NamedTuple):
    backend: ModuleType
    why: str


def _by_name(name: str) -> ModuleType:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise ValueError(f"no backend is named {name!r}: choose one of {known}")


_forced: ModuleType | None = (
    _by_name(os.environ["MOMENTNORM_BACKEND"]) if os.environ.get("MOMENTNORM_BACKEND") else None
)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Send every call inside the ``with`` to the backend of this name, whatever its operands.

    For tests, timings and explanations. ``MOMENTNORM_BACKEND`` in the environment does the same
    for a whole process. What the named backend does not take still goes to the reference.

    Raises:
        ValueError: no backend has this name.

    >>> import momentnorm
    >>> with momentnorm.use_backend("reference"):
    ...     y = momentnorm.InstanceNorm1d(2)(torch.zeros(1, 2, 3))
    """
    global _forced
    before, _forced = _forced, _by_name(name)
    try:
        yield
    finally:
        _forced = before


def choose(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Choice:
    """The backend for normalizing x, (N, C, *S), and the reason."""
    refusals = []
    for backend in BACKENDS if _forced is None else (_forced, reference):
        refusal = backend.refuses(x, weight, bias)
        if refusal is None:
            return Choice(backend, "; ".join(refusals) or "takes this call")
        refusals.append(f"{backend.name}: {refusal}")
    raise AssertionError("the reference takes every call")  # pragma: no cover


def transform_in_progress(*operands: Tensor | None) -> str | None:
    """Why this call must be made of torch's own operators, or None.

    Function transforms, dual numbers, tensor subclasses and dispatch modes rewrite or observe
    operators, and have to see ordinary ones.
    """
    if torch._C._functorch.maybe_current_level() is not None:
        return "inside a torch.func transform or a batched gradient"
    if torch.autograd.forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    if torch._C._len_torch_dispatch_stack():
        return "inside a torch dispatch mode"
    for operand in operands:
        if operand is not None and type(operand) not in (Tensor, torch.nn.Parameter):
            return f"an operand is a {type(operand).__name__}, not a plain tensor"
    return None


def check_operands(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
) -> None:
    """Raise what torch raises for operands that do not fit together, and name the fix."""
    if input.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise NotImplementedError(
            f"instance_norm is not implemented for {input.dtype}: convert the input to "
            "float32, float64, bfloat16 or float16"
        )
    if input.dim() < 3:
        raise ValueError(
            f"expected input of shape (N, C, *S) with at least 3 dimensions, got "
            f"{tuple(input.shape)}: add the batch or the spatial dimension"
        )
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if not use_input_stats and running_mean is None:
        raise RuntimeError("Expected running_mean and running_var to be defined when "
                           "use_input_stats is false: pass them, or use_input_stats=True")
    channels = input.shape[1]
    for name, operand in (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        if operand is None:
            continue
        if operand.shape != (channels,):
            raise RuntimeError(
                f"{name} should have shape ({channels},), one value for each channel of the "
                f"input {tuple(input.shape)}, not {tuple(operand.shape)}"
            )
        if operand.device != input.device:
            raise RuntimeError(
                f"{name} is on {operand.device} and the input on {input.device}: "
                "move the layer with .to(input.device)"
            )
        if name.startswith("running"):
            if operand.requires_grad:
                raise RuntimeError(f"{name} is a statistic, not a parameter: "
                                   "it cannot have requires_grad=True")
        elif operand.dtype != input.dtype and not (
            operand.dtype == torch.float32 and input.dtype in (torch.bfloat16, torch.float16)
        ):
            raise RuntimeError(
                f"mixed dtypes: {name} is {operand.dtype} and the input {input.dtype}; a parameter "
                "has the input's dtype, or float32 with a bfloat16 or float16 input: convert the "
                "layer with .to(input.dtype)"
            )
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        raise RuntimeError(f"mixed dtypes: weight is {weight.dtype} and bias {bias.dtype}")
