"""Masks in derivatives, transforms, graphs and layers, and bad masks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import momentnorm
from momentnorm.functional import instance_norm
from support.mask_cases import SHAPES, make_operands, mask_of

# torch calls its own deprecated script compiler when forward mode is first used.
deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("training", [True, False])
@deprecated
def test_gradcheck(backend, activation, training):
    operands = [torch.randn(3, 2, 4), torch.rand(2), torch.randn(2), torch.randn(3, 2, 4)]
    stats = (None, None) if training else (torch.randn(2), torch.rand(2) + 0.5)
    lengths = torch.tensor([4, 2, 0])

    def function(x, weight, bias, residual):
        return instance_norm(
            x,
            *stats,
            weight,
            bias,
            training,
            residual=residual,
            activation=activation,
            lengths=lengths,
        )

    leaves = [t.double().requires_grad_() for t in operands]
    assert gradcheck(function, leaves, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(function, leaves, check_batched_grad=True)


@deprecated
def test_transforms(backend):
    x, lengths = torch.randn(4, 2, 3, 5).double(), torch.tensor([[5, 2], [0, 1], [3, 4], [5, 5]])
    expected = torch.stack([instance_norm(t, lengths=n) for t, n in zip(x, lengths, strict=True)])
    found = torch.func.vmap(lambda t, n: instance_norm(t, lengths=n))(x, lengths)
    torch.testing.assert_close(found, expected)
    one, valid = x[2].requires_grad_(), lengths[2]
    (wanted,) = torch.autograd.grad(instance_norm(one, lengths=valid).pow(3).sum(), one)
    derivative = torch.func.grad(lambda t: instance_norm(t, lengths=valid).pow(3).sum())
    torch.testing.assert_close(derivative(one.detach()), wanted)


class _Celsius(torch.Tensor):
    """Plain subclass, whose type torch carries through functions."""


def test_tensor_subclasses(backend):
    x, mask = torch.randn(2, 3, 5), torch.rand(2, 1, 5) > 0.3
    y = instance_norm(x.as_subclass(_Celsius), mask=mask)
    assert type(y) is _Celsius
    torch.testing.assert_close(y.as_subclass(torch.Tensor), instance_norm(x, mask=mask))


def _layer(training, **options):
    layer = momentnorm.InstanceNorm2d(3, affine=True, track_running_stats=True, **options)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5), layer.bias.uniform_(-1, 1)
    return layer.train(training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_compiled(backend, training, activation):
    torch._dynamo.reset()
    layer = _layer(training, activation=activation)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(3, 3, 5, 6), torch.tensor([[5, 6], [2, 3], [0, 6]])
    results = []
    for call in (layer, compiled):
        leaf = x.clone().requires_grad_()
        y = call(leaf, lengths=lengths)
        results.append([y, *torch.autograd.grad(y.pow(3).sum(), (leaf, *call.parameters()))])
        results[-1].extend(call.buffers())
    torch._dynamo.reset()
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


@deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # raised by torch's checks of sizes
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("by", ["mask", "lengths"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_graphs_that_leave_the_process(backend, training, by, dtype):
    layer = _layer(training, activation="tanh").to(dtype)
    x, residual = torch.randn(2, 3, 3, 5, 6).to(dtype)
    lengths = torch.tensor([[5, 6], [2, 3], [0, 6]])
    padding = ~mask_of(lengths, (5, 6))
    x[padding.expand_as(x)] = residual[padding.expand_as(x)] = torch.nan
    given = {"residual": residual, by: lengths if by == "lengths" else ~padding}
    leaves = x.requires_grad_(), residual.requires_grad_()
    twin = copy.deepcopy(layer)
    expected = twin(x, **given)
    wanted = torch.autograd.grad(expected.sum(), leaves)
    programs = {
        "export": torch.export.export(copy.deepcopy(layer), (x,), given).module(),
        "trace": torch.jit.trace(
            copy.deepcopy(layer), example_kwarg_inputs={"input": x, **given}, check_trace=False
        ),
    }
    for name, program in programs.items():
        if name == "trace":  # the trace has updated them
            program.load_state_dict(layer.state_dict())
        found = program(input=x, **given) if name == "trace" else program(x, **given)
        coarse = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(found, expected, **coarse)
        gradients = torch.autograd.grad(found.sum(), leaves)
        torch.testing.assert_close(gradients, wanted, rtol=0.05, atol=0.05)
        torch.testing.assert_close(
            dict(program.named_buffers()), dict(twin.named_buffers()), **coarse
        )
        assert not any(buffer.requires_grad for buffer in program.buffers())


def test_in_place_and_out(backend):
    x, lengths = torch.randn(3, 2, 6), torch.tensor([6, 3, 0])
    expected = instance_norm(x, lengths=lengths, activation="relu")
    out = torch.full_like(x, torch.nan)
    assert instance_norm(x, lengths=lengths, activation="relu", out=out) is out
    assert torch.equal(out, expected)
    assert instance_norm(x, lengths=lengths, activation="relu", inplace=True) is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("rank", SHAPES)
def test_unbatched_layers(backend, rank):
    (x, _, _, residual), _, _, lengths = make_operands(rank, torch.float32)
    layer = getattr(momentnorm, f"InstanceNorm{rank}")(x.shape[1], activation="tanh")
    mask = mask_of(lengths, x.shape[2:])
    expected = layer(x, residual, lengths=lengths)
    for sample in range(len(x)):
        of_sample = lengths[sample, 0] if rank == "1d" else lengths[sample]
        for masking in ({"lengths": of_sample}, {"mask": mask[sample]}):
            y = layer(x[sample], residual[sample], **masking)
            torch.testing.assert_close(y, expected[sample])


def test_lengths_of_sequences_need_no_second_dimension(backend):
    x = torch.randn(3, 2, 6)
    lengths = torch.tensor([6, 3, 1])
    for dtype in (torch.int64, torch.int32, torch.uint8):
        y = instance_norm(x, lengths=lengths.to(dtype))
        assert torch.equal(y, instance_norm(x, lengths=lengths[:, None]))


SEQUENCES = torch.zeros(2, 3, 4)


IMAGES = torch.zeros(2, 3, 4, 5)


BAD_CALLS = {
    "both": (SEQUENCES, {"mask": torch.ones(2, 1, 4), "lengths": torch.ones(2).int()}, "pass one"),
    "a channel's mask": (SEQUENCES, {"mask": torch.ones(2, 3, 4)}, r"\[2, 1, 4\].*\[2, 3, 4\]"),
    "no channel": (IMAGES, {"mask": torch.ones(2, 4, 5)}, r"shape \[2, 1, 4, 5\]"),
    "one sample": (SEQUENCES, {"mask": torch.ones(1, 1, 4)}, r"\[2, 1, 4\].*\[1, 1, 4\]"),
    "lengths of images": (IMAGES, {"lengths": torch.ones(2).int()}, r"shape \[2, 2\]"),
    "lengths of others": (SEQUENCES, {"lengths": torch.ones(3).int()}, r"shape \[2, 1\]"),
    "half elements": (SEQUENCES, {"lengths": torch.ones(2)}, "are integers, not torch.float32"),
    "true": (SEQUENCES, {"lengths": torch.ones(2).bool()}, "are integers, not torch.bool"),
    "negative": (SEQUENCES, {"lengths": torch.tensor([1, -1])}, r"between 0 and \(4,\).*-1"),
    "too long": (IMAGES, {"lengths": torch.tensor([[4, 5], [5, 4]])}, r"0 and \(4, 5\).*\[5, 4\]"),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_a_bad_mask_is_named(backend, call):
    x, options, message = BAD_CALLS[call]
    with pytest.raises(ValueError, match=message):
        instance_norm(x, **options)


@pytest.mark.parametrize("name", ["mask", "lengths"])
def test_masks_are_tensors_where_the_input_is(backend, name):
    with pytest.raises(TypeError, match=f"{name} must be a Tensor or None, not list"):
        instance_norm(SEQUENCES, **{name: [1, 2]})
    with pytest.raises(RuntimeError, match=f"{name} is on meta and the input on cpu: move"):
        instance_norm(SEQUENCES, **{name: torch.ones(2, 1, 4, device="meta").long()})
