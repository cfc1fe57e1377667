"""load_legacy: load checkpoints from before ``track_running_stats`` existed."""

from __future__ import annotations

import os
import pickle
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    """Changes that :func:`load_legacy` made to a checkpoint and its model.

    Args:
        renamed: whether the prefix ``module.`` was removed from all names.
        dropped: running statistics of InstanceNorm layers that use none.
        added: batch counts that the checkpoint did not have, set to 0.
        tracking: layers that were switched to running statistics, to keep the checkpoint's.
        missing: with ``strict=False``, names of the model that the checkpoint does not have. Their
            values did not change.
        unexpected: with ``strict=False``, names of the checkpoint that the model does not have.
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
                (self.dropped, "dropped, since InstanceNorm uses the statistics of its input"),
                (self.added, "added with the value 0"),
                (self.tracking, "switched to running statistics, which eval() now uses"),
                (self.missing, "not in the checkpoint, so unchanged"),
                (self.unexpected, "not in the model, so ignored"),
            )
            if names
        ]
        if self.renamed:
            lines.insert(0, f"renamed: {_PREFIX!r} (of DataParallel) removed from every name")
        return "\n".join(lines or ["nothing had to be changed"])


def load_legacy(
    model: nn.Module,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    strict: bool = True,
    *,
    keep_running_statistics: bool = False,
) -> LegacyReport:
    """Load a checkpoint of an old PyTorch, and report the changes that it needed.

    - Before PyTorch 0.4 every InstanceNorm had ``running_mean`` and ``running_var``, but did not
      use them by default. Today's default has no running statistics and computes the same. They
      are dropped.
    - Before 0.4.1 there was no ``num_batches_tracked``. It is added with the value 0.
    - A model saved inside DataParallel has ``module.`` in front of every name. It is removed.

    Anything else that does not fit is an error, as with :meth:`torch.nn.Module.load_state_dict`.
    Then nothing is loaded, and the model is unchanged. A UserWarning and the returned report name
    all changes.

    Args:
        model: the module to load into. A layer that tracks gets its running statistics.
        checkpoint: a state dict, or the path of a file. The file holds a state dict, or a dict with
            one under "state_dict", and is read with ``weights_only=True``.
        strict: False allows names that only the model or only the checkpoint has. Shapes have to
            fit in any case.
        keep_running_statistics: give the InstanceNorm layers whose statistics would be dropped
            ``track_running_stats=True`` and the statistics of the checkpoint. Evaluation then uses
            them, as an old model did only after ``use_running_stats()``.

    Raises:
        ValueError: the file holds a whole module or no state dict, or the model has lazy layers.
        RuntimeError: names or shapes do not fit, or the checkpoint has running statistics that a
            newer PyTorch was asked to track and the model's layer does not use.

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
    # load_state_dict reads the versions of the modules from _metadata.
    versions = dict(getattr(given, "_metadata", None) or {})
    state: dict[str, Any] = OrderedDict(given)
    renamed = _has_foreign_prefix(state, model)
    if renamed:
        state = OrderedDict((name.removeprefix(_PREFIX), state[name]) for name in state)
        versions = {
            name.removeprefix("module").removeprefix("."): version
            for name, version in versions.items()
        }
    changes = _fit(model, state, versions, keep_running_statistics)
    state._metadata = versions  # type: ignore[attr-defined]
    missing, unexpected = _load(model, state, strict, changes.tracking)
    report = LegacyReport(
        renamed,
        tuple(changes.dropped),
        tuple(changes.added),
        tuple(changes.tracking),
        tuple(missing),
        tuple(unexpected),
    )
    if report != LegacyReport():
        warnings.warn(f"load_legacy:\n{report}", UserWarning, stacklevel=2)
    return report


def _has_foreign_prefix(state: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether every name of the checkpoint starts with ``module.``, and none of the model's."""
    return (
        bool(state)
        and all(name.startswith(_PREFIX) for name in state)
        and not any(name.startswith(_PREFIX) for name in model.state_dict())
    )


class _Changes(NamedTuple):
    """Names dropped and added, and the layers to switch to running statistics."""

    dropped: list[str]
    added: list[str]
    tracking: dict[str, nn.Module]


def _fit(
    model: nn.Module, state: dict[str, Any], versions: Mapping[str, Any], keep: bool
) -> _Changes:
    """Drop and add statistics in ``state`` so that it fits the layers of the model."""
    changes = _Changes([], [], {})
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, (_Instance, _Batch)):
            continue
        prefix = f"{name}." if name else ""
        statistics = [prefix + key for key in _STATISTICS if prefix + key in state]
        tracks = layer.track_running_stats or layer.running_mean is not None
        # A layer that was asked to track has a batch count or a version.
        legacy = prefix + _COUNT not in state and versions.get(name, {}).get("version") is None
        if isinstance(layer, _Instance) and not tracks and statistics:
            if keep and len(statistics) == 2:
                changes.tracking[name] = layer
                tracks = True
            elif legacy:
                for key in statistics:
                    del state[key]
                changes.dropped.extend(statistics)
            else:
                raise RuntimeError(
                    f"{' and '.join(statistics)}: this layer was asked to track its statistics, "
                    "and the model's does not, so evaluation would change; construct it with "
                    "track_running_stats=True, or pass keep_running_statistics=True"
                )
        if tracks and len(statistics) == 2 and prefix + _COUNT not in state:
            state[prefix + _COUNT] = torch.tensor(0)
            changes.added.append(prefix + _COUNT)
    return changes


def _read(checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """State dict in a checkpoint.

    Raises:
        ValueError: the checkpoint has none.
    """
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
                "module, and opening it would run its code. If you trust it, convert it where the "
                "model's code can be imported: torch.save(torch.load(path, weights_only=False)"
                ".state_dict(), new_path)"
            ) from error
        except Exception as error:  # The unpickler raises almost any class for a damaged file.
            raise ValueError(
                f"{os.fspath(checkpoint)!r} is no checkpoint that torch.save wrote: pass the path "
                "of a checkpoint, or a state dict"
            ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if isinstance(state, nn.Module):
        raise ValueError("expected a state dict, got a module: pass its state_dict()")
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for name, value in state.items() if not _is_extra(name)
    ):
        arrived = type(state).__name__
        if isinstance(state, dict):
            arrived = f"a dict of {printable(', '.join(map(str, list(state)[:6])))}"
        raise ValueError(
            f"expected a state dict (names and tensors), got {arrived}: pass the entry that is a "
            "state dict"
        )
    return state


def _is_extra(name: object) -> bool:
    """Whether this entry of a state dict may be any object, not only a tensor."""
    return isinstance(name, str) and name.endswith("_extra_state")


def _load(
    model: nn.Module, state: Mapping[str, Any], strict: bool, tracking: Mapping[str, nn.Module]
) -> tuple[list[str], list[str]]:
    """Load the whole state dict, or raise and leave the model unchanged.

    torch's own ``load_state_dict`` loads the entries that fit before it raises.
    """
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
    """Switch a layer to running statistics, with new buffers on the device of its parameters."""
    layer.track_running_stats = True
    like = next(iter(layer.parameters()), state[prefix + "running_mean"])
    size = layer.num_features
    layer.running_mean = torch.zeros(size, dtype=like.dtype, device=like.device)
    layer.running_var = torch.ones(size, dtype=like.dtype, device=like.device)
    layer.num_batches_tracked = torch.tensor(0, device=like.device)


def _untrack(layer: Any) -> None:
    """Undo :func:`_track`."""
    layer.track_running_stats = False
    for key in (*_STATISTICS, _COUNT):
        setattr(layer, key, None)
