"""Classes of our layers: signatures, inheritance, state, pickles, and models with them."""

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
from momentnorm import functional
from support.pairs import BATCH_NAMES, CLASSES, NAMES, SHAPES, pair

#: Arguments that torch's functions do not have. All are by keyword, and off by default.
OPTIONS = {
    "activation": None,
    "inplace": False,
    "residual": None,
    "mask": None,
    "lengths": None,
    "out": None,
}


def _shared(ours):
    """Parameters that torch's function has too."""
    parameters = inspect.signature(ours).parameters.values()
    for parameter in parameters:
        if parameter.name in OPTIONS:
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert parameter.default == OPTIONS[parameter.name]
    return [parameter for parameter in parameters if parameter.name not in OPTIONS]


@pytest.mark.parametrize("name", CLASSES)
def test_signature_is_torchs(name):
    ours, theirs = getattr(momentnorm, name), getattr(nn, name)
    assert _shared(ours) == list(inspect.signature(theirs).parameters.values())
    layer, reference = ours(*CLASSES[name]), theirs(*CLASSES[name])
    assert repr(layer) == repr(reference)
    for attribute in vars(reference):
        if attribute[0] != "_":
            assert getattr(layer, attribute) == getattr(reference, attribute)


@pytest.mark.parametrize("name", ["instance_norm", "batch_norm", "group_norm"])
def test_functional_signature_is_torchs(name):
    theirs = inspect.signature(getattr(F, name)).parameters.values()
    for mine, right in zip(_shared(getattr(functional, name)), theirs, strict=True):
        assert (mine.name, mine.default, mine.kind) == (right.name, right.default, right.kind)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "LocalResponseNorm"])
def test_what_is_no_policy_on_planes_is_torchs_own(name):
    assert getattr(momentnorm, name) is getattr(nn, name)
    function = {"RMSNorm": "rms_norm", "LayerNorm": "layer_norm"}.get(name, "local_response_norm")
    assert getattr(functional, function) is getattr(F, function)


def test_everything_public_is_listed():
    for module in (momentnorm, functional):
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)
    assert set(CLASSES) <= set(momentnorm.__all__)


@pytest.mark.skipif(
    "bias" not in inspect.signature(nn.InstanceNorm2d).parameters, reason="this torch has no bias="
)
@pytest.mark.parametrize("name", ["InstanceNorm2d", "BatchNorm2d", "GroupNorm"])
def test_affine_without_bias_has_a_weight_alone(backend, name):
    ours, theirs = pair(name, *CLASSES[name], affine=True, bias=False)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [key for key, _ in ours.named_parameters()] == ["weight"]
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_subclasses(name):
    assert issubclass(getattr(momentnorm, name), getattr(nn, name))
    assert getattr(momentnorm, name)._version == getattr(nn, name)._version


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", ["InstanceNorm2d", "BatchNorm2d", "GroupNorm"])
def test_state_dict_goes_both_ways(backend, name, affine, tracking):
    options = {} if name == "GroupNorm" else {"track_running_stats": tracking}
    ours, theirs = pair(name, *CLASSES[name], affine=affine, **options)
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


@pytest.mark.parametrize("name", [*NAMES, *BATCH_NAMES, "GroupNorm"])
def test_pickles_and_copies(backend, name):
    options = {} if name == "GroupNorm" else {"track_running_stats": True}
    ours, theirs = pair(name, *CLASSES[name], affine=True, **options)
    x = torch.randn(SHAPES.get(name[-2:], (3, 4, 5, 6)))
    ours(x), theirs(x)
    ours.eval(), theirs.eval()
    for twin in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), copy.copy(ours)):
        assert type(twin) is type(ours)
        assert torch.equal(twin(x), ours(x))
    theirs.__class__ = type(ours)  # a layer that torch's constructor made
    torch.testing.assert_close(pickle.loads(pickle.dumps(theirs))(x), ours(x))


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


def test_batch_norm_converts_to_sync_batch_norm_and_folds_into_a_convolution(backend):
    convolution, norm = nn.Conv2d(3, 4, 3), momentnorm.BatchNorm2d(4)
    x = torch.randn(2, 3, 6, 6)
    norm(convolution(x))
    folded = nn.utils.fuse_conv_bn_eval(convolution.eval(), norm.eval())
    torch.testing.assert_close(folded(x), norm(convolution(x)), rtol=1e-4, atol=1e-5)
    (converted,) = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))
    assert type(converted) is nn.SyncBatchNorm
    for name, value in norm.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value)


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
