"""Checks of operands: errors that say which rule is broken, what arrived, and the fix.

The errors are those that torch's own functions raise, with a fix added.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends.operands import check_memory
from .context import transform_in_progress

HALF_DTYPES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF_DTYPES)


def check_operands(
    function: str,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    per_sample: bool = False,
) -> None:
    """Raise torch's error for operands that do not fit together, with the fix."""
    if input.dtype in DTYPES and input.layout is torch.strided:  # the usual case, checked fast
        like = (input.shape[1],), input.dtype, input.device
        if (
            (weight is None or _is_usual(weight, *like))
            and (bias is None or _is_usual(bias, *like))
            and (running_mean is None or _is_usual(running_mean, *like, True))
            and (running_var is None or _is_usual(running_var, *like, True))
        ):
            return
    if input.dtype not in DTYPES:
        raise NotImplementedError(
            f"{function} is not implemented for {input.dtype}: convert the input to "
            "float32, float64, bfloat16 or float16"
        )
    if input.layout is not torch.strided:
        raise RuntimeError(
            f"{function} takes a dense input, not {input.layout}: convert it with .to_dense()"
        )
    if weight is not None:
        _check_parameter("weight", weight, input, per_sample)
    if bias is not None:
        _check_parameter("bias", bias, input, per_sample)
        if weight is not None and weight.dtype != bias.dtype:
            raise RuntimeError(
                f"mixed dtypes: weight is {weight.dtype} and bias {bias.dtype}: "
                "convert one to the dtype of the other"
            )
    if running_mean is not None and running_var is not None:
        _check_statistic("running_mean", running_mean, input)
        _check_statistic("running_var", running_var, input)
        if running_mean.dtype != running_var.dtype:
            raise RuntimeError(
                f"mixed dtypes: running_mean is {running_mean.dtype} and running_var "
                f"{running_var.dtype}: convert one to the dtype of the other"
            )


def _is_usual(
    operand: Tensor,
    shape: tuple[int],
    dtype: torch.dtype,
    device: torch.device,
    statistic: bool = False,
) -> bool:
    """Whether an operand certainly fits. False means that the full checks have to decide."""
    return (
        isinstance(operand, Tensor)
        and operand.shape == shape
        and operand.dtype == dtype
        and operand.device == device
        and not (statistic and operand.requires_grad)
    )


