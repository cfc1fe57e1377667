"""Context of a call: transforms, graphs and tensor types that need torch's own operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def transform_in_progress(*operands: Tensor | None) -> str | None:
    """Reason why a call has to use torch's own operators, or None.

    Function transforms, dual numbers, tensor subclasses and dispatch modes rewrite or observe
    torch's operators, and cannot see kernels. The memory of a lazily negated view holds the negated
    values. Tensors of zeros that autograd makes have no memory.
    """
    # torch.compile traces this function. It has a constant for the depth, but not for the level.
    if torch._C._functorch.get_dynamic_layer_stack_depth():
        return "inside a torch.func transform"
    if forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    compiling = torch.compiler.is_compiling()  # tensors of the compiler need fewer checks
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
    """Whether gradients are ordinary tensors in eager mode, so that a kernel can read them."""
    return (
        not torch.compiler.is_compiling()
        and not any(map(torch._C._functorch.is_legacy_batchedtensor, gradients))  # batched
        and transform_in_progress(*gradients) is None
    )


def leaves_the_process() -> bool:
    """Whether torch records a graph that may run where momentnorm is not installed.

    Such a graph is made of the standard operators.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_exporting()


def takes_torch_functions(input: Tensor) -> bool:
    """Whether a call has to use torch's own norms.

    This holds for graphs that leave the process, and for tensors of oneDNN.
    """
    return leaves_the_process() or input.layout is torch._mkldnn  # type: ignore[attr-defined]


def intercept_torch(*operands: Any) -> bool:
    """Whether an operand is a tensor whose type has a ``__torch_function__`` of its own.

    Such types know torch's functions and not those of this library. One example is the type for
    torch's per-sample gradients.
    """
    kinds = {type(operand) for operand in operands if isinstance(operand, Tensor)}
    return any(_intercepts(kind.__torch_function__) for kind in kinds)


def _intercepts(method: Any) -> bool:
    plain: Any = Tensor.__torch_function__
    disabled = torch._C._disabled_torch_function_impl
    return method is not disabled and getattr(method, "__func__", method) is not plain.__func__
