"""Eligibility: which normalization layers can be swapped, and the reason why the others cannot."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core import dispatch
from ..core.backends import reference
from ..layers.base import Layer
from . import norm_act
from .classes import MARK, conflict, replaced, script_of

#: Base classes of torch's normalization layers.
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def is_norm(module: nn.Module) -> bool:
    """Whether a report has a row for this module."""
    return isinstance(module, NORMS) or script_of(module) is not None or norm_act.is_known(module)


def why_not(module: nn.Module, usual: Tensor) -> str:
    """Reason why this normalization layer cannot be swapped, or "".

    Args:
        module: a module for which :func:`is_norm` holds.
        usual: a tensor with the device and dtype to assume for a layer without tensors.
    """
    if script_of(module) is not None:
        return "a TorchScript layer cannot be swapped: accelerate the model before torch.jit.trace"
    if isinstance(module, Layer) or MARK in module.__dict__:
        return "already a momentnorm layer"
    if isinstance(module, nn.SyncBatchNorm):
        return "SyncBatchNorm takes its statistics from all processes"
    if replaced(type(module)) is None:
        return "momentnorm uses torch's own layer"
    if parametrize.is_parametrized(module):
        return "it is parametrized: remove the parametrization first"
    return conflict(module) or _no_kernel_for(module, usual)


def _no_kernel_for(module: nn.Module, usual: Tensor) -> str:
    """Reason why no kernel takes the calls of this layer, or ""."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    like = next((t for t in tensors if t is not None and t.is_floating_point()), usual)
    # A model on the meta device is materialized later, on a device that is not known yet.
    device = "cpu" if like.is_meta else like.device
    return no_kernel(torch.empty(2, 8, 32, 32, dtype=like.dtype, device=device))


def no_kernel(x: Tensor) -> str:
    """Reason why no kernel takes x, (N, C, *S), or "".

    The reference takes every x, but is slower than torch's own layers. It counts as a kernel only
    if :func:`momentnorm.use_backend` names it.
    """
    choice = dispatch.choose(x)
    wanted = dispatch.forced() is reference
    return f"no kernel: {choice.why}" if choice.backend is reference and not wanted else ""
