""":func:`check`: one forward, watched by hooks that ask the rules, and nothing changed by it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves, tree_map

from ...layers.sequential import Sequential
from ...support.printable import one_line
from .. import layouts
from ..unwrap import unwrapped
from .arrivals import ARRIVALS
from .call import NORMS, Batch, Call, History, Instance
from .report import SEVERITIES, Finding, Report
from .results import RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def check(model: nn.Module, *inputs: Any, **kwargs: Any) -> Report:
    """Run the model once, and name what goes wrong in its normalization layers.

    Looked at are torch's own layers and momentnorm's: InstanceNorm, BatchNorm (SyncBatchNorm too),
    GroupNorm, LayerNorm, RMSNorm, SwitchableNorm, BatchInstanceNorm2d and IBN, and subclasses of
    them. ``docs/checkup.md`` has every kind of finding, when it is made, and what to do.

    The model runs as ``model(*inputs, **kwargs)`` does, in the mode that it is in, but without
    gradients, eagerly even where it is compiled, and on copies of the inputs, of all buffers and
    of the normalization layers' parameters. So running statistics, torch's random numbers and
    train() or eval() are afterwards what they were before, after an exception too. What a model
    keeps outside of its buffers (a counter in Python) cannot be put back.

    An exception inside the model is a finding, and ``report.exception``: what would have come after
    it was not seen.

    Args:
        model: compiled, DataParallel and DistributedDataParallel ones are looked into. With
            distributed training call this on every rank.
        inputs, kwargs: what the model is called with: tensors, or tuples, lists and dicts of them.

    Raises:
        TypeError: the model is no module, or a TorchScript program, whose layers cannot be watched.
        ValueError: a lazy layer, which has no parameters yet.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4), torch.nn.InstanceNorm2d(8))
    >>> report = check(model, torch.randn(1, 3, 4, 4))
    >>> [(finding.layer, finding.kind) for finding in report if finding.severity == "error"]
    [('1', 'few-elements')]
    """
    model = _eager(model)
    watch = _Watch(model, (inputs, kwargs))
    exception = None
    with _undisturbed(model, (inputs, kwargs)):
        try:
            with watch.hooks():
                _call(model, inputs, kwargs)
        except Exception as error:
            exception = error
            cause = layouts.cause(model, lambda: _call(model, inputs, kwargs))
            watch.stopped(error, cause)
            watch.findings = [
                _with_larger_input(finding, watch, model, inputs, kwargs)
                for finding in watch.findings
            ]
    if exception is None:
        watch.findings += _unused(watch)
        watch.findings += _wasted_biases(model, watch)
    return Report(
        findings=tuple(_sorted(watch)),
        layers=len(watch.names_of_norms),
        calls=sum(map(len, watch.calls.values())),
        training=model.training,
        exception=exception,
    )


def _eager(model: nn.Module) -> nn.Module:
    """The module with layers in it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"check takes a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "check cannot watch the layers of a TorchScript program: pass the module that it was "
            "made of"
        )
    model = unwrapped(model)
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin):
            raise ValueError(
                f"layer {name!r}, {type(module).__name__}, is lazy and has no parameters before "
                "its first call: run the model once, then check it"
            )
    return model


def _call(model: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """The forward, on copies of its tensors: models may write over them."""
    inputs, kwargs = tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (inputs, kwargs)
    )
    model(*inputs, **kwargs)


@contextlib.contextmanager
def _undisturbed(model: nn.Module, arguments: Any) -> Iterator[None]:
    """Copies of what a forward changes in the model's place, and afterwards the originals."""
    modes = {module: module.training for module in model.modules()}
    stores: list[dict[str, Any]] = [module._buffers for module in modes]
    stores += [module._parameters for module in modes if isinstance(module, NORMS)]
    originals = [dict(store) for store in stores]
    devices = {
        leaf.device.index
        for leaf in (*model.parameters(), *tree_leaves(arguments))
        if isinstance(leaf, Tensor) and leaf.is_cuda
    }
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        _copy_all(stores)
        # The fast path of transformers calls none of their layers.
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            torch.no_grad(),
            torch.random.fork_rng(list(devices)),
            torch.compiler.set_stance("force_eager"),
            warnings.catch_warnings(),
        ):
            # These are findings here.
            warnings.filterwarnings("ignore", "input's size at dim=.* does not match num_features")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for store, original in zip(stores, originals, strict=True):
            store.clear()
            store.update(original)
        for module, training in modes.items():
            module.training = training


