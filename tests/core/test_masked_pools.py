"""Masks with pools of several planes: every valid element has the same weight."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import momentnorm
from momentnorm.functional import batch_norm, group_norm
from support.layouts import LAYOUTS
from support.tolerances import GRADIENT, OUTPUT, assert_within

LENGTHS = torch.tensor([[4, 5], [2, 3], [1, 5], [0, 2]])
SHAPE = (4, 6, 4, 5)


def _valid(lengths=LENGTHS, spatial=SHAPE[2:]):
    mask = torch.zeros(len(lengths), 1, *spatial, dtype=torch.bool)
    for sample, (height, width) in enumerate(lengths.tolist()):
        mask[sample, 0, :height, :width] = True
    return mask


def _batch(x, mask):
    """Batch normalization of the valid elements of each channel, concatenated."""
    columns = x.movedim(1, -1)[mask[:, 0]]  # (elements, C)
    var, mean = torch.var_mean(columns, 0, correction=0)
    return (x - mean.view(1, -1, 1, 1)) / (var + 1e-5).sqrt().view(1, -1, 1, 1)


def _groups(x, mask, groups):
    """Group normalization of each sample, cropped to its valid elements."""
    samples = []
    for sample, valid in zip(x, mask[:, 0], strict=True):
        parts = []
        for part in sample.chunk(groups):
            elements = part[:, valid]
            if elements.numel():
                var, mean = torch.var_mean(elements, correction=0)
                part = (part - mean) / (var + 1e-5).sqrt()
            parts.append(part)
        samples.append(torch.cat(parts))
    return torch.stack(samples)


NORMS = {
    "batch": (lambda x, *p, **k: batch_norm(x, None, None, *p, training=True, **k), _batch),
    "2 groups": (lambda x, *p, **k: group_norm(x, 2, *p, **k), lambda x, m: _groups(x, m, 2)),
    "6 groups": (lambda x, *p, **k: group_norm(x, 6, *p, **k), lambda x, m: _groups(x, m, 6)),
}

every_norm = pytest.mark.parametrize("norm", NORMS)


@every_norm
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tailed", [False, True])
def test_statistics_are_of_the_valid_elements(backend, norm, layout, dtype, tailed):
    ours, formula = NORMS[norm]
    mask = _valid()
    operands = [torch.randn(SHAPE) * 2 + 3, torch.rand(6) + 0.5, torch.randn(6), torch.randn(SHAPE)]
    operands = [values.to(dtype) for values in operands]
    operands[0] = LAYOUTS[layout](operands[0])
    leaves = [values.requires_grad_() for values in operands[: 4 if tailed else 3]]
    twins = [values.detach().double().contiguous().requires_grad_() for values in leaves]
    z = formula(twins[0], mask) * twins[1].view(-1, 1, 1) + twins[2].view(-1, 1, 1)
    if tailed:
        z = F.silu(z + twins[3])
    z = z.masked_fill(~mask, 0)
    gradient = torch.randn(SHAPE).to(dtype)
    wanted = torch.autograd.grad(z, twins, gradient.double())
    for masking in ({"mask": mask}, {"lengths": LENGTHS}):
        tail = {"residual": leaves[3], "activation": "silu"} if tailed else {}
        y = ours(*leaves[:3], **tail, **masking)
        assert_within(y, z, OUTPUT)
        assert not y[~mask.expand_as(y)].any()
        found = torch.autograd.grad(y, leaves, gradient)
        for mine, right in zip(found, wanted, strict=True):
            assert_within(mine, right, GRADIENT)


@every_norm
def test_what_the_padding_holds_does_not_matter(backend, norm):
    mask, x = _valid(), torch.randn(SHAPE)
    dirty = x.masked_fill(~mask, torch.nan)
    assert torch.equal(NORMS[norm][0](x, mask=mask), NORMS[norm][0](dirty, mask=mask))


@every_norm
def test_gradcheck(backend, norm):
    mask = _valid(torch.tensor([[2, 2], [1, 2], [0, 0]]), (2, 3))
    operands = [torch.randn(3, 6, 2, 3), torch.rand(6), torch.randn(6)]
    leaves = [values.double().requires_grad_() for values in operands]
    assert gradcheck(lambda *p: NORMS[norm][0](*p, mask=mask), leaves)
    assert gradgradcheck(lambda *p: NORMS[norm][0](*p, mask=mask), leaves)


@pytest.mark.parametrize("samples", [[True, False, True, True, False], [False] * 5])
def test_vectors_take_a_mask_of_samples(backend, samples):
    x, mask = torch.randn(5, 4), torch.tensor(samples)
    mean, var = torch.randn(4), torch.rand(4)
    before = mean.clone(), var.clone()
    y = batch_norm(x, mean, var, training=True, mask=mask[:, None])
    z = group_norm(x, 2, mask=mask[:, None])
    assert not y[~mask].any()
    assert not z[~mask].any()
    if mask.any():
        stats = before[0].double(), before[1].double()
        expected = F.batch_norm(x[mask].double(), *stats, training=True)
        assert_within(y[mask], expected, OUTPUT)
        assert_within(z[mask], F.group_norm(x[mask].double(), 2), OUTPUT)
        assert_within(mean, stats[0], OUTPUT)
        assert_within(var, stats[1], OUTPUT)
    else:
        assert torch.equal(mean, before[0])
        assert torch.equal(var, before[1])


def test_running_statistics_are_of_the_valid_elements(backend):
    x, mask = torch.randn(SHAPE) + 2, _valid()
    mean, var = torch.zeros(6), torch.ones(6)
    batch_norm(x, mean, var, training=True, momentum=0.25, mask=mask)
    columns = x.movedim(1, -1)[mask[:, 0]].double()
    assert_within(mean, 0.25 * columns.mean(0), OUTPUT)
    assert_within(var, 0.75 + 0.25 * columns.var(0), OUTPUT)
    y = batch_norm(x, mean, var, mask=mask)
    expected = F.batch_norm(x.double(), mean.double(), var.double()).masked_fill(~mask, 0)
    assert_within(y, expected, OUTPUT)


LAYERS = {
    "batch": lambda: momentnorm.BatchNorm2d(6, activation="relu"),
    "group": lambda: momentnorm.GroupNorm(3, 6, activation="relu"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # raised by torch's checks of sizes
def test_graphs(name, training):
    torch._dynamo.reset()
    layer = LAYERS[name]().train(training)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    x, residual = torch.randn(SHAPE), torch.randn(SHAPE)
    given = {"residual": residual, "lengths": LENGTHS}
    programs = {
        "compile": torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager"),
        "export": torch.export.export(copy.deepcopy(layer), (x,), given).module(),
    }
    twin = copy.deepcopy(layer)
    expected = twin(x, **given)
    for program in programs.values():
        torch.testing.assert_close(program(x, **given), expected, rtol=1e-4, atol=1e-5)
        mine, right = (dict(each.named_buffers()) for each in (program, twin))
        mine = {key.removeprefix("_orig_mod."): values for key, values in mine.items()}
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_a_mask_fits_the_vectors(backend):
    with pytest.raises(ValueError, match=r"mask should have shape \[5, 1\]"):
        group_norm(torch.randn(5, 4), 2, mask=torch.ones(5, 4))
    with pytest.raises(ValueError, match="lengths"):
        batch_norm(torch.randn(5, 4), None, None, training=True, lengths=torch.ones(5).long())


def test_in_place_and_out(backend):
    x = torch.randn(SHAPE)
    expected = group_norm(x, 3, lengths=LENGTHS)
    out = torch.empty_like(x)
    assert group_norm(x, 3, lengths=LENGTHS, out=out) is out
    assert torch.equal(out, expected)
    assert group_norm(x, 3, lengths=LENGTHS, inplace=True) is x
    assert torch.equal(x, expected)
