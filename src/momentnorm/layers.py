"""Layers: ``torch.nn``'s own classes, with the statistics and the arithmetic done by momentnorm.

Each class inherits the constructor, the parameters and buffers, ``state_dict``, ``repr`` and the
input checks of the torch class that it replaces, so ``isinstance`` tests, initialization code and
checkpoints keep working in both directions.

``LayerNorm``, ``RMSNorm`` and ``LocalResponseNorm`` are torch's own classes, here for completeness.
The first two have one weight for each *element* of ``normalized_shape``, and the third has a window
of neighbouring channels: none of them is a policy on planes. LayerNorm over (C, \\*S) with a weight
per channel is one: ``GroupNorm(1, C)``.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import LayerNorm, LocalResponseNorm, RMSNorm

from . import _dispatch, functional
from ._standard import standard_batch_norm, standard_group_norm, standard_instance_norm

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LocalResponseNorm",
    "RMSNorm",
]

#: The arguments that torch's constructors do not have, with their defaults.
_OPTIONS: dict[str, Any] = {"activation": None, "negative_slope": 0.01, "inplace": False}


def _constructor(theirs: type[nn.Module]) -> Callable[..., None]:
    """The constructor of a class of torch's, whatever this torch's takes, with our options."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        options = {name: kwargs.pop(name, default) for name, default in _OPTIONS.items()}
        theirs.__init__(self, *args, **kwargs)
        if options["activation"] is not None:
            _dispatch.check_activation(options["activation"])
        self.__dict__.update(options)

    signature = inspect.signature(theirs.__init__)
    ours = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in _OPTIONS.items()
    ]
    parameters = [*signature.parameters.values(), *ours]
    __init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return __init__


class _Norm(nn.Module):
    """What all layers share: the options, and what a symbolic trace makes of a layer."""

    # Of the class too: layers that were made by torch's constructor, or long ago, have no others.
    activation: str | None = None
    negative_slope: float = 0.01
    inplace: bool = False

    def _leaf(
        self, input: Proxy, activation: str | None, negative_slope: float, **operands: Any
    ) -> Any:
        """One node of a symbolic trace, as torch's own layers are."""
        given = {name: operand for name, operand in operands.items() if operand is not None}
        if activation is not None:
            given.update(activation=activation, negative_slope=negative_slope)
        tracer: Any = input.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), given)

    def extra_repr(self) -> str:
        options = {name: getattr(self, name) for name in _OPTIONS}
        if self.activation != "leaky_relu":
            del options["negative_slope"]
        return super().extra_repr() + "".join(
            f", {name}={option!r}" for name, option in options.items() if option != _OPTIONS[name]
        )


class _LazyNorm(_Norm):
    def initialize_parameters(self, input: Tensor, *args: Any, **kwargs: Any) -> None:
        # The first call's other operands say nothing about the number of features.
        super().initialize_parameters(input)  # type: ignore[misc]


