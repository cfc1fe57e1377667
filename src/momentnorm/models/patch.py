"""patch: send calls of ``torch.nn.functional``'s normalizations to momentnorm."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from .. import functional
from ..core.context import transform_in_progress
from .eligibility import no_kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["patch"]

#: Replaced functions. momentnorm uses torch's own layer_norm and rms_norm.
NAMES = ("instance_norm", "batch_norm", "group_norm")

#: Guards the three variables that follow.
_lock = threading.Lock()
#: For each patch, the number of its starts that have not been stopped.
_open: dict[patch, int] = {}
#: Whether ``_open`` has entries. torch.compile compiles again when this bool changes.
_active = False
#: Functions of torch.nn.functional when the first patch started.
_before: dict[str, Any] = {}


class patch:  # noqa: N801 - used as a function
    """Replace ``torch.nn.functional``'s instance, batch and group norm by momentnorm's.

    This serves models that call these functions: ``with momentnorm.patch(): ...``. Without a block,
    ``patch().start()`` and ``.stop()`` do the same, and ``patch(permanent=True)`` starts at once.
    Patches nest. The last one to end, also by an exception, puts the replaced functions back.

    A patch replaces three attributes of the module ``torch.nn.functional``:

    - The whole process sees it, other threads and the backward pass too. Start it before the
      threads that use it.
    - A checkpoint that is recomputed in a backward after the block uses torch's functions, and
      torch raises an error about the difference. Run the backward inside the block.
    - ``torch.nn``'s own layers call these functions, so they use momentnorm too.
    - A function imported by name before, ``from torch.nn.functional import batch_norm``, stays
      torch's. A function imported by name inside gives torch's results again after the last patch.
    - Inputs that no kernel takes go to torch's functions, unless :func:`momentnorm.use_backend`
      names a backend. So do tensor subclasses, and every call inside a ``torch.func`` transform,
      forward-mode differentiation or a dispatch mode.
    - Ctrl-C and exceptions leave all functions replaced or none.
    - ``torch.compile`` compiles separately for calls inside and outside. Start the patch outside
      the compiled code.
    - ``torch.jit.script`` keeps torch's functions. Traces and exports get torch's standard
      operators.

    For models made of layers :func:`momentnorm.accelerate` is the better choice: it also fuses
    activations, and it reports.

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
        """Patch until :meth:`stop`. Returns the patch itself."""
        # When torch's compiler is imported, it lists torch's functions and never looks into them.
        # Import it now, so that the list has torch's functions and not the replacements.
        import torch._dynamo  # noqa: F401

        with _lock:
            count = _open.get(self, 0)
            try:
                _set_starts(self, count + 1)
                return self
            except BaseException:  # The caller does not learn of the start, so undo it.
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
            except BaseException:  # Ctrl-C comes in between: finish, then raise.
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
    """Record the open starts of a patch, then replace or put back. A repeated call is safe."""
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
            if getattr(F, name) is function:  # Otherwise other code has wrapped it.
                setattr(F, name, _before[name])


def _goes_to_torch(x: Any) -> bool:
    """Whether torch's function takes a call with this input."""
    return (
        not _active
        or type(x) not in (Tensor, Parameter)
        or transform_in_progress(x)
        is not None  # Before no_kernel, which cannot read wrapped tensors.
        or bool(no_kernel(x))
    )


def _patched(name: str) -> Callable[..., Any]:
    """Replacement of a function of torch.nn.functional."""
    theirs = getattr(F, name)

    @functools.wraps(theirs)
    def call(*args: Any, **kwargs: Any) -> Any:
        x: Any = args[0] if args else kwargs.get("input")
        if _goes_to_torch(x):
            return theirs(*args, **kwargs)
        return getattr(functional, name)(*args, **kwargs)

    call.__prepare_scriptable__ = lambda: theirs  # type: ignore[attr-defined]
    return call


_PATCHED = {name: _patched(name) for name in NAMES}
