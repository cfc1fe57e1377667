"""By name: the layer of each name, and calls as in the factories of other libraries."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import get_norm_layer, register_norm_layer
from momentnorm.layers import by_name

NAMES = set(by_name._REGISTRY)

INPUTS = {1: (4, 4, 6), 2: (4, 4, 5, 6), 3: (4, 4, 2, 3, 4)}

#: Layer of 4 channels that each name and number of dimensions makes.
LAYERS = {
    **{
        (name, dimensions): getattr(momentnorm, f"{kind}{dimensions}d")(4)
        for name, kind in (("instance", "InstanceNorm"), ("batch", "BatchNorm"))
        for dimensions in (1, 2, 3)
    },
    **{("layer", dimensions): momentnorm.GroupNorm(1, 4) for dimensions in (1, 2, 3)},
    **{("local_response", dimensions): nn.LocalResponseNorm(5) for dimensions in (1, 2, 3)},
    **{("none", dimensions): nn.Identity() for dimensions in (1, 2, 3)},
    ("switchable", 1): momentnorm.SwitchableNorm1d(4),
    ("switchable", 2): momentnorm.SwitchableNorm2d(4),
    ("switchable", 3): momentnorm.SwitchableNorm3d(4),
    ("batch_instance", 2): momentnorm.BatchInstanceNorm2d(4),
    ("ibn", 2): momentnorm.IBN(4),
    ("contrast", 2): momentnorm.ContrastNorm2d(),
    ("filter_response", 2): momentnorm.FilterResponseNorm2d(4),
    ("evonorm_b0", 2): momentnorm.EvoNorm2dB0(4),
}


@pytest.fixture(autouse=True)
def _no_names_left(monkeypatch):
    monkeypatch.setattr(by_name, "_REGISTRY", dict(by_name._REGISTRY))


@pytest.mark.parametrize(("name", "dimensions"), LAYERS)
def test_what_a_name_makes(name, dimensions):
    layer, expected = get_norm_layer(name, dimensions=dimensions)(4), LAYERS[name, dimensions]
    assert type(layer) is type(expected)
    assert repr(layer) == repr(expected)
    shape = (4, 4) if (name, dimensions) == ("switchable", 1) else INPUTS[dimensions]
    x = torch.rand(shape)
    torch.testing.assert_close(layer(x), expected(x))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_row_names_the_option_of_groups_and_takes_vectors_as_it_says(name):
    norm = by_name.norm_named(name.upper())
    options = {
        name for layer in norm.layers.values() for name in inspect.signature(layer).parameters
    }
    assert options & {"groups", "num_groups"} == ({norm.groups} - {""})
    if norm.vectors:
        groups = {norm.groups: 2} if norm.groups else {}
        x = torch.randn(4, 4)
        assert get_norm_layer(name, dimensions=1, **groups)(4)(x).shape == x.shape


def test_groups_that_do_not_divide_the_channels_name_the_divisors():
    by_name.check_groups(3, 6)
    for groups in (0, 4):
        with pytest.raises(
            ValueError, match=f"{groups} groups do not divide 6 channels: .* 1, 2, 3, 6"
        ):
            by_name.check_groups(groups, 6)


def test_every_name_is_tried_here():
    tried = {name for name, _ in LAYERS} | {"group", "evonorm_s0"}  # other tests have these two
    assert tried == NAMES


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_norms_of_groups_have_32_groups_or_what_is_asked_for(dimensions):
    assert get_norm_layer("group", dimensions=dimensions)(64).num_groups == 32
    layer = get_norm_layer("group", dimensions=dimensions, num_groups=2, eps=1e-3, affine=False)(4)
    assert repr(layer) == repr(momentnorm.GroupNorm(2, 4, eps=1e-3, affine=False))
    x = torch.randn(INPUTS[dimensions])
    torch.testing.assert_close(layer(x), nn.GroupNorm(2, 4, 1e-3, False)(x))
    if dimensions == 2:
        evonorm = get_norm_layer("evonorm_s0", groups=2)(4)
        assert torch.equal(evonorm(x), momentnorm.EvoNorm2dS0(4, groups=2)(x))


def test_names_in_any_case_and_pairs_with_options():
    for name in (
        ("GROUP", {"num_groups": 8}),
        ["group", {"num_groups": 8}],  # as a configuration file has it
        ("group", {"num_groups": 4}),
    ):
        options = {"num_groups": 8} if name[1]["num_groups"] == 4 else {}
        assert get_norm_layer(name, **options)(16).num_groups == 8
    given = {"num_groups": 8}
    get_norm_layer(("group", given), eps=1.0)
    assert given == {"num_groups": 8}


# Calls as in other libraries


class Pix2pixBlock(nn.Module):
    """Block of pix2pix, which asks the factory whether the convolution needs a bias."""

    def __init__(self, norm_layer):
        super().__init__()
        func = norm_layer.func if type(norm_layer) is functools.partial else norm_layer
        use_bias = isinstance(func, type) and issubclass(func, nn.InstanceNorm2d)
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=use_bias), norm_layer(8), nn.ReLU())


def test_as_the_factory_of_pix2pix():
    for name, options, theirs in (
        ("batch", {"affine": True, "track_running_stats": True}, nn.BatchNorm2d(8)),
        ("instance", {"affine": False, "track_running_stats": False}, nn.InstanceNorm2d(8)),
    ):
        block = Pix2pixBlock(get_norm_layer(name, **options))
        assert repr(block.model[1]) == repr(theirs)
        assert list(block.model[1].state_dict()) == list(theirs.state_dict())
        assert (block.model[0].bias is not None) == (name == "instance")
    x = torch.randn(2, 3)
    assert get_norm_layer("none")(8)(x) is x


def test_as_norm_layer_of_timm():
    norm_layer = get_norm_layer("batch", eps=1e-3)
    assert isinstance(
        norm_layer, functools.partial
    )  # timm accepts a name, type, function or partial
    assert norm_layer(8).eps == 1e-3
    assert norm_layer(8, eps=1e-6).eps == 1e-6
    assert not functools.partial(norm_layer, affine=False)(8).affine
    assert get_norm_layer("none")(8, eps=1e-6, affine=False)(3) == 3
    assert get_norm_layer("group", num_groups=2)(8, affine=False).weight is None


def test_as_norm_of_monai():
    for norm in ("INSTANCE", ("instance", {"affine": True}), ("group", {"num_groups": 2})):
        layer = get_norm_layer(norm, dimensions=3)(4)
        x = torch.randn(INPUTS[3])
        assert layer(x).shape == x.shape
        assert len(list(layer.parameters())) == (0 if norm == "INSTANCE" else 2)


def test_pickles_and_copies():
    norm_layer = get_norm_layer("instance", affine=True, activation="relu")
    for twin in (pickle.loads(pickle.dumps(norm_layer)), copy.deepcopy(norm_layer)):
        assert repr(twin(4)) == repr(norm_layer(4))


# Errors


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("instanse", {}, ValueError, r"named 'instanse': did you mean 'instance'\? The names are "),
        ("zzz", {}, ValueError, "named 'zzz': The names are instance, batch, layer, group"),
        ("ibn", {"dimensions": 3}, ValueError, "'ibn' has no layer for dimensions=3: it has one"),
        ("batch", {"dimensions": 4}, ValueError, "for dimensions=4: it has one for 1 or 2 or 3"),
        ("group", {"dimensions": 0}, ValueError, "for dimensions=0: it has one for 1 or 2 or 3"),
        ("group", {"groups": 2}, TypeError, "no option 'groups': its options are num_groups, eps"),
        ("layer", {"num_groups": 2}, TypeError, "no option 'num_groups': its options are eps"),
        ("instance", {"num_features": 2}, TypeError, "'num_features': its options are eps, mom"),
        (("batch", {"afine": 1}), {}, TypeError, "no option 'afine': its options are eps"),
        ("ibn", {"eps": 1}, TypeError, "no option 'eps': its options are ratio"),
        ("batch", {"activation": "rely"}, ValueError, "unknown activation 'rely'"),
        (("group", 8), {}, TypeError, "expected a name, or a pair of a name and its options"),
        (None, {}, TypeError, "expected a name"),
        (nn.BatchNorm2d, {}, TypeError, "expected a name"),
    ],
)
def test_errors_come_at_once(name, options, error, message):
    with pytest.raises(error, match=message):
        get_norm_layer(name, **options)


# Names of your own


def test_a_class_or_function_of_ones_own():
    @register_norm_layer("Double")
    class Double(nn.Module):
        def __init__(self, num_features, times=2):
            super().__init__()
            self.size = times * num_features

    assert isinstance(Double, type)  # the decorator returns the class
    assert get_norm_layer("double", dimensions=3)(4).size == 8
    assert get_norm_layer("DOUBLE", times=3)(4).size == 12
    with pytest.raises(TypeError, match="no option 'eps': its options are times"):
        get_norm_layer("double", eps=1)
    with pytest.raises(ValueError, match="did you mean 'double'"):
        get_norm_layer("duoble")
    only = lambda num_features: Double(num_features, 1)  # noqa: E731
    assert register_norm_layer("only2d", {2: only})
    assert get_norm_layer("only2d")(4).size == 4
    with pytest.raises(TypeError, match="its options are none"):
        get_norm_layer("only2d", times=2)
    with pytest.raises(ValueError, match="it has one for 2"):
        get_norm_layer("only2d", dimensions=1)


def test_a_name_that_is_taken_is_not_overwritten_unnoticed():
    with pytest.raises(ValueError, match=r"the name 'Batch' is taken, by .*overwrite=True"):
        register_norm_layer("Batch", nn.Identity)
    assert isinstance(get_norm_layer("batch")(4), momentnorm.BatchNorm2d)
    register_norm_layer("none", nn.Identity)  # again with an equal layer
    register_norm_layer("batch", nn.Identity, overwrite=True)
    assert isinstance(get_norm_layer("batch")(4), nn.Identity)
    with pytest.raises(ValueError, match="is taken"):
        register_norm_layer("instance")(nn.Identity)
