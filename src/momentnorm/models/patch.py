"""``patch``: calls of ``torch.nn.functional``'s normalizations go to ours."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from .. import functional
from ..core.context import transform_in_progress
from .accelerate import no_kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["patch"]

#: layer_norm and rms_norm are not here, since momentnorm has torch's own.
_NAMES = ("instance_norm", "batch_norm", "group_norm")

#: Guards the three below.
_lock = threading.Lock()
_open: dict[patch, int] = {}  # how many starts of each patch have not been stopped
_active = False  # whether there are any: apart, since compiled code is made for each value
_before: dict[str, Any] = {}  # what stood in torch.nn.functional when the first one started


class patch:  # noqa: N801 - used as a function
    """Under this, ``torch.nn.functional``'s instance, batch and group norm are ours.

    For models that call them directly: ``with momentnorm.patch(): ...``. ``patch().start()`` and
    ``.stop()`` do the same without a block, and ``patch(permanent=True)`` has started already.
    Patches nest, and the last to end, by an exception or not, puts back what was there.

    It replaces three attributes of the module ``torch.nn.functional``. So

    - it is for the whole process: other threads, and the backward, see it too. Start it before the
      threads that are to use it. What a checkpoint computes again in a backward after the block is
      torch's, and torch raises an error about the difference: put the backward inside;
    - ``torch.nn``'s own layers compute with ours as well, since they call these functions;
    - who imported a function by its name before, ``from torch.nn.functional import batch_norm``,
      has torch's. Who does so inside has torch's again after the last patch;
    - inputs that no kernel takes (:func:`momentnorm.use_backend` says otherwise) and tensor
      subclasses, those of torch.fx among them, go to torch's functions, and so does every call
      inside a ``torch.func`` transform, forward-mode differentiation or a dispatch mode;
    - Ctrl-C and exceptions leave it as it was before or after the change, never half done;
    - ``torch.compile`` sees it, and compiles apart for inside and outside; start it outside of what
      is compiled. ``torch.jit.script`` does not: scripts keep torch's functions. Traces and
      exports get torch's standard operators.

    :func:`momentnorm.accelerate` does more for models made of layers: it computes activations in
    the same pass, and reports.

    Raises:
        RuntimeError: ``stop`` without ``start``.

    >>> import torch
    >>> x = torch.tensor([[[255.0, 255.0, 255.0]]])
    >>> with patch():
    ...     F.instance_norm(x)
    tensor([[[0., 0., 0.]]])
    """

    def __init__(self, *, permanent: bool = False) -> None:
        if permanent:
            self.start()

    def start(self) -> patch:
        """Patch until :meth:`stop`; the patch itself."""
        # torch's compiler, as it is imported (an optimizer imports it too), makes a list of torch's
        # functions, and leaves these whole: ours are not to be in it.
        import torch._dynamo  # noqa: F401

        with _lock:
            count = _open.get(self, 0)
            try:
                _set_starts(self, count + 1)
                return self
            except BaseException:  # nobody knows that it has started, so nobody would stop it
                _set_starts(self, count)
                raise

    def stop(self) -> None:
        """Undo one :meth:`start`."""
        with _lock:
            count = _open.get(self, 0)
            if not count:
                raise RuntimeError("this patch has not been started: call start() before stop()")
            try:
                _set_starts(self, count - 1)
            except BaseException:  # Ctrl-C: finish first
                _set_starts(self, count - 1)
                raise

    def __enter__(self) -> patch:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _set_starts(started: patch, count: int) -> None:
    """Note how often a patch has started, and put in place what follows. Repeating it is safe."""
    global _active
    if count:
        _open[started] = count
    else:
        _open.pop(started, None)
    if _open and not _active:
        for name, function in _PATCHED.items():
            if getattr(F, name) is not function:
                _before[name] = getattr(F, name)
                setattr(F, name, function)
        _active = True
    elif not _open:
        _active = False
        for name, function in _PATCHED.items():
            if getattr(F, name) is function:  # else somebody has wrapped it since
                setattr(F, name, _before[name])


def _is_torchs(x: Any) -> bool:
    """Whether a call with this input stays torch's."""
    return (
        not _active
        or type(x) not in (Tensor, Parameter)
        or transform_in_progress(x) is not None  # first: some tensors cannot be asked
        or bool(no_kernel(x))
    )


def _patched(name: str) -> Callable[..., Any]:
    theirs = getattr(F, name)

    @functools.wraps(theirs)
    def call(*args: Any, **kwargs: Any) -> Any:
        x: Any = args[0] if args else kwargs.get("input")
        if _is_torchs(x):
            return theirs(*args, **kwargs)
        return getattr(functional, name)(*args, **kwargs)

    call.__prepare_scriptable__ = lambda: theirs  # type: ignore[attr-defined]
    return call


_PATCHED = {name: _patched(name) for name in _NAMES}