class _InstanceNorm(_Norm, nn.modules.instancenorm._InstanceNorm):
    #: False: contiguous outputs, as torch's are. torch's other norms keep the layout too.
    keep_layout: bool = True

    __constants__ = [*nn.modules.batchnorm._NormBase.__constants__, *_OPTIONS]  # noqa: RUF012

    # torch's forward under a second name, since TorchScript does not know super(). It checks the
    # input, and then calls one of the two functions below.
    _checked = FunctionType(
        nn.modules.instancenorm._InstanceNorm.forward.__code__,
        nn.modules.instancenorm._InstanceNorm.forward.__globals__,
        "_checked",
    )

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return input

    def _handle_no_batch_input(self, input: Tensor) -> Tensor:
        return input.unsqueeze(0)

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        out: Tensor | None = None,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript skips this block.
            symbol: object = input
            if isinstance(symbol, Proxy):
                leaf: Tensor = self._leaf(
                    symbol,
                    activation,
                    negative_slope,
                    residual=residual,
                    mask=mask,
                    lengths=lengths,
                    out=out,
                )
                return leaf
        if activation is None:
            activation, negative_slope = self.activation, self.negative_slope
        x: Tensor = self._checked(input)
        unbatched = x.dim() != input.dim()
        target = out
        if unbatched:
            if residual is not None:
                residual = residual.unsqueeze(0)
            if mask is not None:
                mask = mask.unsqueeze(0)
            if lengths is not None:
                lengths = lengths.unsqueeze(0)
            if out is not None:
                target = out.unsqueeze(0)
        use_input_stats = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # A script may run where momentnorm is not installed: give it the standard operators.
            y = standard_instance_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                use_input_stats,
                momentum,
                self.eps,
                activation,
                negative_slope,
                residual,
                mask,
                lengths,
                self.inplace,
                target,
            )
        else:
            y = functional.instance_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                use_input_stats,
                momentum,
                self.eps,
                activation=activation,
                negative_slope=negative_slope,
                residual=residual,
                mask=mask,
                lengths=lengths,
                inplace=self.inplace,
                out=target,
            )
            if not self.keep_layout and out is None and not self.inplace:
                y = y.contiguous()
        if not unbatched:
            return y
        if self.inplace:
            return input
        return y.squeeze(0) if out is None else out


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    r"""Instance Normalization of sequences, in place of :class:`torch.nn.InstanceNorm1d`.

    The equation, the arguments and the errors are those of :class:`InstanceNorm2d`.

    Shape:
        (N, C, L) or (C, L), and the output alike. Two dimensions are always (C, L), unbatched.
        ``lengths`` is (N,), or a number without dimensions.

    >>> InstanceNorm1d(2)(torch.tensor([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]]))
    tensor([[[-1.2247,  0.0000,  1.2247],
             [ 0.0000,  0.0000,  0.0000]]])
    """

    __init__ = _constructor(nn.InstanceNorm1d)


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    r"""Instance Normalization of images, in place of :class:`torch.nn.InstanceNorm2d`.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    with mean and biased variance over the pixels of each channel of each image, in training and in
    evaluation alike (Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing
    Ingredient for Fast Stylization*, arXiv 1607.08022). The activation :math:`\phi` and the
    residual r are off by default, and computed in the same pass where given.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: the share that a batch has in the running statistics; None means 0 here, as in
            torch.
        affine: learn a weight (gamma, starts at 1) and a bias (beta, starts at 0) per channel.
        track_running_stats: keep running statistics in training, and normalize with them in
            evaluation.
        device, dtype: of the parameters and buffers.
        bias: with ``affine``, whether there is a bias beside the weight (needs a torch that has
            this argument).
        activation: "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid" or None.
        negative_slope: of "leaky_relu".
        inplace: write the output over the input; an error where autograd would record the call.

    A call takes, beside the input, ``residual``, ``mask``, ``lengths`` and ``out``, as
    :func:`momentnorm.functional.instance_norm` does; ``activation`` and ``negative_slope`` of a
    call stand in for the layer's own.

    Shape:
        (N, C, H, W) or (C, H, W), and the output alike, in the input's memory layout. ``residual``
        and ``out`` have the shape of the input; ``mask`` is (N, 1, H, W) or (1, H, W), ``lengths``
        (N, 2) or (2,).

    Raises:
        ValueError: one pixel a plane, where statistics of the input are wanted; a number of
            channels other than ``num_features``, with ``affine``; another number of dimensions; an
            unknown activation.
        RuntimeError: ``inplace`` or ``out`` where autograd would have to record the call.

    >>> layer = InstanceNorm2d(3, affine=True)
    >>> layer(torch.randn(2, 3, 8, 8)).mean((2, 3)).abs().max().item() < 1e-6
    True
    """

    __init__ = _constructor(nn.InstanceNorm2d)


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    r"""Instance Normalization of volumes, in place of :class:`torch.nn.InstanceNorm3d`.

    The equation, the arguments and the errors are those of :class:`InstanceNorm2d`.

    Shape:
        (N, C, D, H, W) or (C, D, H, W), and the output alike, in the input's memory layout.

    >>> InstanceNorm3d(2)(torch.randn(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """

    __init__ = _constructor(nn.InstanceNorm3d)


