"""Dispatch: which backend takes a call, and why."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .backends import cpu, reference, triton

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .backends import Backend

#: In the order in which they are asked.
BACKENDS: tuple[Backend, ...] = (cpu, triton, reference)


class Choice(NamedTuple):
    """A backend, and why it was chosen: what each backend before it said."""

    backend: Backend
    why: str


def _by_name(name: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise ValueError(f"no backend is named {name!r}: choose one of {known}")


_forced: Backend | None = (
    _by_name(os.environ["MOMENTNORM_BACKEND"]) if os.environ.get("MOMENTNORM_BACKEND") else None
)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Send every call inside the ``with`` to the backend of this name, whatever its operands.

    For tests, timings and explanations, one thread at a time: the choice is the whole process's.
    ``MOMENTNORM_BACKEND`` in the environment does the same from the start. What the named backend
    does not take still goes to the reference.

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
    if not x.numel():
        return Choice(reference, "an empty input needs no kernel")
    refusals: list[str] = []
    for backend in BACKENDS if _forced is None else (_forced, reference):
        refusal = backend.refuses(x, weight, bias)
        if refusal is None:
            return Choice(backend, "; ".join(refusals) or "takes this call")
        refusals.append(f"{backend.name}: {refusal}")
    raise AssertionError("the reference takes every call")  # pragma: no cover


def transform_in_progress(*operands: Tensor | None) -> str | None:
    """Why this call must be made of torch's own operators, or None.

    Function transforms, dual numbers, tensor subclasses and dispatch modes rewrite or observe
    operators, and have to see ordinary ones; a lazily negated view is not what its memory says, and
    autograd's tensors of zeros have none.
    """
    # The depth, rather than the level: torch.compile knows its value.
    if torch._C._functorch.get_dynamic_layer_stack_depth():
        return "inside a torch.func transform"
    if torch.autograd.forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    compiling = torch.compiler.is_compiling()  # the compiler's tensors are none of the below
    if not compiling and torch._C._len_torch_dispatch_stack():
        return "inside a torch dispatch mode"
    for operand in operands:
        if operand is None:
            continue
        if type(operand) is not Tensor and type(operand) is not Parameter:
            return f"an operand is a {type(operand).__name__}, not a plain tensor"
        if not compiling and (operand.is_neg() or operand._is_zerotensor()):
            return "an operand is a lazily negated view, or zeros without memory"
    return None


def kernels_see(*gradients: Tensor) -> bool:
    """Whether gradients are ordinary tensors in eager mode, which a kernel can be given."""
    return (
        not torch.compiler.is_compiling()
        and not any(map(torch._C._functorch.is_legacy_batchedtensor, gradients))  # batched
        and transform_in_progress(*gradients) is None
    )
