"""Outputs that are written in place or into out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from momentnorm.functional import instance_norm
from support.layouts import LAYOUTS
from support.tail_cases import (
    DTYPES,
    STATS,
    by_fusion,
    in_both_modes,
    make_operands,
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@in_both_modes
def test_in_place_and_out_give_the_same_bits(backend, layout, dtype, training):
    stats = STATS[training]()
    ours, *_ = make_operands(dtype, layout)
    with torch.no_grad():
        weight, bias, residual = ours[1:]
        expected = by_fusion(ours[0], stats, weight, bias, residual, "silu", training)
        for out_layout in LAYOUTS:
            x = LAYOUTS[layout](ours[0].detach().clone())
            out = LAYOUTS[out_layout](
                torch.full_like(x, torch.nan, memory_format=torch.contiguous_format)
            )
            strides, version = out.stride(), out._version
            y = by_fusion(x, stats, weight, bias, residual, "silu", training, out=out)
            assert y is out
            assert out.stride() == strides
            assert out._version > version
            assert torch.equal(out, expected)
        version = x._version
        y = by_fusion(x, stats, weight, bias, residual, "silu", training, inplace=True)
        assert y is x
        assert x._version > version
        assert torch.equal(x, expected)


def test_out_may_be_the_input(backend):
    x = torch.randn(2, 3, 4)
    expected = instance_norm(x)
    assert instance_norm(x, out=x) is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("part", ["residual", "input"])
def test_a_residual_may_share_memory_with_what_is_written(backend, part):
    x, residual = torch.randn(2, 3, 40), torch.randn(2, 3, 40)
    if part == "input":
        residual = x
    expected = instance_norm(x) + residual
    y = instance_norm(x, residual=residual, out=residual)
    torch.testing.assert_close(y, expected)
    shifted = torch.randn(6 * 40 + 1)
    residual, out = shifted[:-1].view(2, 3, 40), shifted[1:].view(2, 3, 40)
    expected = instance_norm(x) + residual
    torch.testing.assert_close(instance_norm(x, residual=residual, out=out), expected)


@pytest.mark.parametrize("operand", ["x", "weight", "bias", "residual", "out"])
@pytest.mark.parametrize("option", ["inplace", "out"])
def test_where_autograd_would_record_writing_raises(backend, option, operand):
    named = {"x": torch.randn(2, 3, 4), "residual": torch.randn(2, 3, 4)}
    named.update(weight=torch.rand(3), bias=torch.rand(3), out=torch.empty(2, 3, 4))
    if operand == "out" and option == "inplace":
        operand = "x"
    named[operand].requires_grad_()
    if option == "inplace":
        named.update(out=None, inplace=True)
    before = named["x"].detach().clone()
    input = named.pop("x")
    with pytest.raises(RuntimeError, match=rf"{option}=.*torch\.no_grad\(\)"):
        instance_norm(input, **named)
    assert torch.equal(input, before)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            named["out"] = None if option == "inplace" else torch.empty(2, 3, 4)
            y = instance_norm(input.detach().clone(), **named)
            assert torch.isfinite(y).all()


def test_autograd_sees_that_a_tensor_was_written(backend):
    leaf = torch.randn(2, 3, 4, requires_grad=True)
    x = torch.randn(2, 3, 4)
    product = leaf * x  # autograd saves x
    instance_norm(x, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_an_expanded_tensor_is_not_written(backend):
    x = torch.randn(2, 1, 4).expand(2, 3, 4)
    with pytest.raises(RuntimeError, match=r"the input is expanded.*\.clone\(\)"):
        instance_norm(x, inplace=True)
    with pytest.raises(RuntimeError, match="out is expanded"):
        instance_norm(torch.randn(2, 3, 4), out=x)


def test_memory_shared_in_part_is_refused(backend):
    memory = torch.randn(2 * 3 * 4 + 1)
    x, out = memory[:-1].view(2, 3, 4), memory[1:].view(2, 3, 4)
    with pytest.raises(RuntimeError, match="share some of their memory"):
        instance_norm(x, out=out)
    square = torch.randn(2, 4, 4)
    with pytest.raises(RuntimeError, match="share some of their memory"):
        instance_norm(square, out=square.transpose(1, 2))
    halves = torch.randn(4, 3, 4)
    torch.testing.assert_close(
        instance_norm(halves[:2], out=halves[2:]), F.instance_norm(halves[:2])
    )


def test_inplace_excludes_out(backend):
    x = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="pass one"):
        instance_norm(x, inplace=True, out=x)


def test_inference_tensors_are_written_in_inference_mode_alone(backend):
    with torch.inference_mode():
        x = torch.randn(2, 3, 4)
        expected = instance_norm(x)
        assert torch.equal(instance_norm(x, inplace=True), expected)
    with pytest.raises(RuntimeError, match=r"(?i)inference"):
        instance_norm(x, inplace=True)
