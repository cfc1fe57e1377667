"""Report: the result of ``accelerate`` and ``restore``, with a row for each normalization layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..support.printable import printable
from .replay import COLUMNS

if TYPE_CHECKING:
    from .replay import Replay
    from .verification import Verification


@dataclass(frozen=True)
class Row:
    """One normalization layer: its class before and after.

    Args:
        name: its name in ``model.named_modules()``; the first one if the layer has several.
        before: its class before the call.
        after: its class after the call, equal to ``before`` if the layer was kept.
        fused: the activation computed in the same pass, such as "ReLU", or "".
        why_not: the reason why the layer was kept, or "".
        replay: comparison with torch's layer, if ``verify`` asked for one.
    """

    name: str
    before: str
    after: str
    fused: str = ""
    why_not: str = ""
    replay: Replay | None = None

    @property
    def swapped(self) -> bool:
        """Whether the class changed."""
        return self.before != self.after


@dataclass(frozen=True)
class Report:
    """Normalization layers of a model after ``accelerate`` or ``restore``; prints as a table.

    Args:
        rows: one for each layer, in the order of ``model.named_modules()``.
        verification: comparison of the whole model before and after, if ``verify`` asked for one.
        warnings: tools of this process that do not work with swapped layers, each with the fix.
    """

    rows: tuple[Row, ...]
    verification: Verification | None = None
    warnings: tuple[str, ...] = ()

    @property
    def swapped(self) -> tuple[Row, ...]:
        """Layers whose class changed."""
        return tuple(row for row in self.rows if row.swapped)

    @property
    def kept(self) -> tuple[Row, ...]:
        """Layers whose class did not change; ``why_not`` has the reason."""
        return tuple(row for row in self.rows if not row.swapped)

    def __str__(self) -> str:
        if not self.rows:
            return "no normalization layers: nothing to do"
        fused = sum(bool(row.fused) for row in self.rows)
        lines = [
            *self._table(),
            f"{len(self.swapped)} of {len(self.rows)} layers swapped, {fused} fused with an "
            "activation",
        ]
        if self.verification is not None:
            lines.append(str(self.verification))
        lines += self._decided()
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """Lines of the table: the header, then one for each row."""
        columns = COLUMNS if any(row.replay for row in self.rows) else ()
        table = [("layer", "from", "to", "fused", *columns, "why not")]
        for row in self.rows:
            name = printable(row.name) or "(model)"
            after = row.after if row.swapped else "kept"
            figures = row.replay.figures() if row.replay else ("",) * len(columns)
            table.append((name, row.before, after, row.fused, *figures, row.why_not))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]

    def _decided(self) -> list[str]:
        """Line about the layers that were compared with float64, if there are any."""
        replays = [row.replay for row in self.rows if row.replay is not None]
        decided = [replay for replay in replays if replay.our_error is not None]
        if not decided:
            return []
        torch_error = max(replay.torch_error or 0.0 for replay in decided)
        our_error = max(replay.our_error or 0.0 for replay in decided)
        return [
            f"layers that differ by more than rounding: {len(decided)}; error against float64: "
            f"torch up to {torch_error:.0e}, momentnorm up to {our_error:.0e}"
        ]


class VerificationError(RuntimeError):
    """Raised when a model computes other results after ``accelerate``, which has been undone.

    Args:
        message: the layer that differs, or the difference of the whole model.
        report: rows with the figures of each layer.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report
