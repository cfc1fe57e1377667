"""Masks: statistics of the valid elements alone, padding that holds 0 and matters to nobody."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import momentnorm
from momentnorm import use_backend
from momentnorm.functional import instance_norm
from support.layouts import LAYOUTS
from support.tolerances import GRADIENT, OUTPUT, assert_within

# torch itself scripts some of its rules when forward mode is first used.
deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def _mask_of(lengths, spatial):
    """(N, 1, *S) from (N, D), by hand."""
    mask = torch.zeros(len(lengths), 1, *spatial, dtype=torch.bool)
    for sample, extent in enumerate(lengths.tolist()):
        mask[(sample, 0, *(slice(size) for size in extent))] = True
    return mask


def _cropped(x, lengths, weight, bias, residual=None, activation=lambda values: values):
    """Each sample alone, without its padding, by torch's own operators; 0 around it."""
    planes = []
    for sample, extent in enumerate(lengths.tolist()):
        window = (slice(sample, sample + 1), slice(None), *(slice(size) for size in extent))
        y = torch.zeros_like(x[:1])
        if x[window].numel():
            valid = x[window]
            spatial = tuple(range(2, x.dim()))
            mean = valid.mean(spatial, keepdim=True)
            var = valid.var(spatial, correction=0, keepdim=True)
            per_channel = (1, -1) + (1,) * len(spatial)
            valid = (valid - mean) / torch.sqrt(var + 1e-5) * weight.view(per_channel)
            valid = valid + bias.view(per_channel)
            valid = activation(valid if residual is None else valid + residual[window])
            padding = [
                pad
                for size, whole in zip(reversed(extent), reversed(x.shape[2:]), strict=True)
                for pad in (0, whole - size)
            ]
            y = F.pad(valid, padding)
        planes.append(y)
    return torch.cat(planes)


#: rank: a shape, and the extents of its samples. A single valid element has a test of its own: its
#: gradient is the difference of two terms of size 1 / sqrt(eps).
SHAPES = {
    "1d": ((5, 3, 9), [[9], [4], [3], [0], [2]]),
    "2d": ((4, 3, 5, 6), [[5, 6], [3, 2], [1, 2], [0, 4]]),
    "3d": ((3, 2, 3, 4, 5), [[3, 4, 5], [2, 1, 3], [1, 2, 0]]),
}


def _operands(rank, dtype, layout="contiguous"):
    shape, lengths = SHAPES[rank]
    x = LAYOUTS[layout]((3 * torch.randn(shape, dtype=torch.float64) + 2).to(dtype))
    weight = (torch.rand(shape[1], dtype=torch.float64) + 0.5).to(dtype)
    bias = torch.randn(shape[1], dtype=torch.float64).to(dtype)
    residual = torch.randn(shape, dtype=torch.float64).to(dtype)
    gradient = torch.randn(shape, dtype=torch.float64).to(dtype)
    ours = [t.requires_grad_() for t in (x, weight, bias, residual)]
    twins = [t.detach().double().contiguous().requires_grad_() for t in ours]
    return ours, gradient, twins, torch.tensor(lengths)


# Values and gradients


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("tailed", [False, True])
def test_a_masked_batch_is_its_samples_cropped(backend, rank, dtype, layout, tailed):
    ours, gradient, twins, lengths = _operands(rank, dtype, layout)
    if not tailed:
        ours[3:], twins[3:] = [], []
    x, weight, bias, *residual = ours
    options = {"residual": residual[0], "activation": "silu"} if tailed else {}
    activation = F.silu if tailed else lambda values: values
    expected = _cropped(twins[0], lengths, *twins[1:], activation=activation)
    wanted = torch.autograd.grad(expected, twins, gradient.double())
    mask = _mask_of(lengths, x.shape[2:])
    for masking in ({"lengths": lengths}, {"mask": mask}, {"mask": mask.float()}):
        y = instance_norm(x, None, None, weight, bias, **options, **masking)
        assert y.dtype == dtype
        assert_within(y, expected, OUTPUT)
        assert not y[~mask.expand_as(y)].any()
        found = torch.autograd.grad(y, ours, gradient)
        for mine, right in zip(found, wanted, strict=True):
            assert_within(mine, right, GRADIENT)
        assert not found[0][~mask.expand_as(y)].any()
        if layout != "sliced":
            assert y.stride() == found[0].stride() == x.stride()


