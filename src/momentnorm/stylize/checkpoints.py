"""Checkpoints of trainings: numbers and Adam's state in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import StylizeError
from .tensor_files import Kind, TensorFile, open_tensors, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME_ANOTHER = "name another one with --checkpoint"
CHECKPOINT = Kind("momentnorm-stylize-checkpoint", 1, "a checkpoint", NAME_ANOTHER)


@dataclass
class Checkpoint:
    """State of a training that a file can hold.

    Args:
        identity: JSON object of all that decides the training's result.
        tensors: parameters and buffers by name.
        optimizer: Adam over the parameters.
    """

    identity: str
    tensors: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer

    def save(self, path: Path, step: int) -> None:
        """Write the state after a step: the whole file, or the old one stays.

        Raises:
            StylizeError: a place that cannot be written.
        """
        tensors = {f"network.{key}": value for key, value in self.tensors.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"adam.{index}.{key}"] = value
        metadata = {
            "format": CHECKPOINT.form,
            "version": str(CHECKPOINT.version),
            "step": str(step),
            "training": self.identity,
        }
        write_safetensors({k: v.detach().cpu() for k, v in tensors.items()}, metadata, path)

    def load(self, path: Path, steps: int) -> int:
        """Read the state into the tensors and the optimizer; the number of steps done.

        Args:
            path: a file that :meth:`save` wrote.
            steps: the number of steps of the whole training.

        Raises:
            StylizeError: a checkpoint of another training, or a damaged one. Tensors and optimizer
                are unchanged.
        """
        with open_tensors(path, CHECKPOINT) as file:
            training = file.metadata.get("training")
            if training != self.identity:
                changed = _difference(training or "{}", self.identity)
                raise StylizeError(
                    f"{path} is the checkpoint of another training ({changed} differs); "
                    f"start over with --restart, or {NAME_ANOTHER}"
                )
            done = _steps_done(file, steps)
            found = file.read(self._layout())
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in found.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                states.setdefault(int(index), {})[key] = tensor
        for state in states.values():
            if state["step"].item() != done or (state["exp_avg_sq"] < 0).any():
                raise file.error("the optimizer's numbers cannot be those of that many steps")
        with torch.no_grad():
            for key, value in self.tensors.items():
                value.copy_(found[f"network.{key}"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})
        return done

    def _layout(self) -> dict[str, Tensor]:
        """Tensors with the names, shapes and dtypes of a file that :meth:`save` writes."""
        expected = {f"network.{key}": value for key, value in self.tensors.items()}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            expected[f"adam.{index}.step"] = torch.zeros(())
            expected[f"adam.{index}.exp_avg"] = parameter
            expected[f"adam.{index}.exp_avg_sq"] = parameter
        return expected


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint, if there is one.

    Raises:
        StylizeError: the file is no checkpoint. It stays.
    """
    if path.exists():
        with open_tensors(path, CHECKPOINT):
            pass
        path.unlink()


def _steps_done(file: TensorFile, steps: int) -> int:
    try:
        done = int(file.metadata["step"])
    except (KeyError, ValueError):
        done = 0
    if not 1 <= done <= steps:
        raise file.error(f"the step is not a number from 1 to {steps}")
    return done


def _difference(before: str, after: str) -> str:
    """Names of the entries that differ between two identities."""
    try:
        old, new = json.loads(before), json.loads(after)
        names = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    except (ValueError, TypeError, AttributeError, RecursionError):
        names = []
    return ", ".join(names)[:200] or "its metadata"
