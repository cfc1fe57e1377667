"""Moments: parts merge to the moments of the whole, and empty sets change nothing."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from momentnorm import Moments, use_backend
from support.layouts import LAYOUTS
from support.tolerances import STATISTICS

numbers = st.floats(-1e6, 1e6, width=32)


def _of(values):
    return Moments.of(torch.tensor(values, dtype=torch.float64).view(1, 1, -1))


def _assert_equal(found, expected):
    assert found.count == expected.count
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-12, equal_nan=True)
    # the error of a variance is relative to the squares that were summed
    size = max(expected.mean.abs().max().item() ** 2, 1) if expected.count else 1
    torch.testing.assert_close(
        found.var, expected.var, rtol=1e-9, atol=1e-12 * size, equal_nan=True
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 2, 3, 4, 5), (2, 3, 1)])
def test_moments_of_a_feature_map(backend, shape, dtype, layout):
    x = LAYOUTS[layout]((2 * torch.randn(shape) + 3).to(dtype))
    moments = Moments.of(x)
    planes = x.double().flatten(2)
    assert moments.count == planes.shape[2]
    assert moments.mean.dtype == moments.var.dtype == torch.float64
    tolerance = STATISTICS[dtype]
    torch.testing.assert_close(moments.mean, planes.mean(2), rtol=0, atol=10 * tolerance)
    torch.testing.assert_close(
        moments.var, planes.var(2, correction=0), rtol=tolerance, atol=tolerance
    )


def test_moments_carry_no_gradient(backend):
    x = torch.randn(1, 2, 3, requires_grad=True)
    assert not Moments.of(x).mean.requires_grad
    found = torch.func.vmap(lambda t: Moments.of(t).var)(x.detach()[None])
    torch.testing.assert_close(found[0], Moments.of(x).var)


@given(st.lists(st.lists(numbers, max_size=6), min_size=1, max_size=6))
def test_any_split_merges_to_the_whole(parts):
    with use_backend("reference"):
        merged = _of(parts[0])
        for part in parts[1:]:
            merged = merged + _of(part)
        _assert_equal(merged, _of([number for part in parts for number in part]))


@given(*[st.lists(numbers, max_size=6)] * 3)
def test_merging_is_commutative_and_associative(a, b, c):
    with use_backend("reference"):
        a, b, c = _of(a), _of(b), _of(c)
        _assert_equal(a + b, b + a)
        _assert_equal((a + b) + c, a + (b + c))


def test_tiles_of_an_image(backend):
    x = 50 + torch.randn(2, 3, 40, 40)
    tiles = [Moments.of(part) for row in x.split(13, 2) for part in row.split([7, 30, 3], 3)]
    merged = sum(tiles[1:], start=tiles[0])
    whole = Moments.of(x)
    tolerance = STATISTICS[x.dtype]
    assert merged.count == 1600
    torch.testing.assert_close(merged.mean, whole.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(merged.var, whole.var, rtol=tolerance, atol=0)


def test_counts_of_each_place():
    # with masks and ragged batches the counts differ between planes
    one = Moments(
        torch.tensor([[0.0, 2.0]]), torch.tensor([[9.0, 1.0]]), torch.tensor([[9.0, 4.0]])
    )
    two = Moments(
        torch.tensor([[3.0, 2.0]]), torch.tensor([[5.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    )
    merged = one + two
    assert merged.count.tolist() == [[3.0, 4.0]]
    assert merged.mean.tolist() == [[5.0, 2.0]]
    assert merged.var.tolist() == [[1.0, 3.0]]  # (2 * 4 + 2 * 0) / 4 + 1


def test_nothing_has_no_moments_and_changes_nothing():
    nothing, something = _of([]), _of([1.0, 2.0, 6.0])
    assert nothing.count == 0
    assert nothing.var.isnan().all()
    assert (nothing + nothing).var.isnan().all()
    for merged in (nothing + something, something + nothing):
        assert torch.equal(merged.mean, something.mean)
        assert torch.equal(merged.var, something.var)


def test_saving_and_loading(tmp_path):
    moments = Moments.of(torch.randn(2, 3, 4))
    file = io.BytesIO()
    torch.save(moments.state_dict(), file)
    file.seek(0)
    loaded = Moments.from_state_dict(torch.load(file, weights_only=True))
    for name in ("count", "mean", "var"):
        assert torch.equal(getattr(loaded, name), getattr(moments, name))


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match=r"\(N, C, \*S\)"):
        Moments.of(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"missing: \['count', 'var'\]"):
        Moments.from_state_dict({"mean": torch.zeros(1)})