@settings(max_examples=60)
@given(data=st.data())
def test_any_mask_gives_each_plane_the_moments_of_its_valid_elements(data):
    shape = [data.draw(st.integers(1, 3)) for _ in "NC"] + [data.draw(st.integers(2, 4))] * 2
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    share = data.draw(st.floats(0, 1))
    x, mask = torch.randn(shape, dtype=torch.float64), torch.rand(shape[0], 1, *shape[2:]) < share
    offset = data.draw(st.sampled_from([0.0, 100.0]))
    with use_backend(data.draw(st.sampled_from(["cpu", "stand_in", "reference"]))):
        y = instance_norm(x + offset, mask=mask)
    for sample in range(shape[0]):
        for channel in range(shape[1]):
            valid = mask[sample, 0]
            plane = (x + offset)[sample, channel][valid]
            centred = plane - plane.mean()
            expected = centred / torch.sqrt(centred.square().mean() + 1e-5)
            torch.testing.assert_close(y[sample, channel][valid], expected, rtol=1e-7, atol=1e-7)
            assert not y[sample, channel][~valid].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_full_mask_is_none(backend, dtype, layout):
    ours, gradient, twins, _ = _operands("2d", dtype, layout)
    mask = torch.ones(4, 1, 5, 6, dtype=torch.bool)
    results = []
    for operands, options in ((ours, {"mask": mask}), (ours, {}), (twins, {})):
        x, weight, bias, residual = operands
        y = instance_norm(x, None, None, weight, bias, residual=residual, **options)
        results.append([y, *torch.autograd.grad(y, operands, gradient.to(y.dtype))])
    for masked, plain, exact in zip(*results, strict=True):
        assert_within(masked, exact, GRADIENT)
        assert_within(plain, exact, GRADIENT)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("training", [True, False])
def test_what_the_padding_holds_does_not_matter(backend, bad, activation, training):
    ours, gradient, _, lengths = _operands("2d", torch.float32)
    padding = ~_mask_of(lengths, (5, 6)).expand(4, 3, 5, 6)
    results = []
    for value in (0.0, bad):
        leaves = [t.detach().clone() for t in ours]
        for index in (0, 3):
            leaves[index][padding] = value
        x, weight, bias, residual = [t.requires_grad_() for t in leaves]
        stats = [torch.full((3,), 0.5), torch.full((3,), 2.0)]
        y = instance_norm(
            x,
            *stats,
            weight,
            bias,
            training,
            residual=residual,
            activation=activation,
            lengths=lengths,
        )
        noise = gradient.clone()
        results.append([y, *torch.autograd.grad(y, leaves, noise), *stats])
    for clean, dirty in zip(*results, strict=True):
        assert dirty.isfinite().all()
        assert torch.equal(clean, dirty)


def test_what_is_no_number_among_the_valid_poisons_its_own_plane_alone(backend):
    clean = torch.randn(2, 3, 6)
    lengths = torch.tensor([4, 5])
    x = clean.clone()
    x[1, 2, 0] = torch.nan
    y, expected = (instance_norm(t, lengths=lengths) for t in (x, clean))
    assert y[1, 2, :5].isnan().all()
    assert y[1, 2, 5] == 0
    y[1, 2] = expected[1, 2]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e5])
