"""Run: :func:`check`, one watched forward of a model, which leaves the model unchanged."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from .. import layouts
from ..unwrap import unwrapped
from .isolation import isolated, run_on_copies
from .larger_input import with_larger_input
from .model_rules import unused, wasted_biases
from .report import Report
from .watch import Watch


def check(model: nn.Module, *inputs: Any, **kwargs: Any) -> Report:
    """Run a model once, and report faults of its normalization layers, each with a fix.

    The layers checked are torch's and momentnorm's InstanceNorm, BatchNorm (also SyncBatchNorm),
    GroupNorm, LayerNorm, RMSNorm, SwitchableNorm, BatchInstanceNorm2d and IBN, and their
    subclasses. ``docs/checkup.md`` lists every kind of finding, its condition and its fix.

    The model runs as ``model(*inputs, **kwargs)``, in its present mode, without gradients. A
    compiled model runs eagerly. The run uses copies of the inputs, of all buffers and of the
    normalization layers' parameters. Running statistics, torch's random numbers and the modes of
    all modules do not change, also if the model raises. State that a model keeps outside of its
    buffers, such as a counter in Python, cannot be put back.

    An exception of the model becomes a finding and ``report.exception``. Layers behind it are not
    checked.

    Args:
        model: any module, also a compiled one, DataParallel or DistributedDataParallel. With
            distributed training call this on every rank.
        inputs, kwargs: arguments of the model: tensors, or tuples, lists and dicts of them.

    Raises:
        TypeError: the model is not a module, or is a TorchScript program, whose layers cannot be
            watched.
        ValueError: the model has a lazy layer, which has no parameters yet.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4), torch.nn.InstanceNorm2d(8))
    >>> report = check(model, torch.randn(1, 3, 4, 4))
    >>> [(finding.layer, finding.kind) for finding in report if finding.severity == "error"]
    [('1', 'few-elements')]
    """
    model = _eager(model)
    watch = Watch(model, (inputs, kwargs))
    exception = None
    with isolated(model, (inputs, kwargs)):
        try:
            with watch.hooks():
                run_on_copies(model, inputs, kwargs)
        except Exception as error:
            exception = error
            cause = layouts.cause(model, lambda: run_on_copies(model, inputs, kwargs))
            watch.stop(error, cause)
            watch.findings = [
                with_larger_input(
                    finding,
                    watch.modules[finding.layer],
                    inputs,
                    lambda larger: run_on_copies(model, larger, kwargs),
                )
                for finding in watch.findings
            ]
    if exception is None:
        watch.findings += unused(watch)
        watch.findings += wasted_biases(model, watch)
    return Report(
        findings=watch.merged(),
        layers=len(watch.names_of_norms),
        calls=sum(map(len, watch.calls.values())),
        training=model.training,
        exception=exception,
    )


def _eager(model: nn.Module) -> nn.Module:
    """Module inside all wrappers.

    Raises:
        TypeError: it is not a module, or its layers cannot be watched.
        ValueError: it has a lazy layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"check takes a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "check cannot watch the layers of a TorchScript program: pass the module from which it "
            "was made"
        )
    model = unwrapped(model)
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin):
            raise ValueError(
                f"layer {name!r}, {type(module).__name__}, is lazy and has no parameters before "
                "its first call: run the model once, then check it"
            )
    return model
