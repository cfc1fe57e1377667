"""The result of :func:`momentnorm.export_check`: findings, and a row for each layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The cause of a difference: the file, the runtime that reads it, or the model itself.
Fault = Literal["export", "runtime", "model"]

#: Every kind of finding, and its meaning.
KINDS = {
    "activation": "the activation of the layer is missing",
    "affine": "the weight or the bias of the layer is missing",
    "batch": "another batch size gives an error or other values",
    "differs": "the file computes something else",
    "digits": "digits are lost on an input that the layer takes without loss",
    "elsewhere": "the normalization layers agree, and the outputs of the model do not",
    "eps": "another eps than the layer's",
    "groups": "another number of groups than the layer's",
    "missing": "a layer of the model that is not in the file",
    "overflow": "infinity or NaN on a finite input",
    "runs": "the runtime does not run the file",
    "scale": "a scale for each group, or of the wrong shape for the opset",
    "size": "another size gives an error or other values",
    "statistics": "statistics of other values than the layer's",
    "train": "batch statistics of training mode",
    "variance": "the unbiased variance",
}


@dataclass(frozen=True)
class Finding:
    """One change that an export made to one layer.

    Args:
        layer: the name of the layer in the model, as ``named_modules`` has it; "" for the model.
        kind: one of :data:`KINDS`.
        fault: "export" for the file, "runtime" for the program that runs it, "model" for the model.
        message: what the layer does, and what the file does.
        fix: what to do.
    """

    layer: str
    kind: str
    fault: Fault
    message: str
    fix: str


@dataclass
class Row:
    """One call of a normalization layer, and its part of the file.

    Args:
        layer: the name of the layer in the model.
        operator: the operators of ONNX that compute it, or why it was not compared; "" where it is
            missing in the file.
        scale: the shape of the operator's scale.
        eps: the eps of the operator; None where it is a number among others.
        output: the name of its output in the file.
        errors: for each tried input the largest error of the runtime against float64, relative to
            the largest value.
    """

    layer: str
    operator: str = ""
    scale: tuple[int, ...] | None = None
    eps: float | None = None
    output: str = ""
    errors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ExportReport:
    """The findings of :func:`momentnorm.export_check`: ``for finding in report``.

    ``print(report)`` shows the findings, :meth:`table` every layer.

    Args:
        findings: in the order of the layers.
        rows: one for each call of a normalization layer.
        opset: the opset of the file.
        others: normalizations in the file that belong to no layer of the model, by output name.
    """

    findings: tuple[Finding, ...]
    rows: tuple[Row, ...]
    opset: int
    others: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        """As :attr:`ok`."""
        return self.ok

    @property
    def ok(self) -> bool:
        """True where there is no finding."""
        return not self.findings

    def of(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind.

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"no finding is of kind {kind!r}: choose one of {', '.join(KINDS)}")
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def table(self) -> str:
        """One line for each layer: operator, scale, eps and the largest errors."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.errors))
        cells = [["layer", f"operator (opset {self.opset})", "scale", "eps", *names]]
        for row in self.rows:
            scale = "" if row.scale is None else str(row.scale)
            eps = "" if row.eps is None else f"{row.eps:.1e}"
            errors = [f"{row.errors[n]:.0e}" if n in row.errors else "" for n in names]
            cells.append([row.layer or "(model)", row.operator or "-", scale, eps, *errors])
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        )

    def __str__(self) -> str:
        count = len(self.findings)
        lines = [
            f"{len(self.rows)} normalization {'layer' if len(self.rows) == 1 else 'layers'}, "
            + ("the file agrees" if not count else f"{count} finding{'s' * (count > 1)}")
        ]
        for finding in self.findings:
            where = finding.layer or "(the model)"
            lines += ["", f"{finding.fault} [{finding.kind}] {where}: {finding.message}"]
            lines.append(f"    fix: {finding.fix}")
        return "\n".join(lines)
