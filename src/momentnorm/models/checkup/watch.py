"""Watch: hooks that follow one forward, apply the rules, and collect the findings."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...support.printable import one_line
from .. import layouts
from .arrivals import ARRIVALS
from .call import NORMS, Call, History
from .report import SEVERITIES, Finding
from .results import RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterator


class Watch:
    """Hooks on the modules of a model, and the findings of the forward that they follow.

    Args:
        model: the model.
        arguments: the inputs of the forward, nested in any way.
    """

    def __init__(self, model: nn.Module, arguments: Any) -> None:
        self.names = {module: _tidy(name) for name, module in model.named_modules()}
        self.modules = {name: module for module, name in self.names.items()}
        self.names_of_norms = {
            module: name for module, name in self.names.items() if isinstance(module, NORMS)
        }
        self.findings: list[Finding] = []
        #: For each layer, the number of dimensions of each call's input.
        self.calls: dict[nn.Module, list[int]] = {}
        self.histories: dict[nn.Module, History] = {}
        #: Call of a layer that has begun and not ended.
        self.open: Call | None = None
        finite = all(map(_finite, tree_leaves(arguments)))
        #: Place where NaN or infinity was seen first, or None.
        self.origin = None if finite else "the input of the model"
        #: Whether there is a "non-finite" finding. Later ones only follow from it.
        self.poisoned = False

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Install the hooks for the time of a ``with`` block."""
        handles = []
        try:
            for module in self.names:
                if module in self.names_of_norms:
                    handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                    handles.append(module.register_forward_hook(self._after))
                elif next(module.children(), None) is None and not isinstance(
                    module, torch.jit.ScriptModule
                ):
                    handles.append(module.register_forward_hook(self._between))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Open a call, before the layer runs."""
        tensors = (leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor))
        x = next(tensors, None)
        self.open = None
        if x is not None and not x.is_nested:
            if getattr(layer, "inplace", False):
                x = x.clone()  # The layer overwrites its input before the rules read it.
            if layer not in self.histories:
                self.histories[layer] = History.of(layer)
            self.open = Call(self.names[layer], layer, x, self.histories[layer])
            self.calls.setdefault(layer, []).append(x.dim())

    def _after(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Apply the rules to a call that has ended."""
        call, self.open = self.open, None
        if call is None or call.layer is not layer:
            return
        call.y = output if isinstance(output, Tensor) else None
        if self.origin is not None:
            call.origin = self.origin
        for rule in (*ARRIVALS, *RESULTS):
            for finding in rule(call):
                if finding.kind == "non-finite":
                    if self.poisoned:
                        continue
                    self.poisoned = True
                self.findings.append(finding)
        self._between(layer, args, output)

    def _between(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Record the first module that makes NaN or infinity of finite inputs."""
        if self.origin is not None or not all(map(_finite, tree_leaves(args))):
            return
        if not all(map(_finite, tree_leaves(output))):
            self.origin = f"the output of {self.names[module]!r} ({type(module).__name__})"

    def stop(self, error: Exception, cause: layouts.Cause | None) -> None:
        """Add the findings for an exception of the model.

        Args:
            error: the exception.
            cause: the layer whose kept layout made the model raise, or None.
        """
        if cause is not None:
            message = f"{cause.kind}: {cause.message()}"
            self.findings.append(
                Finding("error", _tidy(cause.name), "layout", message, layouts.FIX)
            )
            return
        module = layouts.raised_in(error, self.names)
        text = f"{type(error).__name__}: {one_line(error)}"
        if self.open is not None and module is not None and module is self.open.layer:
            self._stop_in_layer(self.open, text)
            return
        name = "" if module is None else self.names[module]
        kind = type(module).__name__ if module is not None else "the model"
        fix = "see report.exception; modules behind this one were not checked"
        self.findings.append(Finding("error", name, "exception", f"{kind} raised {text}", fix))

    def _stop_in_layer(self, call: Call, text: str) -> None:
        """Add the findings for a normalization layer that raised."""
        found = [finding for rule in ARRIVALS for finding in rule(call)]
        self.findings += found
        if any(finding.severity == "error" for finding in found):
            return
        x = call.x
        fix = "pass an input that the layer takes"
        if parameters := {f"{p.dtype} on {p.device}" for p in call.layer.parameters()}:
            fix += f"; its parameters are {', '.join(parameters)}"
        message = f"for an input of {call.shape}, {x.dtype} on {x.device}, it raised {text}"
        self.findings.append(call.finding("error", "exception", message, fix))

    def merged(self) -> tuple[Finding, ...]:
        """Worst finding of each kind and layer, the worst severity first."""
        grouped: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            grouped.setdefault((finding.layer, finding.kind), []).append(finding)
        merged = []
        for (name, _), findings in grouped.items():
            worst = min(findings, key=_rank)
            calls = len(self.calls.get(self.modules[name], ()))
            if calls > 1:
                message = f"{worst.message} (in {len(findings)} of {calls} calls)"
                worst = dataclasses.replace(worst, message=message)
            merged.append(worst)
        return tuple(sorted(merged, key=_rank))


def _rank(finding: Finding) -> int:
    """Place of a finding's severity, the worst first."""
    return SEVERITIES.index(finding.severity)


def _tidy(name: str) -> str:
    """Name of a module without the parts that torch.compile inserts."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _finite(value: Any) -> bool:
    """Whether a dense float tensor has no NaN and no infinity; True for other values."""
    return (
        not isinstance(value, Tensor)
        or not value.is_floating_point()
        or value.is_nested
        or value.layout is not torch.strided
        or bool(value.isfinite().all())
    )
