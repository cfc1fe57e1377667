"""``momentnorm.load_legacy``: checkpoints from before ``track_running_stats`` existed."""

from __future__ import annotations

import os
import pickle
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..support.files import open_regular
from ..support.printable import printable
from .unwrap import unwrapped

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX = "module."
_STATISTICS = ("running_mean", "running_var")
_COUNT = "num_batches_tracked"

_Instance = nn.modules.instancenorm._InstanceNorm
_Batch = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class LegacyReport:
    """What :func:`load_legacy` changed in a checkpoint so that it fits.

    Args:
        renamed: whether the names had a ``module.`` in front, which is taken off.
        dropped: the running statistics of InstanceNorm layers that use none.
        added: the counts of batches, 0, that the checkpoint did not have.
        tracking: the layers that were switched to running statistics, to keep those of the
            checkpoint.
        missing: with ``strict=False``, what the model has and the checkpoint has not; it is as it
            was.
        unexpected: with ``strict=False``, what the checkpoint has and the model has not.
    """

    renamed: bool = False
    dropped: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    tracking: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{text}: {printable(', '.join(names))}"
            for names, text in (
                (self.dropped, "dropped, since InstanceNorm normalizes with the input's own"),
                (self.added, "added, as 0"),
                (self.tracking, "switched to running statistics, which eval() now uses"),
                (self.missing, "not in the checkpoint, and left as it was"),
                (self.unexpected, "in the checkpoint, and not in the model"),
            )
            if names
        ]
        if self.renamed:
            lines.insert(0, f"renamed: {_PREFIX!r} (of DataParallel) taken off every name")
        return "\n".join(lines or ["nothing had to be changed"])


def load_legacy(
    model: nn.Module,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    strict: bool = True,
    *,
    keep_running_statistics: bool = False,
) -> LegacyReport:
    """Load a checkpoint of an old PyTorch, and say what had to be changed.

    - Before PyTorch 0.4 every InstanceNorm had ``running_mean`` and ``running_var``, and neither
      training nor evaluation used them unless asked to. A layer without running statistics, as
      is the default since, does what the old one did: they are dropped.
    - Before 0.4.1 there was no ``num_batches_tracked``: it is added, as 0.
    - ``module.`` in front of every name, of a model saved inside DataParallel, is taken off.

    Anything else that does not fit is an error, as with :meth:`torch.nn.Module.load_state_dict`;
    then nothing is loaded, and the model is as it was. Changes are told by a UserWarning, and by
    the returned report.

    Args:
        model: takes the parameters and buffers. A layer that tracks gets its running statistics.
        checkpoint: a state dict, or the path of a file with one (or with a dict that has one under
            "state_dict"), which is read with ``weights_only=True``.
        strict: otherwise names may be missing on either side; shapes have to fit all the same.
        keep_running_statistics: switch the InstanceNorm layers whose statistics would be dropped to
            ``track_running_stats=True``, with those of the checkpoint. In evaluation they are then
            used, and that is what an old model did only after ``use_running_stats()``.

    Raises:
        ValueError: the file holds a whole module, or no state dict; a model with lazy layers.
        RuntimeError: names or shapes that do not fit; running statistics, of a layer that has none,
            from a PyTorch that tracked them only where asked to.

    >>> old = {"0.running_mean": torch.zeros(8), "0.running_var": torch.ones(8)}
    >>> report = load_legacy(nn.Sequential(nn.InstanceNorm2d(8)), old)  # and a warning
    >>> report.dropped
    ('0.running_mean', '0.running_var')
    """
    model = unwrapped(model)
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "lazy layers have no parameters to load into, or to put back if something does not "
            "fit: call the model once first"
        )
    given = _read(checkpoint)
    # A copy, with the versions that load_state_dict looks for.
    state: dict[str, Any] = OrderedDict(given)
    versions = dict(getattr(given, "_metadata", None) or {})
    own = model.state_dict().keys()
    renamed = bool(state) and all(name.startswith(_PREFIX) for name in state)
    renamed = renamed and not any(name.startswith(_PREFIX) for name in own)
    if renamed:
        state = OrderedDict((name.removeprefix(_PREFIX), state[name]) for name in state)
        versions = {
            name.removeprefix("module").removeprefix("."): version
            for name, version in versions.items()
        }

    dropped: list[str] = []
    added: list[str] = []
    tracking: dict[str, nn.Module] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, (_Instance, _Batch)):
            continue
        prefix = f"{name}." if name else ""
        statistics = [prefix + key for key in _STATISTICS if prefix + key in state]
        tracks = layer.track_running_stats or layer.running_mean is not None
        # Statistics with a count, or with a version, are of a layer that was asked to track.
        legacy = prefix + _COUNT not in state and versions.get(name, {}).get("version") is None
        if isinstance(layer, _Instance) and not tracks and statistics:
            if keep_running_statistics and len(statistics) == 2:
                tracking[name] = layer
                tracks = True
            elif legacy:
                for key in statistics:
                    del state[key]
                dropped += statistics
            else:
                raise RuntimeError(
                    f"{' and '.join(statistics)}: this layer was asked to track its statistics, "
                    "and the model's does not, so evaluation would change; construct it with "
                    "track_running_stats=True, or pass keep_running_statistics=True"
                )
        if tracks and len(statistics) == 2 and prefix + _COUNT not in state:
            state[prefix + _COUNT] = torch.tensor(0)
            added.append(prefix + _COUNT)
    state._metadata = versions  # type: ignore[attr-defined]
    missing, unexpected = _load(model, state, strict, tracking)
    report = LegacyReport(
        renamed, tuple(dropped), tuple(added), tuple(tracking), tuple(missing), tuple(unexpected)
    )
    if report != LegacyReport():
        warnings.warn(f"load_legacy:\n{report}", UserWarning, stacklevel=2)
    return report