class LazyInstanceNorm1d(_LazyNorm, _InstanceNorm, nn.LazyInstanceNorm1d):
    """:class:`InstanceNorm1d` that takes ``num_features`` from its first input."""

    __init__ = _constructor(nn.LazyInstanceNorm1d)
    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_LazyNorm, _InstanceNorm, nn.LazyInstanceNorm2d):
    """:class:`InstanceNorm2d` that takes ``num_features`` from its first input."""

    __init__ = _constructor(nn.LazyInstanceNorm2d)
    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_LazyNorm, _InstanceNorm, nn.LazyInstanceNorm3d):
    """:class:`InstanceNorm3d` that takes ``num_features`` from its first input."""

    __init__ = _constructor(nn.LazyInstanceNorm3d)
    cls_to_become = InstanceNorm3d


class _BatchNorm(_Norm, nn.modules.batchnorm._BatchNorm):
    __constants__ = [*nn.modules.batchnorm._NormBase.__constants__, *_OPTIONS]  # noqa: RUF012

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        out: Tensor | None = None,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript skips this block.
            symbol: object = input
            if isinstance(symbol, Proxy):
                leaf: Tensor = self._leaf(
                    symbol,
                    activation,
                    negative_slope,
                    residual=residual,
                    mask=mask,
                    lengths=lengths,
                    out=out,
                )
                return leaf
        if activation is None:
            activation, negative_slope = self.activation, self.negative_slope
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average of all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        # Where there are none of the running statistics, evaluation is with the batch's.
        training = self.training or (self.running_mean is None and self.running_var is None)
        tracked = not self.training or self.track_running_stats
        running_mean = self.running_mean if tracked else None
        running_var = self.running_var if tracked else None
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # A script may run where momentnorm is not installed: give it the standard operators.
            return standard_batch_norm(
                input,
                running_mean,
                running_var,
                self.weight,
                self.bias,
                training,
                momentum,
                self.eps,
                activation,
                negative_slope,
                residual,
                mask,
                lengths,
                self.inplace,
                out,
            )
        return functional.batch_norm(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            mask=mask,
            lengths=lengths,
            inplace=self.inplace,
            out=out,
        )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    r"""Batch Normalization of vectors or sequences, in place of :class:`torch.nn.BatchNorm1d`.

    The equation, the arguments and the errors are those of :class:`BatchNorm2d`.

    Shape:
        (N, C) or (N, C, L), and the output alike.

    >>> BatchNorm1d(2)(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).detach()
    tensor([[-1.0000,  0.0000],
            [ 1.0000,  0.0000]])
    """

    __init__ = _constructor(nn.BatchNorm1d)


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    r"""Batch Normalization of images, in place of :class:`torch.nn.BatchNorm2d`.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    with, in training, mean and biased variance over the pixels of each channel of all images, and
    in evaluation the running ones (Ioffe and Szegedy, *Batch Normalization: Accelerating Deep
    Network Training by Reducing Internal Covariate Shift*, arXiv 1502.03167). The activation
    :math:`\phi` and the residual r are off by default, and computed in the same pass where given.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: the share that a batch has in the running statistics; None means the average of
            all batches.
        affine: learn a weight (gamma, starts at 1) and a bias (beta, starts at 0) per channel.
        track_running_stats: keep running statistics in training, and normalize with them in
            evaluation; otherwise with those of the batch.
        device, dtype: of the parameters and buffers.
        bias: with ``affine``, whether there is a bias beside the weight (needs a torch that has
            this argument).
        activation: "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid" or None.
        negative_slope: of "leaky_relu".
        inplace: write the output over the input; an error where autograd would record the call.

    A call takes, beside the input, ``residual``, ``mask``, ``lengths`` and ``out``, as
    :func:`momentnorm.functional.batch_norm` does; ``activation`` and ``negative_slope`` of a call
    stand in for the layer's own.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout. ``residual`` and ``out``
        have the shape of the input.

    Raises:
        ValueError: one value per channel, where statistics of the input are wanted; another number
            of dimensions; an unknown activation; an ``eps`` that is not positive.
        RuntimeError: a number of channels other than ``num_features``; ``inplace`` or ``out`` where
            autograd would have to record the call.

    >>> layer = BatchNorm2d(3, activation="relu")
    >>> layer(torch.randn(2, 3, 8, 8)).min().item()
    0.0
    """

    __init__ = _constructor(nn.BatchNorm2d)


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    r"""Batch Normalization of volumes, in place of :class:`torch.nn.BatchNorm3d`.

    The equation, the arguments and the errors are those of :class:`BatchNorm2d`.

    Shape:
        (N, C, D, H, W), and the output alike, in the input's memory layout.

    >>> BatchNorm3d(2)(torch.randn(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """

    __init__ = _constructor(nn.BatchNorm3d)