def _check_statistics_memory(running_mean: Tensor, running_var: Tensor) -> None:
    """Raise if the memory of a running statistic was freed.

    Both are checked before anything is computed, so that no call updates one of them alone. The
    memory of the other operands is checked where a kernel gets its address.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.get_dynamic_layer_stack_depth():
        return
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        if type(statistic) is Tensor:
            check_memory(name, statistic)


def check_statistics_given(
    option: str, of_input: bool, running_mean: Tensor | None, running_var: Tensor | None
) -> None:
    """Raise for half a pair of running statistics, and for missing ones where they are used.

    ``of_input`` says that a call normalizes with statistics of its input, and updates the running
    ones. ``option`` is the name of its argument.
    """
    if of_input:
        if (running_mean is None) != (running_var is None):
            raise ValueError(
                "running_mean and running_var must either both be None or neither be None: "
                "pass both, or none"
            )
        if running_mean is not None and running_var is not None:
            _check_statistics_memory(running_mean, running_var)
    elif running_mean is None or running_var is None:
        raise RuntimeError(
            f"Expected running_mean and running_var to be defined when {option} is false: "
            f"pass both, or {option}=True"
        )
    elif forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(statistic).tangent is not None  # type: ignore[no-untyped-call]
        for statistic in (running_mean, running_var)
    ):
        raise RuntimeError(
            "batch_norm is not differentiable wrt running_mean and running_var, they cannot have "
            "forward grad defined: pass them without a tangent, as "
            "torch.autograd.forward_ad.unpack_dual(running_mean).primal is"
        )


def check_instance(input: Tensor, use_input_stats: bool) -> None:
    """Raise if the planes of an input have no variance, or if it has no channels."""
    if use_input_stats:
        if input.shape[2:].numel() == 1:
            raise ValueError(
                "Expected more than 1 spatial element when training, got input size "
                f"{input.shape}: one element has no variance; use a larger input, or "
                "track_running_stats=True and eval()"
            )
    elif input.dim() < 2:
        raise IndexError(
            f"expected input of shape (N, C, *S), got {tuple(input.shape)}: add the missing "
            "dimensions"
        )


def check_batch(input: Tensor, training: bool, eps: float) -> None:
    """Raise if the channels of a batch have no variance, or for an eps out of range."""
    shape = input.shape
    if len(shape) < 2:
        raise (IndexError if training else RuntimeError)(
            f"expected input of shape (N, C) or (N, C, *S), got {tuple(shape)}: add the missing "
            "dimensions"
        )
    if training and shape[0] * shape[2:].numel() == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {shape}: one "
            "value has no variance; use a larger batch or input, or eval()"
        )
    if eps < 0 or (training and eps == 0):
        sign, when = ("positive", " during training") if training else ("non-negative", "")
        raise ValueError(f"batch_norm eps must be {sign}{when}, but got {eps}: pass such as 1e-5")


def check_groups(input: Tensor, num_groups: int) -> None:
    """Raise if ``num_groups`` does not divide the channels, or groups have one value."""
    shape = input.shape
    if len(shape) < 2:
        raise RuntimeError(
            f"Expected at least 2 dimensions for input tensor but received {len(shape)}: "
            "group_norm takes (N, C, *S); add the missing dimensions"
        )
    if isinstance(num_groups, bool) or not hasattr(num_groups, "__index__"):
        raise TypeError(f"num_groups must be an int, not {type(num_groups).__name__}")
    # num_groups=0 raises ZeroDivisionError here, as in torch.
    if shape[0] * shape[1] // num_groups * shape[2:].numel() == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {shape} and "
            f"num_groups={num_groups}: one value has no variance; use fewer groups, or a larger "
            "input"
        )
    if num_groups < 0:
        raise RuntimeError(
            f"Expected num groups to be greater than 0, got {num_groups}: choose a divisor of the "
            f"{shape[1]} channels"
        )
    if shape[1] % num_groups:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got "
            f"{shape[1]} channels and num_groups={num_groups}: choose a divisor of {shape[1]}"
        )


def check_target(
    target: Tensor, input: Tensor, operands: tuple[Tensor | None, ...], inplace: bool
) -> None:
    """Raise if ``target``, the input itself or ``out``, cannot be written over."""
    name, option = ("the input", "inplace=True") if inplace else ("out", "out=")
    if not inplace:
        check_like_input("out", target, input)
    if torch.is_grad_enabled() and any(
        operand is not None and operand.requires_grad for operand in (target, *operands)
    ):
        raise RuntimeError(
            f"{option} writes over {name}, which autograd cannot record, and an operand requires "
            f"grad: call under torch.no_grad() or torch.inference_mode(), or without {option}"
        )
    expanded = any(
        stride == 0 and size > 1 for size, stride in zip(target.shape, target.stride(), strict=True)
    )
    if expanded:
        raise RuntimeError(
            f"{name} is expanded: several of its elements share one place in memory; call without "
            f"{option}, or pass a .clone()"
        )
    if not inplace and _overlaps_in_part(target, input):
        raise RuntimeError(
            "out and the input share some of their memory, but are not the same tensor: pass the "
            "input itself (inplace=True), or an out with memory of its own"
        )


def check_like_input(name: str, operand: Tensor, input: Tensor) -> None:
    """Raise if an operand differs from the input in shape, dtype or device."""
    if not isinstance(operand, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, not {type(operand).__name__}")
    for what in ("shape", "dtype", "device"):
        mine, inputs = getattr(operand, what), getattr(input, what)
        if mine != inputs:
            if what == "shape":
                mine, inputs = tuple(mine), tuple(inputs)
            raise RuntimeError(
                f"{name} should have the {what} of the input, {inputs}, not {mine}: nothing is "
                "broadcast or converted"
            )


def _overlaps_in_part(out: Tensor, input: Tensor) -> bool:
    if out is input or transform_in_progress(out, input) or torch.compiler.is_compiling():
        return False  # one tensor, or torch's own copy_ writes the result
    same = out.data_ptr() == input.data_ptr() and out.stride() == input.stride()
    return not same and memory_overlaps(out, input)


def memory_overlaps(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors overlap in memory, as far as their first and last bytes tell."""
    if other is None or one.device != other.device or not one.numel() or not other.numel():
        return False
    (start, end), (other_start, other_end) = _address_range(one), _address_range(other)
    return start < other_end and other_start < end


def _address_range(x: Tensor) -> tuple[int, int]:
    """Address of the first byte of x, and of the first byte after x."""
    steps = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    start = x.data_ptr()
    return start, start + (steps + 1) * x.element_size()


def _check_parameter(name: str, operand: Tensor, input: Tensor, per_sample: bool) -> None:
    _check_channels(name, operand, input, per_sample)
    dtype = input.dtype
    if operand.dtype != dtype and not (operand.dtype == torch.float32 and dtype in HALF_DTYPES):
        raise RuntimeError(
            f"mixed dtypes: {name} is {operand.dtype} and the input {dtype}; a parameter has the "
            "input's dtype, or float32 with a bfloat16 or float16 input: convert the layer with "
            ".to(input.dtype)"
        )


def _check_statistic(name: str, operand: Tensor, input: Tensor) -> None:
    _check_channels(name, operand, input)
    if operand.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} is a statistic, not a parameter, and no gradient flows into it: call "
            f"{name}.requires_grad_(False), or run under torch.no_grad()"
        )


def _check_channels(name: str, operand: Tensor, input: Tensor, per_sample: bool = False) -> None:
    if not isinstance(operand, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, not {type(operand).__name__}")
    samples, channels = input.shape[:2]
    if operand.shape != (channels,) and not (per_sample and operand.shape == (samples, channels)):
        or_more = f", or {(samples, channels)}, one row for each sample" if per_sample else ""
        raise RuntimeError(
            f"{name} should have shape ({channels},), one value for each channel of the "
            f"input {tuple(input.shape)}{or_more}, not {tuple(operand.shape)}"
        )
    if operand.device != input.device:
        raise RuntimeError(
            f"{name} is on {operand.device} and the input on {input.device}: "
            "move the layer with .to(input.device)"
        )


def number(name: str, value: Any) -> float:
    """Convert an argument to a float. Strings are refused, as in torch."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a number, not the string {value!r}")
    try:
        return float(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a number, not {type(value).__name__}: pass a float"
        ) from None
