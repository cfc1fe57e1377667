"""Our layers as classes: signatures, inheritance, state, pickles, and models that hold them."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import momentnorm
from momentnorm.functional import instance_norm
from pairs import LAZY_NAMES, NAMES, SHAPES, pair

#: What torch's have not: all by keyword, and off by default.
OPTIONS = {
    "activation": None,
    "negative_slope": 0.01,
    "inplace": False,
    "residual": None,
    "mask": None,
    "lengths": None,
    "out": None,
}


def _shared(ours):
    """The parameters that torch's have too."""
    parameters = inspect.signature(ours).parameters.values()
    for parameter in parameters:
        if parameter.name in OPTIONS:
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert parameter.default == OPTIONS[parameter.name]
    return [parameter for parameter in parameters if parameter.name not in OPTIONS]


@pytest.mark.parametrize("name", NAMES + LAZY_NAMES)
def test_signature_is_torchs(name):
    ours, theirs = getattr(momentnorm, name), getattr(nn, name)
    assert _shared(ours) == list(inspect.signature(theirs).parameters.values())
    layer = ours() if name in LAZY_NAMES else ours(3)
    reference = theirs() if name in LAZY_NAMES else theirs(3)
    assert repr(layer) == repr(reference)
    for attribute in ("eps", "momentum", "affine", "track_running_stats", "num_features"):
        assert getattr(layer, attribute) == getattr(reference, attribute)


def test_functional_signature_is_torchs():
    theirs = inspect.signature(F.instance_norm).parameters.values()
    for mine, right in zip(_shared(instance_norm), theirs, strict=True):
        assert (mine.name, mine.default, mine.kind) == (right.name, right.default, right.kind)


@pytest.mark.skipif(
    "bias" not in inspect.signature(nn.InstanceNorm2d).parameters, reason="this torch has no bias="
)
def test_affine_without_bias_has_a_weight_alone(backend):
    ours, theirs = pair("InstanceNorm2d", 4, affine=True, bias=False)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"]
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", NAMES + LAZY_NAMES)
def test_classes_are_subclasses(name):
    assert issubclass(getattr(momentnorm, name), getattr(nn, name))
    assert getattr(momentnorm, name)._version == getattr(nn, name)._version == 2


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_state_dict_goes_both_ways(backend, affine, tracking):
    ours, theirs = pair("InstanceNorm2d", 4, affine=affine, track_running_stats=tracking)
    x = torch.randn(2, 4, 5, 5)
    ours(x)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    theirs.load_state_dict(ours.state_dict())
    for mine, right in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(mine, right)
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    theirs.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_a_state_dict_from_before_torch_0_4_is_refused_as_by_torch():
    old = {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}
    messages = []
    for layer in pair("InstanceNorm2d", 4):
        with pytest.raises(RuntimeError, match="Unexpected running stats") as raised:
            layer.load_state_dict(dict(old))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_a_whole_model_loads_and_agrees(backend):
    def model(norm):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            norm(8, affine=True),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 3, stride=2),
            norm(6, affine=True, track_running_stats=True),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv2d(6, 2, 1),
            norm(2),
        )

    theirs, ours = model(nn.InstanceNorm2d), model(momentnorm.InstanceNorm2d)
    ours.load_state_dict(theirs.state_dict())
    x, gradient = torch.randn(2, 3, 17, 15), torch.randn(2, 2, 8, 7)
    for training in (True, False):
        results = []
        for net in (ours.train(training), theirs.train(training)):
            net.zero_grad()
            y = net(x)
            y.backward(gradient)
            results.append([y, *(p.grad for p in net.parameters()), *net.buffers()])
        for mine, right in zip(*results, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_pickles_and_copies(backend, name):
    ours, _ = pair(name, 4, affine=True, track_running_stats=True)
    x = torch.randn(SHAPES[name[-2:]])
    ours(x)
    ours.eval()
    for twin in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), copy.copy(ours)):
        assert type(twin) is type(ours)
        assert torch.equal(twin(x), ours(x))


def test_code_that_looks_for_torchs_layers_finds_ours():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), momentnorm.InstanceNorm2d(4, affine=True))
    for module in model.modules():  # initialization code
        if isinstance(module, nn.InstanceNorm2d):
            nn.init.constant_(module.weight, 0.5)
    assert model[1].weight.unique().tolist() == [0.5]
    norms = (nn.modules.batchnorm._NormBase,)  # weight-decay filters
    assert [isinstance(module, norms) for module in model] == [False, True]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # BatchNorm alone
    assert type(converted[1]) is momentnorm.InstanceNorm2d


def test_no_operator_hides_a_mutation():
    operators = [
        schema for schema in torch._C._jit_get_all_schemas() if "momentnorm::" in schema.name
    ]
    assert operators
    for schema in operators:
        assert not any("running" in argument.name for argument in schema.arguments)
        assert not schema.is_mutable


def test_running_statistics_are_updated_by_visible_in_place_operators(backend):
    layer = momentnorm.InstanceNorm2d(4, track_running_stats=True)
    before = layer.running_mean._version, layer.running_var._version
    layer(torch.randn(2, 4, 3, 3))
    assert layer.running_mean._version > before[0]
    assert layer.running_var._version > before[1]


def test_importing_and_calling_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        momentnorm.InstanceNorm2d(4)(torch.randn(2, 4, 3, 3))
