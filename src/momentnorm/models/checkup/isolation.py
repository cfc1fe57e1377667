"""Isolation: run a model on copies of its inputs and tensors, so that it does not change."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .call import NORMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def run_on_copies(model: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Call a model on copies of its inputs, since a model may overwrite them."""
    inputs, kwargs = tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (inputs, kwargs)
    )
    model(*inputs, **kwargs)


@contextlib.contextmanager
def isolated(model: nn.Module, arguments: Any) -> Iterator[None]:
    """Replace buffers and parameters by copies, and afterwards put the originals back.

    The modes of all modules and torch's random generators are put back too. Inside, models run
    eagerly and without gradients.
    """
    modes = {module: module.training for module in model.modules()}
    stores: list[dict[str, Any]] = [module._buffers for module in modes]
    stores += [module._parameters for module in modes if isinstance(module, NORMS)]
    originals = [dict(store) for store in stores]
    devices = {
        leaf.device.index
        for leaf in (*model.parameters(), *tree_leaves(arguments))
        if isinstance(leaf, Tensor) and leaf.is_cuda
    }
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        _copy_all(stores)
        # The fast path of torch's transformers does not call their layers, nor their hooks.
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            torch.no_grad(),
            torch.random.fork_rng(list(devices)),
            torch.compiler.set_stance("force_eager"),
            warnings.catch_warnings(),
        ):
            # The "channels" finding takes the place of this warning.
            warnings.filterwarnings("ignore", "input's size at dim=.* does not match num_features")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for store, original in zip(stores, originals, strict=True):
            store.clear()
            store.update(original)
        for module, training in modes.items():
            module.training = training


def _copy_all(stores: list[dict[str, Any]]) -> None:
    """Replace each tensor by a copy. Places that share a tensor share its copy."""
    copies: dict[int, Tensor] = {}
    for store in stores:
        for name, tensor in store.items():
            if tensor is None:
                continue
            if id(tensor) not in copies:
                copy = tensor.detach().clone()
                if isinstance(tensor, nn.Parameter):
                    copy = nn.Parameter(copy, tensor.requires_grad)
                copies[id(tensor)] = copy
            store[name] = copies[id(tensor)]
