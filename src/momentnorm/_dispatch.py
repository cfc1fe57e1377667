"""Which backend takes a call, and why; and the checks of a call's operands."""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .backends import ACTIVATIONS, cpu, reference, triton

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

HALF_DTYPES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF_DTYPES)

#: In the order in which they are asked.
BACKENDS: tuple[ModuleType, ...] = (cpu, triton, reference)


class Choice(NamedTuple):
    """A backend, and why it was chosen: what each backend before it said."""

    backend: ModuleType
    why: str


def _by_name(name: str) -> ModuleType:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise ValueError(f"no backend is named {name!r}: choose one of {known}")


#: The backend that ``MOMENTNORM_BACKEND`` names, for the whole process.
_DEFAULT: ModuleType | None = (
    _by_name(os.environ["MOMENTNORM_BACKEND"]) if os.environ.get("MOMENTNORM_BACKEND") else None
)

#: The backend that :func:`use_backend` names, in one thread or one asynchronous task.
_forced: ContextVar[ModuleType | None] = ContextVar("momentnorm backend", default=_DEFAULT)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Send every call inside the ``with`` to the backend of this name, whatever its operands.

    For tests, timings and explanations. Calls that the named backend does not take still go to the
    reference. ``MOMENTNORM_BACKEND`` in the environment does the same for the whole process.

    The choice is a context variable: it belongs to the thread, or the asynchronous task, that made
    it. Tasks that start inside inherit it. Threads that start inside do not (Python 3.14 can be
    told to: ``-X thread_inherit_context=1``); give them a copy of the context,
    ``Thread(target=contextvars.copy_context().run, args=(function,))``. Compiled code chooses when
    it runs, so it need not be compiled again inside.

    Raises:
        ValueError: no backend has this name.

    >>> import momentnorm
    >>> with momentnorm.use_backend("reference"):
    ...     y = momentnorm.InstanceNorm1d(2)(torch.zeros(1, 2, 3))
    """
    token = _forced.set(_by_name(name))
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> ModuleType | None:
    """The backend that calls go to whatever their operands, or None.

    Compilers cannot read a context variable, and must not: the operators in their graphs read it
    when they run.
    """
    return _DEFAULT if torch.compiler.is_compiling() else _forced.get()


def choose(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Choice:
    """The backend for normalizing x, (N, C, *S), and the reason."""
    if not x.numel():
        return Choice(reference, "an empty input needs no kernel")
    refusals: list[str] = []
    wanted = forced()
    for backend in BACKENDS if wanted is None else (wanted, reference):
        refusal = backend.refuses(x, weight, bias)
        if refusal is None:
            return Choice(backend, "; ".join(refusals) or "takes this call")
        refusals.append(f"{backend.name}: {refusal}")
    raise AssertionError("the reference takes every call")  # pragma: no cover


def transform_in_progress(*operands: Tensor | None) -> str | None:
    """Why this call must be made of torch's own operators, or None.

    Function transforms, dual numbers, tensor subclasses and dispatch modes rewrite or observe
    operators, and have to see ordinary ones; a lazily negated view is not what its memory says, and
    autograd's tensors of zeros have none.
    """
    # The depth, rather than the level: torch.compile knows its value.
    if torch._C._functorch.get_dynamic_layer_stack_depth():
        return "inside a torch.func transform"
    if forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    compiling = torch.compiler.is_compiling()  # the compiler's tensors are none of the below
    if not compiling and torch._C._len_torch_dispatch_stack():
        return "inside a torch dispatch mode"
    for operand in operands:
        if operand is None:
            continue
        if type(operand) is not Tensor and type(operand) is not Parameter:
            return f"an operand is a {type(operand).__name__}, not a plain tensor"
        if not compiling and (operand.is_neg() or operand._is_zerotensor()):
            return "an operand is a lazily negated view, or zeros without memory"
    return None


def leaves_the_process() -> bool:
    """Whether this is a graph that may run where momentnorm is not installed.

    It gets the standard operators.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_exporting()


def takes_torchs_functions(input: Tensor) -> bool:
    """Whether a call has to be made of torch's own functions.

    Graphs that leave the process get them, and so do oneDNN's tensors, which know no others.
    """
    return leaves_the_process() or input.layout is torch._mkldnn  # type: ignore[attr-defined]


def intercept_torch(*operands: Any) -> bool:
    """Whether an operand is a tensor whose type has a ``__torch_function__`` of its own.

    Such types, those of per-sample gradients among them, know torch's functions and not ours.
    """
    kinds = {type(operand) for operand in operands if isinstance(operand, Tensor)}
    return any(_intercepts(kind.__torch_function__) for kind in kinds)


def _intercepts(method: Any) -> bool:
    plain: Any = Tensor.__torch_function__
    disabled = torch._C._disabled_torch_function_impl
    return method is not disabled and getattr(method, "__func__", method) is not plain.__func__