@pytest.mark.parametrize("valid", [2, 50, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_valid_elements_far_from_zero_lose_no_digits(backend, offset, valid, dtype):
    x = (offset + torch.randn(2, 3, 4096, dtype=torch.float64)).to(dtype)
    y = instance_norm(x, lengths=torch.tensor([valid, valid]))
    exact = instance_norm(x[..., :valid].double().contiguous())
    if dtype == torch.float64:  # a mean of 1e5 leaves that many fewer digits
        torch.testing.assert_close(y[..., :valid], exact, rtol=1e-9, atol=1e-9)
    else:
        assert_within(y[..., :valid].contiguous(), exact, OUTPUT)


def test_one_valid_element_gives_the_bias_and_none_zero(backend):
    x, bias = torch.randn(2, 3, 5, requires_grad=True), torch.tensor([0.25, -1.0, 2.0])
    for eps in (1e-5, 0.0):
        y = instance_norm(x, bias=bias, eps=eps, lengths=torch.tensor([1, 0]))
        assert torch.equal(y[0, :, 0], bias)
        assert not y[1].any()
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert dx.abs().max() <= 1e-4  # a difference of two terms of size 1 / sqrt(eps)
        assert not dx[1].any()


def test_a_batch_without_valid_elements(backend):
    x, mean, var = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3), torch.rand(3)
    before = mean.clone(), var.clone()
    weight = torch.rand(3, requires_grad=True)
    y = instance_norm(x, mean, var, weight, mask=torch.zeros(2, 1, 4))
    assert not y.any()
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), (x, weight)))
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_inputs(backend, shape):
    x = torch.empty(shape, requires_grad=True)
    y = instance_norm(x, mask=torch.ones(shape[0], 1, shape[2]))
    assert y.shape == shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


# Running statistics


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("rank", SHAPES)
def test_running_statistics_are_of_the_valid_elements(backend, rank, momentum):
    (x, *_), _, _, lengths = _operands(rank, torch.float64)
    lengths[1] = 1
    channels = x.shape[1]
    mean, var = torch.zeros(channels).double(), torch.ones(channels).double()
    instance_norm(x, mean, var, momentum=momentum, lengths=lengths)
    means, variances = [], []
    for sample, extent in enumerate(lengths.tolist()):
        valid = x.detach()[(sample, slice(None), *(slice(size) for size in extent))].flatten(1)
        if valid.numel():
            means.append(valid.mean(1))
            # one element has no unbiased variance: it counts as 0
            variances.append(valid.var(1) if valid.shape[1] > 1 else torch.zeros(channels).double())
    expected = [torch.stack(values).mean(0) for values in (means, variances)]
    torch.testing.assert_close(mean, momentum * expected[0])
    torch.testing.assert_close(var, 1 - momentum + momentum * expected[1])


def test_running_statistics_normalize_in_eval(backend):
    ours, gradient, twins, lengths = _operands("2d", torch.float32)
    mean, var = torch.randn(3), torch.rand(3) + 0.5
    valid = _mask_of(lengths, (5, 6))
    results = []
    for (x, weight, bias, residual), options in ((ours, {"lengths": lengths}), (twins, {})):
        stats = mean.to(x.dtype), var.to(x.dtype)
        y = instance_norm(x, *stats, weight, bias, False, residual=residual, **options)
        if not options:
            y = y.masked_fill(~valid, 0)
        operands = (x, weight, bias, residual)
        results.append([y, *torch.autograd.grad(y, operands, gradient.to(y.dtype))])
    assert_within(results[0][0], results[1][0], OUTPUT)
    for mine, right in zip(results[0][1:], results[1][1:], strict=True):
        assert_within(mine, right, GRADIENT)


# Derivatives and transforms


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
    """A plain subclass: torch carries its type through functions."""


def test_tensor_subclasses(backend):
    x, mask = torch.randn(2, 3, 5), torch.rand(2, 1, 5) > 0.3
    y = instance_norm(x.as_subclass(_Celsius), mask=mask)
    assert type(y) is _Celsius
    torch.testing.assert_close(y.as_subclass(torch.Tensor), instance_norm(x, mask=mask))


# Graphs


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
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's own checks of sizes
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("by", ["mask", "lengths"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_graphs_that_leave_the_process(backend, training, by, dtype):
    layer = _layer(training, activation="tanh").to(dtype)
    x, residual = torch.randn(2, 3, 3, 5, 6).to(dtype)
    lengths = torch.tensor([[5, 6], [2, 3], [0, 6]])
    padding = ~_mask_of(lengths, (5, 6))
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
        if name == "trace":  # the trace itself has moved them
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


# In place, into out, unbatched


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
    (x, _, _, residual), _, _, lengths = _operands(rank, torch.float32)
    layer = getattr(momentnorm, f"InstanceNorm{rank}")(x.shape[1], activation="tanh")
    mask = _mask_of(lengths, x.shape[2:])
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


# Bad calls


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