def _copy_all(stores: list[dict[str, Any]]) -> None:
    """Replace each tensor by its copy, and a shared one by the same copy."""
    copies: dict[int, Tensor] = {}
    for store in stores:
        for name, tensor in store.items():
            if tensor is None:
                continue
            if id(tensor) not in copies:
                copy = tensor.detach().clone()
                if isinstance(tensor, nn.Parameter):
                    copy = nn.Parameter(copy, tensor.requires_grad)
                copies[id(tensor)] = copy
            store[name] = copies[id(tensor)]


class _Watch:
    """What the hooks of one forward see."""

    def __init__(self, model: nn.Module, arguments: Any) -> None:
        self.names = {module: _tidy(name) for name, module in model.named_modules()}
        self.modules = {name: module for module, name in self.names.items()}
        self.names_of_norms = {
            module: name for module, name in self.names.items() if isinstance(module, NORMS)
        }
        self.findings: list[Finding] = []
        #: How many dimensions arrived, call by call.
        self.calls: dict[nn.Module, list[int]] = {}
        self.histories: dict[nn.Module, History] = {}
        self.open: Call | None = None
        finite = all(map(_finite, tree_leaves(arguments)))
        self.origin = None if finite else "the input of the model"
        self.poisoned = False

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        try:
            for module in self.names:
                if module in self.names_of_norms:
                    handles.append(module.register_forward_pre_hook(self.before, with_kwargs=True))
                    handles.append(module.register_forward_hook(self.after))
                elif next(module.children(), None) is None and not isinstance(
                    module, torch.jit.ScriptModule
                ):
                    handles.append(module.register_forward_hook(self.between))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor))
        x = next(tensors, None)
        self.open = None
        if x is not None and not x.is_nested:
            if getattr(layer, "inplace", False):
                x = x.clone()  # of momentnorm: it is gone when the rules look at it
            if layer not in self.histories:
                self.histories[layer] = History.of(layer)
            self.open = Call(self.names[layer], layer, x, self.histories[layer])
            self.calls.setdefault(layer, []).append(x.dim())

    def after(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
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
                        continue  # the first is the one to look at
                    self.poisoned = True
                self.findings.append(finding)
        self.between(layer, args, output)

    def between(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Remember where values that are not finite come from."""
        if self.origin is not None or not all(map(_finite, tree_leaves(args))):
            return
        if not all(map(_finite, tree_leaves(output))):
            self.origin = f"the output of {self.names[module]!r} ({type(module).__name__})"

    def stopped(self, error: Exception, cause: layouts.Cause | None) -> None:
        """The model raised: say where, and why if a rule knows."""
        if cause is not None:
            name = _tidy(cause.name)
            message = f"{cause.kind}: {cause.message()}"
            self.findings.append(Finding("error", name, "layout", message, layouts.FIX))
            return
        module = layouts.raised_in(error, self.names)
        text = f"{type(error).__name__}: {one_line(error)}"
        if self.open is not None and module is not None and module is self.open.layer:
            found = [finding for rule in ARRIVALS for finding in rule(self.open)]
            self.findings += found
            if any(finding.severity == "error" for finding in found):
                return
            x = self.open.x
            parameters = {f"{p.dtype} on {p.device}" for p in module.parameters()}
            self.findings.append(
                self.open.finding(
                    "error",
                    "exception",
                    f"of input {self.open.shape}, {x.dtype} on {x.device}, it raised {text}",
                    "give the layer an input that it takes"
                    + (f"; its parameters are {', '.join(parameters)}" if parameters else ""),
                )
            )
            return
        name = "" if module is None else self.names[module]
        kind = type(module).__name__ if module is not None else "the model"
        self.findings.append(
            Finding(
                "error",
                name,
                "exception",
                f"{kind} raised {text}",
                "see report.exception; what comes after it was not checked",
            )
        )


def _tidy(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _finite(value: Any) -> bool:
    return (
        not isinstance(value, Tensor)
        or not value.is_floating_point()
        or value.is_nested
        or value.layout is not torch.strided
        or bool(value.isfinite().all())
    )


def _unused(watch: _Watch) -> Iterator[Finding]:
    for module, name in watch.names_of_norms.items():
        if module not in watch.calls:
            yield Finding(
                "hint",
                name,
                "unused",
                f"{type(module).__name__}: this forward does not call the layer",
                "nothing, if another input or mode does; else remove it",
            )


_BIASED = (nn.Linear, nn.modules.conv._ConvNd)


def _wasted_biases(model: nn.Module, watch: _Watch) -> Iterator[Finding]:
    """In a Sequential nobody else sees what a layer makes."""
    for container in model.modules():
        plain = type(container).forward in (nn.Sequential.forward, Sequential.forward)
        if not plain or not isinstance(container, nn.Sequential):
            continue
        for layer, norm in itertools.pairwise(container):
            if (
                isinstance(layer, _BIASED)
                and layer.bias is not None
                and _takes_bias(layer, norm, watch.calls.get(norm, []))
            ):
                yield Finding(
                    "hint",
                    watch.names[layer],
                    "wasted-bias",
                    f"{type(layer).__name__}: its bias, {layer.bias.numel()} parameters, is taken "
                    f"away by the mean of {watch.names[norm]!r} behind it",
                    "bias=False",
                )


def _takes_bias(layer: nn.Module, norm: nn.Module, dimensions: list[int]) -> bool:
    """Whether the mean is of one channel, and that the layer's."""
    if isinstance(norm, Instance):
        return bool(dimensions) and not isinstance(layer, nn.Linear)
    one_channel = isinstance(norm, Batch) or (
        isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
    )
    # Of (N, L, C) a Linear's channels are the last, and a norm's the second.
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return one_channel and bool(dimensions) and set(dimensions) == {weight.dim()}


def _with_larger_input(
    finding: Finding,
    watch: _Watch,
    model: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Finding:
    """The finding, with a size of input that would do, found by trying two."""
    layer = watch.modules[finding.layer]
    images = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim() > 2]
    too_small = finding.kind == "few-elements" and finding.severity == "error"
    if not too_small or isinstance(layer, (Batch, nn.GroupNorm, nn.LayerNorm)) or len(images) != 1:
        return finding
    for times in (2, 4):
        larger = images[0].repeat(1, 1, *[times] * (images[0].dim() - 2))
        arrived = _arrived(layer, model, _replaced(inputs, images[0], larger), kwargs)
        if arrived is None:
            return finding
        if math.prod(arrived[2:]) > 1:
            fix = f"an input of {tuple(larger.shape)}, {times} times as large, would do"
            return dataclasses.replace(finding, fix=fix)
    return dataclasses.replace(
        finding,
        fix="a larger input does not help: what comes before makes it one value (a pooling, say); "
        "remove the layer, or put it in front of that",
    )


def _replaced(tree: Any, old: Tensor, new: Tensor) -> Any:
    return tree_map(lambda leaf: new if leaf is old else leaf, tree)


def _arrived(
    layer: nn.Module, model: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """The shape in which this input arrives at the layer, or None."""
    shapes: list[tuple[int, ...]] = []

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        shapes.append(tuple(args[0].shape))

    with layer.register_forward_pre_hook(note), contextlib.suppress(Exception):
        _call(model, inputs, kwargs)
    return shapes[0] if shapes else None


def _sorted(watch: _Watch) -> Iterator[Finding]:
    """One finding of each kind and layer, the worst first."""
    grouped: dict[tuple[str, str], list[Finding]] = {}
    for finding in watch.findings:
        grouped.setdefault((finding.layer, finding.kind), []).append(finding)
    merged = []
    for (name, _), findings in grouped.items():
        worst = min(findings, key=lambda finding: SEVERITIES.index(finding.severity))
        calls = len(watch.calls.get(watch.modules[name], ()))
        if calls > 1:
            message = f"{worst.message} (in {len(findings)} of {calls} calls)"
            worst = dataclasses.replace(worst, message=message)
        merged.append(worst)
    return iter(sorted(merged, key=lambda finding: SEVERITIES.index(finding.severity)))