class LazyBatchNorm1d(_LazyNorm, _BatchNorm, nn.LazyBatchNorm1d):
    """:class:`BatchNorm1d` that takes ``num_features`` from its first input."""

    __init__ = _constructor(nn.LazyBatchNorm1d)
    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_LazyNorm, _BatchNorm, nn.LazyBatchNorm2d):
    """:class:`BatchNorm2d` that takes ``num_features`` from its first input."""

    __init__ = _constructor(nn.LazyBatchNorm2d)
    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_LazyNorm, _BatchNorm, nn.LazyBatchNorm3d):
    """:class:`BatchNorm3d` that takes ``num_features`` from its first input."""

    __init__ = _constructor(nn.LazyBatchNorm3d)
    cls_to_become = BatchNorm3d


class GroupNorm(_Norm, nn.GroupNorm):
    r"""Group Normalization, in place of :class:`torch.nn.GroupNorm`.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    with mean and biased variance over the elements of each group of neighbouring channels of each
    sample, in training and in evaluation alike (Wu and He, *Group Normalization*, arXiv
    1803.08494). As many groups as channels are Instance Normalization. One group is Layer
    Normalization over (C, \*S), but for the weight and bias, which are per channel here. The
    activation :math:`\phi` and the residual r are off by default, and computed in the same pass
    where given.

    Args:
        num_groups: into how many groups the channels are divided.
        num_channels: C, the number of channels.
        eps: added to the variance.
        affine: learn a weight (gamma, starts at 1) and a bias (beta, starts at 0) per channel.
        device, dtype: of the parameters.
        bias: with ``affine``, whether there is a bias beside the weight (needs a torch that has
            this argument).
        activation: "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid" or None.
        negative_slope: of "leaky_relu".
        inplace: write the output over the input; an error where autograd would record the call.

    A call takes, beside the input, ``residual``, ``mask``, ``lengths`` and ``out``, as
    :func:`momentnorm.functional.group_norm` does; ``activation`` and ``negative_slope`` of a call
    stand in for the layer's own.

    Shape:
        (N, C) or (N, C, \*S), and the output alike, in the input's memory layout. ``residual`` and
        ``out`` have the shape of the input. There is no unbatched input: (C, L) is read as (N, C).

    Raises:
        ValueError: ``num_channels`` that ``num_groups`` does not divide; groups of one value, in
            one sample; an unknown activation.
        RuntimeError: another number of channels, with ``affine``; ``inplace`` or ``out`` where
            autograd would have to record the call.

    >>> GroupNorm(1, 2)(torch.tensor([[[1.0, 6.0], [9.0, 4.0]]])).detach()
    tensor([[[-1.3720,  0.3430],
             [ 1.3720, -0.3430]]])
    """

    __init__ = _constructor(nn.GroupNorm)
    __constants__ = [*nn.GroupNorm.__constants__, *_OPTIONS]  # noqa: RUF012

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        out: Tensor | None = None,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript skips this block.
            symbol: object = input
            if isinstance(symbol, Proxy):
                leaf: Tensor = self._leaf(
                    symbol,
                    activation,
                    negative_slope,
                    residual=residual,
                    mask=mask,
                    lengths=lengths,
                    out=out,
                )
                return leaf
        if activation is None:
            activation, negative_slope = self.activation, self.negative_slope
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # A script may run where momentnorm is not installed: give it the standard operators.
            return standard_group_norm(
                input,
                self.num_groups,
                self.weight,
                self.bias,
                self.eps,
                activation,
                negative_slope,
                residual,
                mask,
                lengths,
                self.inplace,
                out,
            )
        return functional.group_norm(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            mask=mask,
            lengths=lengths,
            inplace=self.inplace,
            out=out,
        )
