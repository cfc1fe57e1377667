"""``patch``: calls of ``torch.nn.functional``'s normalizations go to ours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)

from . import functional
from .convert import no_kernel

__all__ = ["patch"]

#: layer_norm and rms_norm are not here, since momentnorm has torch's own.
_OURS = {
    F.instance_norm: functional.instance_norm,
    F.batch_norm: functional.batch_norm,
    F.group_norm: functional.group_norm,
}


class patch(TorchFunctionMode):  # noqa: N801 - used as a function
    """Under this, ``torch.nn.functional``'s instance, batch and group norm are ours.

    For models that call them directly, ``with momentnorm.patch(): ...``. ``patch().start()`` and
    ``.stop()`` do the same without a block, and ``patch(permanent=True)`` has started already.

    It is a mode of torch's (:class:`torch.overrides.TorchFunctionMode`), and no change of the
    module: every call is seen, whoever holds the function under whatever name, and nothing is left
    behind, by an exception either. So ``torch.nn``'s own layers compute with ours as well. Patches
    nest, in each other and in other modes.

    A mode belongs to its thread, as ``torch.no_grad()`` does. Other threads, those of
    ``DataParallel`` too, need their own. What a checkpoint computes again is ours where
    ``loss.backward()`` is called inside the block; outside of it, and in ``torch.autograd.grad``,
    it is torch's, and torch raises an error about the difference. Every other call of a torch
    function takes about two microseconds more. :func:`momentnorm.accelerate` costs nothing, but
    sees layers alone.

    ``torch.compile`` sees the patch, and compiles apart for inside and outside.
    ``torch.jit.script`` does not: scripts keep torch's functions. Traces and exports get torch's
    standard operators. Inputs that no kernel takes are left to torch's function, and so are tensor
    subclasses, those of torch.fx among them.

    >>> import torch
    >>> x = torch.tensor([[[255.0, 255.0, 255.0]]])
    >>> with patch():
    ...     F.instance_norm(x)
    tensor([[[0., 0., 0.]]])
    """

    def __init__(self, *, permanent: bool = False) -> None:
        super().__init__()
        if permanent:
            self.start()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OURS and all(kind in (Tensor, Parameter) for kind in types):
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor) and not no_kernel(x):
                func = _OURS[func]
        elif func is Tensor.backward:
            # A mode is off inside its own call, but what a checkpoint computes again is ours too.
            with self:
                return _backward(*args, **kwargs)
        return func(*args, **kwargs)

    def start(self) -> patch:
        """Patch this thread until :meth:`stop`; the patch itself."""
        self.__enter__()  # type: ignore[no-untyped-call]
        return self

    def stop(self) -> None:
        """Undo :meth:`start`, whatever has started since.

        Raises:
            RuntimeError: this patch has not started, or in another thread.
        """
        modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if not any(mode is self for mode in modes):
            raise RuntimeError(
                "this patch is not in force in this thread: call start() before, in the same thread"
            )
        later = []
        while (mode := _pop_mode()) is not self:  # type: ignore[no-untyped-call]
            later.append(mode)
        for mode in reversed(later):
            _push_mode(mode)  # type: ignore[no-untyped-call]


def _backward(
    tensor: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """``Tensor.backward``, which no mode sees."""
    torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)