def kernels_see(*gradients: Tensor) -> bool:
    """Whether gradients are ordinary tensors in eager mode, which a kernel can be given."""
    return (
        not torch.compiler.is_compiling()
        and not any(map(torch._C._functorch.is_legacy_batchedtensor, gradients))  # batched
        and transform_in_progress(*gradients) is None
    )


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
    """Raise what torch raises for operands that do not fit together, and name the fix."""
    if input.dtype in DTYPES and input.layout is torch.strided:  # the usual case, fast
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
    """Whether nothing is wrong with an operand for sure."""
    return (
        isinstance(operand, Tensor)
        and operand.shape == shape
        and operand.dtype == dtype
        and operand.device == device
        and not (statistic and operand.requires_grad)
    )


def check_statistics_given(
    option: str, of_input: bool, running_mean: Tensor | None, running_var: Tensor | None
) -> None:
    """Raise where one running statistic comes alone, or where needed ones cannot be used."""
    if of_input:
        if (running_mean is None) != (running_var is None):
            raise ValueError(
                "running_mean and running_var must either both be None or neither be None: "
                "pass both, or none"
            )
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
    """Raise where no instance of this input has statistics."""
    if use_input_stats:
        if input.shape[2:].numel() == 1:
            raise ValueError(
                "Expected more than 1 spatial element when training, got input size "
                f"{input.shape}: one element has no variance to divide by; use a larger input, or "
                "track_running_stats=True and eval()"
            )
    elif input.dim() < 2:
        raise IndexError(
            f"expected input of shape (N, C, *S), got {tuple(input.shape)}: add the missing "
            "dimensions"
        )


def check_batch(input: Tensor, training: bool, eps: float) -> None:
    """Raise where no channel of this batch has statistics, or eps cannot be divided by."""
    shape = input.shape
    if len(shape) < 2:
        raise (IndexError if training else RuntimeError)(
            f"expected input of shape (N, C) or (N, C, *S), got {tuple(shape)}: add the missing "
            "dimensions"
        )
    if training and shape[0] * shape[2:].numel() == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {shape}: one "
            "value has no variance to divide by; use a larger batch or input, or eval()"
        )
    if eps < 0 or (training and eps == 0):
        sign, when = ("positive", " during training") if training else ("non-negative", "")
        raise ValueError(f"batch_norm eps must be {sign}{when}, but got {eps}: pass such as 1e-5")


def check_groups(input: Tensor, num_groups: int) -> None:
    """Raise where the channels of this input are not so many groups, or groups of one value."""
    shape = input.shape
    if len(shape) < 2:
        raise RuntimeError(
            f"Expected at least 2 dimensions for input tensor but received {len(shape)}: "
            "group_norm takes (N, C, *S); add the missing dimensions"
        )
    if isinstance(num_groups, bool) or not hasattr(num_groups, "__index__"):
        raise TypeError(f"num_groups must be an int, not {type(num_groups).__name__}")
    # Python raises its own error, torch's too, where there is no group at all.
    if shape[0] * shape[1] // num_groups * shape[2:].numel() == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {shape} and "
            f"num_groups={num_groups}: one value has no variance to divide by; use fewer groups, "
            "or a larger input"
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


def check_activation(activation: str) -> None:
    """Raise where no such activation exists."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}, or None"
        )


def check_target(
    target: Tensor, input: Tensor, operands: tuple[Tensor | None, ...], inplace: bool
) -> None:
    """Raise where ``target``, the input itself or another tensor, cannot be written over."""
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
            f"{name} is expanded: several of its elements are one place in memory, and cannot be "
            f"written one by one; call without {option}, or give a .clone()"
        )
    if not inplace and _overlaps_in_part(target, input):
        raise RuntimeError(
            "out and the input share some of their memory, but are not the same tensor: pass the "
            "input itself (inplace=True), or an out of its own"
        )


def check_like_input(name: str, operand: Tensor, input: Tensor) -> None:
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
        return False  # the same tensor; or to be written by torch's own copy_
    same = out.data_ptr() == input.data_ptr() and out.stride() == input.stride()
    return not same and memory_overlaps(out, input)


def memory_overlaps(one: Tensor, other: Tensor | None) -> bool:
    """Whether the stretches of memory between their first and last elements meet."""
    if other is None or one.device != other.device or not one.numel() or not other.numel():
        return False
    (start, end), (other_start, other_end) = _stretch(one), _stretch(other)
    return start < other_end and other_start < end


def _stretch(x: Tensor) -> tuple[int, int]:
    """The addresses of the first byte of x and of the first one behind it."""
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
        or_more = f", or {(samples, channels)}, one for each of each sample" if per_sample else ""
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
    """``value`` as a float: torch takes whatever Python takes for one, but for strings."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a number, not the string {value!r}")
    try:
        return float(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a number, not {type(value).__name__}: pass a float"
        ) from None
