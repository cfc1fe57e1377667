"""``Update``: how a running statistic moves in training, with the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .trace import RUNNING, Steps, Worked


@dataclass(frozen=True, eq=False)
class Update:
    """How one running statistic moves in training.

    Args:
        name: of the buffer.
        before: its values, in the buffer's own dtype and shape.
        batch: what the batch contributes, from the moments of the planes.
        rule: what the batch contributes, in words.
        share: the batch's share of the new value; None where the batch is added.
    """

    name: str
    before: Tensor
    batch: Callable[[Tensor, Tensor], Tensor]
    rule: str
    share: float | None

    def record(self, steps: Steps, mean: Tensor, var: Tensor) -> None:
        """Before, the batch's, and after, which equals what the layer would have written."""
        batch = self.batch(mean, var).reshape(self.before.shape)
        axes = ("C",) if self.before.dim() == 1 else ("1", "C", "1")[: self.before.dim()]
        unit = "x" if self.name == "running_mean" else "x^2"
        if self.share is None:
            after = self.before.clone().add_(batch)
            rule = f"{self.name} + {self.name}_of_batch: a sum over all batches"
            latex = r"r \leftarrow r + b"
            worked = "{} + {} = {}"
            numbers: tuple[float, ...] = ()
        else:
            moved = torch.lerp(self.before.to(batch.dtype), batch, self.share)
            after = moved.to(self.before.dtype)
            rule = f"(1 - momentum) * {self.name} + momentum * {self.name}_of_batch"
            latex = r"r \leftarrow (1 - m)\, r + m\, b"
            worked = "(1 - {}) * {} + {} * {} = {}"
            numbers = (self.share,)
        if self.before.numel():
            old, new = float(self.before.flatten()[0]), float(batch.flatten()[0])
            ends = (new, float(after.flatten()[0]))
            numbers = (*numbers, old, *numbers, *ends)
        steps.add(
            RUNNING,
            f"{self.name}_before",
            self.before,
            axes,
            "the buffer as it is; explaining does not change it",
            "r",
            unit=unit,
        )
        steps.add(RUNNING, f"{self.name}_of_batch", batch, axes, self.rule, "b", unit=unit)
        steps.add(
            RUNNING,
            self.name,
            after,
            axes,
            f"{self.name} after = {rule}",
            latex,
            unit=unit,
            worked=Worked(worked, numbers) if self.before.numel() else None,
        )
