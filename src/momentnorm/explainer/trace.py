"""Trace: the steps of one call of a layer, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import formats
from .errors import ExplainError
from .steps import Check, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(eq=False)
class Trace:
    """The steps of one call of a layer, as :func:`momentnorm.explain` returns them.

    ``trace["mean"]`` is a step by name, ``trace.names`` lists the names, ``trace.y`` is the output.
    ``print(trace)`` writes plain text, ``rich.print(trace)`` adds colours, and a notebook shows a
    table. :meth:`save` writes a file, :meth:`backward` adds the steps of the backward.

    Args:
        layer: the layer, as Python prints it.
        summary: one line that says which planes share their statistics.
        steps: the steps, in order.
        checks: the comparisons with the layer.
        notes: further sentences for the reader.
        explain_backward: makes the trace that :meth:`backward` returns, from a gradient.
    """

    layer: str
    summary: str
    steps: list[Step]
    checks: list[Check]
    notes: list[str] = field(default_factory=list)
    explain_backward: Callable[[Tensor | str], Trace] | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Step:
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(self._unknown(name))

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def names(self) -> list[str]:
        """Names of the steps, in order."""
        return [step.name for step in self.steps]

    @property
    def y(self) -> Tensor:
        """Output of the layer, in the dtype of the input."""
        return self["y"].values

    def part(self, part: str) -> list[Step]:
        """Steps of one part, such as "Statistics"."""
        return [step for step in self.steps if step.part == part]

    def only(self, *names: str) -> Trace:
        """Copy of the trace with these steps alone, in the order of the trace.

        Raises:
            ExplainError: no step has one of these names.
        """
        for name in names:
            if name not in self.names:
                raise ExplainError(self._unknown(name))
        steps = [step for step in self.steps if step.name in names]
        return replace(self, steps=steps)

    def _unknown(self, name: str) -> str:
        return f"no step is named {name!r}: this trace has {', '.join(self.names)}"

    def backward(self, gradient: Tensor | str = "ones") -> Trace:
        """New trace that ends with the steps of the backward.

        The steps are the gradient, its sums over each plane, the coefficients, dx and the
        gradients of the parameters. They are checked against autograd.

        Args:
            gradient: dL/dy in the shape of the output; or "ones", the gradient of ``y.sum()``; or
                "one", the gradient of the first element of y, which shows what one output depends
                on.

        Raises:
            ExplainError: the gradient has another shape than the output.
            TraceMismatchError: the formulas and autograd disagree.
        """
        if self.explain_backward is None:
            raise ExplainError("this trace has no layer: make one with momentnorm.explain")
        return self.explain_backward(gradient)

    def save(self, path: str | Path, *, precision: int = 4) -> Path:
        """Write the trace to a file, in the format of its suffix.

        ``.txt``, ``.md`` and ``.html`` are for reading, ``.svg`` and ``.png`` are pictures (they
        need matplotlib), ``.json`` has every value.

        Raises:
            UserError: an unknown suffix, matplotlib is missing, or the file cannot be written. An
                old file of this name then stays.
        """
        return formats.save(self, Path(path), precision)

    def text(self, *, precision: int = 4, width: int = 96) -> str:
        """Plain text of the trace."""
        found: str = formats.function("text.plain")(self, precision, width)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Dictionary of lists and numbers, as in ``.json``. NaN and infinities are strings."""
        found: dict[str, Any] = formats.function("dictionary.to_dict")(self)
        return found

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        found: str = formats.function("html.fragment")(self)
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from formats.function("text.rich_lines")(self, 4, options.max_width)
