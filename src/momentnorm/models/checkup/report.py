"""What :func:`momentnorm.check` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...support.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

Severity = Literal["error", "warning", "hint"]

#: From the worst on.
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "hint")

#: Every kind of finding, and what it is about.
KINDS = {
    "exception": "the model raised",
    "few-elements": "a mean and a variance of one or two values",
    "channels": "another number of channels than the layer was made for",
    "tracking": "track_running_stats and the running statistics do not go together",
    "never-moved": "evaluation with running statistics that no batch has moved",
    "running-var": "running statistics that nothing can be divided by",
    "gap": "running statistics that do not fit this data",
    "batch-size": "batch statistics of very few samples",
    "momentum": "a momentum with which the running statistics are of no use",
    "constant": "planes, groups or channels that are constant",
    "eps": "variances that eps outweighs",
    "digits": "a mean so large that the digits of the deviations are lost",
    "non-finite": "NaN or infinity",
    "overflow": "values near the end of float16",
    "zero-weight": "a weight of zeros",
    "layout": "channels_last goes in, contiguous comes out, or what is behind it needs that",
    "wasted-bias": "a bias that the normalization behind it takes away",
    "unused": "a layer that this forward does not call",
}


@dataclass(frozen=True)
class Finding:
    """One thing that goes wrong in one layer.

    Args:
        severity: "error" (it raises, or the result is useless), "warning" (probably not what was
            meant) or "hint" (legitimate, but worth knowing).
        layer: its name in the model, as ``named_modules`` has it; "" for the model itself.
        kind: one of :data:`KINDS`.
        message: the invariant, and what arrived.
        fix: what to do.
    """

    severity: Severity
    layer: str
    kind: str
    message: str
    fix: str


@dataclass(frozen=True, eq=False)
class Report:
    """The findings of :func:`momentnorm.check`: ``for finding in report``; ``print(report)``.

    Args:
        findings: from the worst on, and otherwise in the order of the forward.
        layers: how many normalization layers the model has.
        calls: how often they were called.
        training: the mode of the model.
        exception: what the model raised, if it did. What would have come after it was not seen.
    """

    findings: tuple[Finding, ...]
    layers: int
    calls: int
    training: bool
    exception: Exception | None = None

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        """As :attr:`ok`: a report that is true is a model that is well."""
        return self.ok

    @property
    def ok(self) -> bool:
        """Whether there is nothing worse than a hint."""
        return all(finding.severity == "hint" for finding in self.findings)

    def of(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind.

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"no finding is of kind {kind!r}: choose one of {', '.join(KINDS)}")
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def raise_if_errors(self) -> None:
        """Raise a RuntimeError with the whole report, if a finding is an error."""
        if any(finding.severity == "error" for finding in self.findings):
            raise RuntimeError(str(self)) from self.exception

    def __str__(self) -> str:
        counts = [
            _plural(sum(finding.severity == severity for finding in self.findings), severity)
            for severity in SEVERITIES
        ]
        lines = [
            f"{_plural(self.layers, 'normalization layer')}, called {_plural(self.calls, 'time')} "
            f"in {'train' if self.training else 'eval'} mode: {', '.join(counts)}"
        ]
        # Layers with the same ailment are one entry, told by the first of them.
        same: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            same.setdefault((finding.severity, finding.kind), []).append(finding)
        for (severity, kind), findings in same.items():
            first, *others = findings
            layer = first.layer or "(the model)"
            lines += ["", printable(f"{severity} [{kind}] {layer}: {first.message}")]
            if others:
                also = some([finding.layer for finding in others])
                lines.append(printable(f"    also in {also}"))
            lines.append(printable(f"    fix: {first.fix}"))
        return "\n".join(lines)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def some(names: list[str]) -> str:
    """The first few, and how many more."""
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
