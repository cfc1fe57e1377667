"""``Update``: how a running statistic moves in training, with the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .trace import RUNNING, Steps, of_first


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
        before, batch = self.before.flatten(), self.batch(mean, var).flatten()
        unit = "x" if self.name == "running_mean" else "x^2"
        if self.share is None:
            after = before.clone().add_(batch)
            rule = f"{self.name} + {self.name}_of_batch: a sum over all batches"
            latex = r"r \leftarrow r + b"
            worked = of_first("{} + {} = {}", before, batch, after)
        else:
            after = torch.lerp(before.to(batch.dtype), batch, self.share).to(before.dtype)
            rule = f"(1 - momentum) * {self.name} + momentum * {self.name}_of_batch"
            latex = r"r \leftarrow (1 - m)\, r + m\, b"
            share = torch.tensor(self.share, dtype=torch.float64)
            worked = of_first("(1 - {}) * {} + {} * {} = {}", share, before, share, batch, after)
        for name, values, formula, letter, example in (
            (
                f"{self.name}_before",
                before,
                "the buffer as it is; explaining does not change it",
                "r",
                None,
            ),
            (f"{self.name}_of_batch", batch, self.rule, "b", None),
            (self.name, after, f"{self.name} after = {rule}", latex, worked),
        ):
            steps.add(RUNNING, name, values, ("C",), formula, letter, unit=unit, worked=example)
