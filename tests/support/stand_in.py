"""Stand-in for compiled kernels: a backend that tests the engine where no kernels are built.

It takes what kernels could take, insists on what they insist on (memory that can be read, an input
in one of their layouts, no transform, no autograd), and computes with the reference.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from momentnorm.core.backends import reference
from momentnorm.core.backends.operands import layout
from momentnorm.core.tail import Tail

name = "stand_in"

#: Names of the functions that were called, until a test clears the list.
calls: list[str] = []


def refuses(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> str | None:
    if x.device.type != "cpu" or x.layout is not torch.strided:
        return "not in memory"
    return None


def _check(operand):
    if isinstance(operand, Tensor):
        assert type(operand) in (Tensor, torch.nn.Parameter)
        assert not operand.is_neg()
        assert operand.untyped_storage().data_ptr() or not operand.numel()


def _kernel(function):
    def call(*operands, out=None, **named):
        calls.append(function.__name__)
        for operand in (*operands, *named.values(), out):
            _check(operand.residual if isinstance(operand, Tail) else operand)
        parameters = inspect.signature(function).bind(*operands, **named).arguments
        assert layout(parameters["x"]) is not None
        with torch.no_grad():
            results = function(*operands, **named)
            if out is None:
                return results
            y, *others = results if isinstance(results, tuple) else (results,)
            assert out.stride() == operands[0].stride()
            out.data.copy_(y)  # autograd does not see it, as with a kernel
            return (out, *others) if others else out

    return call


moments = _kernel(reference.moments)
apply = _kernel(reference.apply)
gradient_sums = _kernel(reference.gradient_sums)
apply_gradient = _kernel(reference.apply_gradient)
normalize = _kernel(reference.normalize)
normalize_with = _kernel(reference.normalize_with)
normalize_backward = _kernel(reference.normalize_backward)
