"""Steps: the named values of a trace, and the recorder that collects them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .values import first_of

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The parts of a trace, in this order.
INPUT, STATISTICS, OUTPUT, RUNNING, BACKWARD = PARTS = (
    "Input",
    "Statistics",
    "Output",
    "Running statistics",
    "Backward",
)


@dataclass(frozen=True)
class Worked:
    """Worked example: the formula of a step with the numbers of its first entry.

    ``text`` has ``{}`` for each number. Whoever prints it chooses the digits.
    """

    text: str
    numbers: tuple[float, ...]


def worked_first(text: str, *values: Tensor) -> Worked:
    """Worked example with the first element of each tensor."""
    return Worked(text, tuple(map(first_of, values)))


def worked_sum(values: Sequence[float], form: str = "{}") -> tuple[str, list[float]]:
    """Text and numbers of a sum, such as "{} + {} + {}". Long sums show three terms and the last.

    Args:
        values: the terms.
        form: text of one term, with one ``{}``.
    """
    if len(values) <= 8:
        return " + ".join([form] * len(values)), list(values)
    return " + ".join([form] * 3 + ["...", form]), [*values[:3], values[-1]]


@dataclass(frozen=True, eq=False)
class Step:
    """One named value between the input and the output, or between the gradient and dx.

    Args:
        name: short and unique within its part, such as ``mean``: the name in Python and in the
            formulas.
        part: one of ``PARTS``.
        formula: how the values follow from earlier steps, in plain characters.
        latex: the formula in LaTeX, limited to the commands that matplotlib knows.
        values: a copy of the values.
        axes: names of the axes of ``values``, such as ("N", "C", "H", "W").
        unit: unit of the values: "x", "x^2", "std" ..., or "" for none.
        worked: worked example, where it says more than the formula.
        note: one more sentence, or "".
        letters: show the values as letters (0 as A), because they are labels and no amounts.
    """

    name: str
    part: str
    formula: str
    latex: str
    values: Tensor
    axes: tuple[str, ...]
    unit: str = ""
    worked: Worked | None = None
    note: str = ""
    letters: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)


@dataclass(frozen=True)
class Check:
    """A comparison that succeeded. A trace is returned only if all of its checks did.

    Args:
        text: what was compared.
        difference: the largest difference; 0.0 means equal bits.
    """

    text: str
    difference: float = 0.0


class Steps:
    """Recorder of steps. It keeps detached copies, so later changes do not reach them."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.recorded: list[Step] = []
        #: Elements of the first plane, for worked examples.
        self.first_plane: list[float] = []

    def add(
        self,
        part: str,
        name: str,
        values: Tensor,
        axes: Sequence[str],
        formula: str,
        latex: str,
        **more: Any,
    ) -> Tensor:
        """Record one step. Returns ``values`` unchanged, with their autograd graph."""
        copy = values.detach().clone().contiguous()
        step = Step(self.prefix + name, part, formula, latex, copy, tuple(axes), **more)
        self.recorded.append(step)
        return values