def _read(checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict."""
    state: Any = checkpoint
    if isinstance(checkpoint, (str, os.PathLike)):
        try:
            with open_regular(Path(checkpoint)) as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{os.fspath(checkpoint)!r} holds more than tensors, such as a whole pickled "
                "module, and to open it would run its code. If you trust it, do that where the "
                "model's code is: torch.save(torch.load(path, weights_only=False).state_dict(), "
                "new_path)"
            ) from error
        except Exception as error:  # whatever the unpickler stumbles over
            raise ValueError(
                f"{os.fspath(checkpoint)!r} is no checkpoint that torch.save wrote: pass the path "
                "of one, or a state dict"
            ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if isinstance(state, nn.Module):
        raise ValueError("expected a state dict, got a module: pass its state_dict()")
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for name, value in state.items() if not _is_extra(name)
    ):
        what = type(state).__name__
        if isinstance(state, dict):
            what = f"a dict of {printable(', '.join(map(str, list(state)[:6])))}"
        raise ValueError(
            f"expected a state dict, names and tensors, got {what}: pass the entry that is one"
        )
    return state


def _is_extra(name: object) -> bool:
    return isinstance(name, str) and name.endswith("_extra_state")


def _load(
    model: nn.Module, state: Mapping[str, Any], strict: bool, tracking: Mapping[str, nn.Module]
) -> tuple[list[str], list[str]]:
    """All of it, or nothing: torch loads what fits before it raises."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    for name, layer in tracking.items():
        _track(layer, state, f"{name}." if name else "")
    try:
        missing, unexpected = model.load_state_dict(state, strict=strict)
    except Exception as error:
        for layer in tracking.values():
            _untrack(layer)
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        if isinstance(error, RuntimeError):
            raise RuntimeError(f"nothing was loaded. {error}") from None
        raise
    return missing, unexpected


def _track(layer: Any, state: Mapping[str, Any], prefix: str) -> None:
    """Make the layer one that tracks."""
    layer.track_running_stats = True
    like = next(iter(layer.parameters()), state[prefix + "running_mean"])
    size = layer.num_features
    layer.running_mean = torch.zeros(size, dtype=like.dtype, device=like.device)
    layer.running_var = torch.ones(size, dtype=like.dtype, device=like.device)
    layer.num_batches_tracked = torch.tensor(0, device=like.device)


def _untrack(layer: Any) -> None:
    layer.track_running_stats = False
    for key in (*_STATISTICS, _COUNT):
        setattr(layer, key, None)
