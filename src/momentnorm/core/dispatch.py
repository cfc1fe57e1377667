"""Dispatch: the choice of a backend for each call."""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .backends import cpu, reference, triton

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .backends import Backend

#: Backends in the order of preference. The first one that does not refuse takes a call.
BACKENDS: tuple[Backend, ...] = (cpu, triton, reference)


class Choice(NamedTuple):
    """A backend, and the reasons why the backends before it refused."""

    backend: Backend
    why: str


def backend_named(name: str) -> Backend:
    """Backend of this name.

    Raises:
        ValueError: no backend has this name.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise ValueError(f"no backend is named {name!r}: choose one of {known}")


#: The backend that ``MOMENTNORM_BACKEND`` names, for the whole process.
_DEFAULT: Backend | None = (
    backend_named(os.environ["MOMENTNORM_BACKEND"])
    if os.environ.get("MOMENTNORM_BACKEND")
    else None
)

#: The backend that :func:`use_backend` names, in one thread or one asynchronous task.
_forced: ContextVar[Backend | None] = ContextVar("momentnorm backend", default=_DEFAULT)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Send every call inside the ``with`` to the backend of this name.

    This serves tests, timings and explanations. Calls that the named backend refuses go to the
    reference. ``MOMENTNORM_BACKEND`` in the environment names a backend for the whole process.

    The choice is a context variable of the current thread or asynchronous task. Tasks that start
    inside inherit it. Threads that start inside do not, except under Python 3.14 with
    ``-X thread_inherit_context=1``. Give a thread a copy of the context:
    ``Thread(target=contextvars.copy_context().run, args=(function,))``. Compiled code chooses the
    backend when it runs, so it need not be compiled again.

    Raises:
        ValueError: no backend has this name.

    >>> import momentnorm
    >>> with momentnorm.use_backend("reference"):
    ...     y = momentnorm.InstanceNorm1d(2)(torch.zeros(1, 2, 3))
    """
    token = _forced.set(backend_named(name))
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> Backend | None:
    """Backend that :func:`use_backend` or the environment names, or None.

    While torch compiles a graph, this is the backend of the environment alone. The operators of the
    graph read the context variable when they run.
    """
    return _DEFAULT if torch.compiler.is_compiling() else _forced.get()


def choose(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Choice:
    """Choose the backend that normalizes x, (N, C, *S)."""
    if not x.numel():
        return Choice(reference, "an empty input needs no kernel")
    refusals: list[str] = []
    wanted = forced()
    for backend in BACKENDS if wanted is None else (wanted, reference):
        refusal = backend.refuses(x, weight, bias)
        if refusal is None:
            return Choice(backend, "; ".join(refusals) or "takes this call")
        refusals.append(f"{backend.name}: {refusal}")
    raise AssertionError("the reference takes every call")  # pragma: no cover
