"""``Trace``: what a layer computes, as a list of named steps; and ``Steps``, which records one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._printable import OneLineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

#: The parts of a trace, in this order.
INPUT, STATISTICS, OUTPUT, RUNNING, BACKWARD = PARTS = (
    "Input",
    "Statistics",
    "Output",
    "Running statistics",
    "Backward",
)


class ExplainError(OneLineError, ValueError):
    """What was asked cannot be explained. The message is one line that says what to do instead."""


class TraceMismatchError(RuntimeError):
    """The steps do not lead to what the layer returned: they explain another computation."""


@dataclass(frozen=True)
class Worked:
    """One entry of a step with its numbers put in.

    ``text`` has ``{}`` where a number stands; who prints it chooses the digits.
    """

    text: str
    numbers: tuple[float, ...]


def of_first(text: str, *values: Tensor) -> Worked:
    """The text with the first element of each."""
    return Worked(text, tuple(float(one.detach().flatten()[0]) for one in values))


@dataclass(frozen=True, eq=False)
class Step:
    """One named value on the way from the input to the output, or back.

    Args:
        name: short and unique within its part, such as ``mean``; Python's and the maths' name.
        part: one of ``PARTS``.
        formula: how it is made of the steps before it, as one would type it.
        latex: the same for a formula setter (the subset that matplotlib sets too).
        values: what it is here; its own copy.
        axes: the names of the axes of ``values``, such as ("N", "C", "H", "W").
        unit: of the values: "x", "x^2", "std" ...; empty where there is none.
        worked: one entry with numbers in, where that says more than the formula.
        note: one sentence, where the formula needs one.
        letters: the values are not amounts but names, shown as letters: A is 0.
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
    """Something that was compared, and agreed: a trace with a failed check is not returned.

    ``difference`` is the largest one found; 0.0 stands for the same bits.
    """

    text: str
    difference: float = 0.0


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference; 0.0 only for the same bits (any NaN is as good as another)."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    same = (found == expected) & (found.signbit() == expected.signbit())
    same |= found.isnan() & expected.isnan()
    if bool(same.all()):
        return 0.0
    difference = (found.double() - expected.double()).abs()[~same]
    if bool(difference.isnan().any()):  # a number where the other has none
        return math.inf
    # Zeros of unlike signs differ too, by less than any number.
    return max(difference.max().item(), math.ulp(0.0))


class Steps:
    """Records steps. Values are detached and copied, so what is recorded never changes again."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.recorded: list[Step] = []
        #: The elements of the first plane, for worked examples.
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
        """Record one step; returns ``values`` as they came, in their graph."""
        copy = values.detach().clone().contiguous()
        step = Step(self.prefix + name, part, formula, latex, copy, tuple(axes), **more)
        self.recorded.append(step)
        return values


@dataclass(eq=False)
class Trace:
    """The steps of one call of a layer; what :func:`momentnorm.explain` returns.

    ``trace["mean"]`` is a step by name, ``trace.names`` lists them, ``trace.y`` is the output.
    ``print(trace)`` writes plain text, ``rich.print(trace)`` the same with colours, and a notebook
    shows a table. :meth:`save` writes files, :meth:`backward` adds the way back.
    """

    layer: str
    summary: str
    steps: list[Step]
    checks: list[Check]
    notes: list[str] = field(default_factory=list)
    #: Explains the same call's backward: set by :func:`momentnorm.explain`.
    continue_backward: Callable[[Tensor | str], Trace] | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Step:
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(f"no step is named {name!r}: this trace has {', '.join(self.names)}")

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def names(self) -> list[str]:
        """The names of the steps, in order."""
        return [step.name for step in self.steps]

    @property
    def y(self) -> Tensor:
        """The output, in the input's dtype."""
        return self["y"].values

    def part(self, part: str) -> list[Step]:
        """The steps of one part, such as "Statistics"."""
        return [step for step in self.steps if step.part == part]

    def only(self, *names: str) -> Trace:
        """The same trace with these steps alone, in their order.

        Raises:
            ExplainError: no step has one of these names.
        """
        for name in names:
            if name not in self.names:
                raise ExplainError(
                    f"no step is named {name!r}: this trace has {', '.join(self.names)}"
                )
        steps = [step for step in self.steps if step.name in names]
        return replace(self, steps=steps)

    def backward(self, gradient: Tensor | str = "ones") -> Trace:
        """This trace with the steps of the backward behind it.

        Args:
            gradient: dL/dy, in the output's shape; or "ones", the gradient of ``y.sum()``; or
                "one", that of the first element of y alone, which shows what one output depends on.

        Returns:
            A new trace: the gradient, its sums over each plane, the coefficients, dx and the
            parameters' gradients, each checked against autograd.

        Raises:
            ExplainError: a gradient of another shape.
            TraceMismatchError: the formulas and autograd do not agree.
        """
        if self.continue_backward is None:
            raise ExplainError("this trace was not made by momentnorm.explain: it has no layer")
        return self.continue_backward(gradient)

    def save(self, path: str | Path, *, precision: int = 4) -> Path:
        """Write the trace as a file of the kind that the suffix says.

        ``.txt`` and ``.md`` and ``.html`` show it, ``.svg`` and ``.png`` draw it (with matplotlib),
        ``.json`` has every value.

        Raises:
            ExplainError: another suffix; matplotlib missing; a place that cannot be written, where
                an old file stays as it is.
        """
        from . import saving

        return saving.save(self, Path(path), precision)

    def text(self, *, precision: int = 4, width: int = 96) -> str:
        """The trace as plain text."""
        from .text import plain

        return plain(self, precision, width)

    def to_dict(self) -> dict[str, Any]:
        """Everything in lists and numbers, as ``.json`` has it; NaN and infinities as strings."""
        from .saving import to_dict

        return to_dict(self)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        from .html import fragment

        return fragment(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from .text import rich_lines

        yield from rich_lines(self, 4, options.max_width)


def finite_range(values: Tensor) -> tuple[float, float, float, float] | None:
    """Least, largest, mean and standard deviation of the finite numbers; None without any."""
    values = values.detach().double().flatten()
    values = values[values.isfinite()]
    if not values.numel():
        return None
    deviation = values.std(correction=0).item()
    return values.min().item(), values.max().item(), values.mean().item(), deviation


def count_not_finite(values: Tensor) -> str:
    """Such as "2 NaN, 1 infinite"; empty where all are numbers."""
    found = (("NaN", values.isnan()), ("infinite", values.isinf()))
    counts = [(name, int(where.sum())) for name, where in found]
    return ", ".join(f"{count} {name}" for name, count in counts if count)
