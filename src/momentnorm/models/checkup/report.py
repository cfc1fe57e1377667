"""Report: the result of :func:`momentnorm.check`, a list of findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...support.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

Severity = Literal["error", "warning", "hint"]

#: Severities, the worst first.
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "hint")

#: Kinds of findings, each with its subject.
KINDS = {
    "exception": "the model raised",
    "few-elements": "a mean and a variance of one or two values",
    "channels": "a number of channels that is not the layer's",
    "tracking": "track_running_stats that contradicts the running statistics",
    "never-moved": "evaluation with running statistics that no batch has updated",
    "running-var": "running statistics that are NaN, infinite, negative or below eps",
    "gap": "running statistics that do not fit this data",
    "batch-size": "batch statistics of very few samples",
    "momentum": "a momentum that makes the running statistics useless",
    "constant": "planes, groups or channels that are constant",
    "eps": "variances that are small beside eps",
    "digits": "a mean so large that digits of the output are lost",
    "non-finite": "NaN or infinity",
    "overflow": "values near the largest float16, or above it",
    "zero-weight": "a weight of zeros",
    "layout": "a channels_last input whose output is contiguous, or has to be",
    "wasted-bias": "a bias that the normalization behind it removes",
    "unused": "a layer that this forward does not call",
}


@dataclass(frozen=True)
class Finding:
    """One fault of one layer.

    Args:
        severity: "error" (the call raises, or the result is useless), "warning" (probably a
            mistake) or "hint" (legitimate, but worth knowing).
        layer: the layer's name in ``model.named_modules()``; "" for the model itself.
        kind: one of :data:`KINDS`.
        message: the rule, and the values that break it.
        fix: the change that removes the fault.
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
        findings: the worst first, then in the order of the forward.
        layers: how many normalization layers the model has.
        calls: how often they were called.
        training: the mode of the model.
        exception: the exception that the model raised, or None. Layers behind it were not seen.
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
        """Equal to :attr:`ok`, so that ``if check(model, x):`` asks for a model without faults."""
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
        # Findings of one kind and severity are one entry, with the message of the first.
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
    """Number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def some(names: list[str]) -> str:
    """First six names, and the number of the others."""
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
