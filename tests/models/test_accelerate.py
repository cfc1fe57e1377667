"""accelerate and restore: what changes in a model, and everything that does not."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import momentnorm
from momentnorm import accelerate, functional, restore
from momentnorm.core import grid
from momentnorm.models import accelerate as accelerate_module
from momentnorm.models import classes
from support.models import MODELS, BasicBlock, cyclegan_generator, pix2pix_unet

deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")


#: Without a backend by name, layers are kept where there are no kernels.
pytestmark = pytest.mark.usefixtures("backend")


def small(norm=None):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True) if norm is None else norm,
        nn.ReLU(),
    )


def close(actual, expected):
    scale = max(tensor.abs().max().item() for tensor in expected)
    for mine, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-4 * scale)


def step(model, x):
    """An output and all gradients, in the model's mode and with the same dropout each time."""
    torch.manual_seed(1)
    y = model(x)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), parameters, allow_unused=True)]


def types(model):
    return [type(module) for module in model.modules()]


# Whole networks


@pytest.fixture(params=MODELS)
def network(request):
    build, shape, swapped, fused = MODELS[request.param]
    return build(), torch.randn(shape), swapped, fused


@pytest.mark.parametrize("training", [True, False])
def test_networks_compute_what_they_did(network, training):
    model, x, swapped, fused = network
    model.train(training)
    theirs = copy.deepcopy(model)
    report = accelerate(model)
    assert len(report.swapped) == swapped
    assert sum(bool(row.fused) for row in report.rows) == fused
    actual, expected = step(model, x), step(theirs, x)
    close(actual[:1], expected[:1])
    close(actual[1:], expected[1:])
    for mine, right in zip(model.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == list(theirs.state_dict())
    model.load_state_dict(theirs.state_dict())


def test_an_optimizer_from_before_trains_what_is_there_now(network):
    model, x, *_ = network
    theirs = copy.deepcopy(model)
    results = []
    for net in (model, theirs):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)
        if net is model:
            before = list(net.parameters())
            accelerate(net)
            assert all(mine is its for mine, its in zip(net.parameters(), before, strict=True))
        for seed in range(2):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        results.append([parameter.detach() for parameter in net.parameters()])
    close(*results)


def test_restore_gives_back_every_class(network):
    model, x, swapped, _ = network
    before, state = types(model), [dict(vars(module)) for module in model.modules()]
    expected = step(copy.deepcopy(model), x)
    accelerate(model)
    assert (types(model) != before) == (swapped > 0)
    assert len(restore(model).swapped) == swapped
    assert types(model) == before
    assert [dict(vars(module)) for module in model.modules()] == state
    for mine, right in zip(step(model, x), expected, strict=True):
        assert torch.equal(mine, right)
    assert not restore(model).rows


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_compute_the_same_and_can_be_restored(network, copied):
    model, x, swapped, _ = network
    before = types(model)
    accelerate(model)
    twin = copied(model)
    assert types(twin) == types(model)
    for mine, right in zip(step(twin.eval(), x), step(model.eval(), x), strict=True):
        assert torch.equal(mine, right)
    assert len(restore(twin).swapped) == swapped
    assert types(twin) == before


def test_twice_is_once(network):
    model, _, swapped, fused = network
    accelerate(model)
    before = types(model)
    again = accelerate(model)
    assert types(model) == before
    assert not again.swapped
    assert sum(row.why_not == "momentnorm's already" for row in again.rows) == swapped
    assert sum(bool(row.fused) for row in again.rows) == fused
    assert len(restore(model).swapped) == swapped


# What stays


def test_everything_but_the_class_stays():
    norm = nn.BatchNorm2d(4, momentum=None, eps=1e-3, dtype=torch.float64)
    seen = []
    norm.register_forward_pre_hook(lambda *args: seen.append("pre"))
    norm.register_forward_hook(lambda *args: seen.append("post"))
    norm.register_full_backward_hook(lambda *args: seen.append("backward"))
    norm.register_state_dict_post_hook(lambda *args: seen.append("state"))
    norm.weight.register_hook(lambda gradient: seen.append("weight"))
    norm.note, norm.weight.requires_grad = "mine", True
    norm.eval()
    model = nn.Sequential(norm, nn.ReLU()).eval()
    before = {**vars(norm)}
    held = [norm]
    accelerate(model)
    assert type(norm) is momentnorm.BatchNorm2d
    assert model[0] is held[0] is norm
    assert {name: value for name, value in vars(norm).items() if name != classes.MARK} == before
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    norm(x).sum().backward()
    norm.state_dict()
    assert seen == ["pre", "post", "weight", "backward", "state"]


def test_tied_parameters_and_shared_modules_stay_so():
    first, second = nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Conv2d(4, 4, 1), second, first)
    report = accelerate(model)
    assert [row.name for row in report.rows] == ["0", "2"]
    assert model[0] is model[3]
    assert model[0].weight is model[2].weight
    assert len(list(model.parameters())) == 5


class Fast(nn.BatchNorm2d):
    """A subclass that left the forward alone."""

    fast = True

    def __init__(self, num_features, label):
        super().__init__(num_features)
        self.label = label

    def _check_input_dim(self, input):
        if input.dim() != 4:
            raise ValueError("mine")

    def twice(self):
        return 2 * self.num_features


class FastSequential(nn.Sequential):
    def depth(self):
        return len(self)


@deprecated
def test_subclasses_that_left_the_forward_alone_become_subclasses_of_both():
    model = FastSequential(Fast(4, "a"), nn.ReLU())
    theirs = copy.deepcopy(model)
    (row,) = accelerate(model).rows
    assert row.after == f"{__name__}.Fast on momentnorm.BatchNorm2d"
    assert row.fused == "ReLU"
    assert isinstance(model[0], Fast)
    assert isinstance(model[0], momentnorm.BatchNorm2d)
    assert isinstance(model, FastSequential)
    assert model.depth() == 2
    assert (model[0].label, model[0].fast, model[0].twice()) == ("a", True, 8)
    assert repr(model) == repr(theirs)
    with pytest.raises(ValueError, match="mine"):
        model(torch.zeros(2, 4))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert types(twin) == types(model)
    x = torch.randn(2, 4, 5, 5)
    for net in (model, twin):
        close([net(x)], [theirs(x)])
    (row,) = accelerate(model).rows
    assert (row.why_not, row.fused) == ("momentnorm's already", "ReLU")
    restore(twin)
    assert types(twin) == types(theirs)


@pytest.mark.parametrize(
    ("change", "why_not"),
    [
        (lambda norm: setattr(norm, "activation", "relu"), "'activation' is a name of its own"),
        (lambda norm: norm.add_module("inplace", nn.ReLU()), "'inplace' is a name of its own"),
        (lambda norm: setattr(norm, "forward", norm.forward), "its forward was replaced"),
        (lambda norm: parametrizations.weight_norm(norm, dim=None), "it is parametrized"),
        (lambda norm: norm.to(torch.float8_e4m3fn), "no kernel: "),
    ],
    ids=["attribute", "submodule", "forward", "parametrization", "dtype"],
)
def test_what_would_change_is_kept(change, why_not, backend):
    if why_not == "no kernel: " and backend != "cpu":
        pytest.skip(f"{backend}, asked for by name, takes every dtype")
    norm = nn.InstanceNorm2d(4, affine=True)
    change(norm)
    before = type(norm)
    (row,) = accelerate(nn.Sequential(norm)).rows
    assert row.why_not.startswith(why_not)
    assert type(norm) is before


class OwnForward(nn.InstanceNorm2d):
    def forward(self, input):
        return super().forward(input) + 1


class OwnNorm(nn.InstanceNorm2d):
    def _apply_instance_norm(self, input):  # torch's forward calls this
        return super()._apply_instance_norm(input) + 1


class OwnReLU(nn.ReLU):
    pass


class OwnPickle(nn.BatchNorm2d):
    def __reduce__(self):
        return super().__reduce__()


@pytest.mark.parametrize(
    ("norm", "why_not"),
    [
        (OwnForward(4), "it has a forward of its own"),
        (OwnNorm(4), "'_apply_instance_norm' is a name of its own"),
        (OwnPickle(4), "'__reduce__' is a name of its own"),
        (nn.SyncBatchNorm(4), "its statistics are those of all processes"),
        (nn.LayerNorm(4), "momentnorm has torch's own"),
        (nn.RMSNorm(4), "momentnorm has torch's own"),
        (nn.LocalResponseNorm(4), "momentnorm has torch's own"),
        (momentnorm.InstanceNorm2d(4), "momentnorm's already"),
        (momentnorm.BatchInstanceNorm2d(4), "momentnorm's already"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_not_ours_to_swap_is_kept(norm, why_not):
    before = type(norm)
    (row,) = accelerate(nn.Sequential(norm)).kept
    assert row.why_not.startswith(why_not)
    assert row.before == row.after
    restore(nn.Sequential(norm))
    assert type(norm) is before


def test_a_parametrization_put_on_afterwards_is_to_be_taken_off_first():
    model = small(nn.BatchNorm2d(4))
    accelerate(model)
    parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    (row,) = restore(model).kept
    assert "parametrization" in row.why_not
    parametrize.remove_parametrizations(model[1], "weight")
    restore(model)
    assert types(model) == types(small(nn.BatchNorm2d(4)))


@deprecated
def test_scripts_are_kept():
    (row,) = accelerate(torch.jit.script(small())).rows
    assert row.why_not.startswith("scripted already")
    assert row.before == "scripted InstanceNorm2d"


def test_a_part_can_be_restored():
    model = nn.Sequential(small(), small())
    accelerate(model)
    restore(model[1])
    assert type(model[0][1]) is momentnorm.InstanceNorm2d
    assert types(model[1]) == types(small())


def test_a_lazy_layer_becomes_ours_when_it_knows_its_channels():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    assert accelerate(model).swapped
    with pytest.raises(ValueError, match="call the model once before"):
        accelerate(model, verify=torch.zeros(1))
    model(torch.randn(2, 3, 5, 5))
    assert type(model[1]) is momentnorm.BatchNorm2d
    restore(model)
    assert type(model[1]) is nn.BatchNorm2d


def test_a_norm_by_itself():
    norm = nn.InstanceNorm1d(3)
    (row,) = accelerate(norm).rows
    assert row.name == ""
    assert type(norm) is momentnorm.InstanceNorm1d


# Fusing, and what it must leave alone


class Counted:
    """Which activations reached our functions."""

    def __init__(self, monkeypatch):
        self.activations = []
        for name in ("instance_norm", "batch_norm", "group_norm"):
            monkeypatch.setattr(functional, name, self._counting(getattr(functional, name)))

    def _counting(self, function):
        def call(*args, **kwargs):
            self.activations.append(kwargs["activation"])
            return function(*args, **kwargs)

        return call

    def of(self, model, x):
        self.activations.clear()
        model(x)
        return self.activations


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.LeakyReLU(0.3),
        nn.LeakyReLU(0.3, inplace=True),
        nn.SiLU(inplace=True),
        nn.GELU(),
        nn.Tanh(),
        nn.Sigmoid(),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "norm",
    [nn.InstanceNorm2d(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)],
    ids=lambda n: n._get_name(),
)
def test_activations_are_fused(norm, activation, monkeypatch):
    counted = Counted(monkeypatch)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), copy.deepcopy(norm), activation)
    theirs = copy.deepcopy(model)
    (row,) = accelerate(model).rows
    assert row.fused == type(activation).__name__
    x = torch.randn(2, 3, 7, 7)
    assert len(counted.of(model, x)) == 1
    assert None not in counted.activations
    close(step(model, x), step(theirs, x))
    restore(model)
    accelerate(model, fuse=False)
    assert type(model) is nn.Sequential
    assert counted.of(model, x) == [None]


@pytest.mark.parametrize(
    "follower",
    [
        nn.GELU("tanh"),
        nn.ELU(),
        nn.Dropout(),
        nn.Identity(),
        nn.PReLU(),
        type("R", (nn.ReLU,), {})(),
    ],
    ids=str,
)
def test_other_followers_are_not(follower):
    model = small()
    model[2] = follower
    assert [row.fused for row in accelerate(model).rows] == [""]
    assert type(model) is nn.Sequential


def test_a_layer_that_has_an_activation_or_writes_in_place_does_no_other():
    for options in ({"activation": "tanh"}, {"inplace": True}):
        norm = momentnorm.InstanceNorm2d(4, **options)
        model = momentnorm.Sequential(norm, nn.Sigmoid())
        x = torch.randn(1, 4, 3, 3)
        with torch.no_grad():
            expected = torch.sigmoid(norm(x.clone()))
            seen = x.clone()
            assert torch.equal(model(seen), expected)
            assert torch.equal(seen, norm(x.clone())) == norm.inplace


def test_whoever_takes_the_norms_output_still_gets_it():
    model, theirs = small(), None
    theirs = copy.deepcopy(model).eval()
    accelerate(model.eval())
    x = torch.randn(2, 3, 6, 6)
    taps = []
    for net in (model, theirs):  # as perceptual losses do
        y, found = x, []
        for module in net:
            y = module(y)
            found.append(y.detach().clone())
        taps.append([*found, net[1](net[0](x)), net[:2](x), net[:3](x)])
    close(*taps)
    assert taps[0][1].min() < 0


def test_hooks_see_what_they_would_have_seen(monkeypatch):
    counted, x = Counted(monkeypatch), torch.randn(2, 3, 6, 6)
    for place in (1, 2):
        model = small()
        theirs = copy.deepcopy(model)
        accelerate(model)
        seen = []

        def keep(module, args, y, seen=seen):
            seen.append((*args, y))

        hook, _ = (net[place].register_forward_hook(keep) for net in (model, theirs))
        assert counted.of(model, x) == [None]
        theirs(x)
        close(*seen)
        hook.remove()
        assert counted.of(model, x) == ["relu"]
    model = small()
    accelerate(model)
    model[2].forward = lambda y: y + 1
    close([model(x)], [model[1](model[0](x)) + 1])
    with_hook = small()
    with_hook[2].register_full_backward_hook(lambda *args: None)
    assert [row.fused for row in accelerate(with_hook).rows] == [""]
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert counted.of(model, x) == [None]
    handle.remove()


def test_a_shared_activation_is_one_everywhere():
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.BatchNorm2d(3), relu, nn.Conv2d(3, 3, 1), relu, nn.BatchNorm2d(3))
    theirs = copy.deepcopy(model)
    assert [row.fused for row in accelerate(model).rows] == ["ReLU", ""]
    assert model[1] is model[3] is relu
    x = torch.randn(2, 3, 4, 4)
    close(step(model, x), step(theirs, x))


def test_a_relu_that_a_forward_calls_twice_is_not_fused():
    block = BasicBlock(4, 4)
    theirs = copy.deepcopy(block)
    assert [row.fused for row in accelerate(block).rows] == ["", ""]
    x = torch.randn(2, 4, 6, 6)
    close(step(block, x), step(theirs, x))


def test_a_norm_in_two_sequences_has_both_followers():
    norm = nn.InstanceNorm2d(4)
    model = nn.ModuleList([nn.Sequential(norm, nn.ReLU()), nn.Sequential(norm, nn.Tanh())])
    (row,) = accelerate(model).rows
    assert row.fused == "ReLU, Tanh"
    x = torch.randn(1, 4, 5, 5)
    close([net(x) for net in model], [F.relu(F.instance_norm(x)), F.instance_norm(x).tanh()])


class Doubled(nn.Sequential):
    def forward(self, input):
        return super().forward(super().forward(input))


def test_a_sequence_with_a_forward_of_its_own_is_kept():
    model = Doubled(nn.InstanceNorm2d(3), nn.ReLU())
    (row,) = accelerate(model).rows
    assert (row.swapped, row.fused) == (True, "")
    assert type(model) is Doubled


def test_conversions_keep_the_activation(monkeypatch):
    """Tools that replace or fold a norm know nothing of activations."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    accelerate(model)
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    assert expected.min() == 0
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(converted[1]) is nn.SyncBatchNorm
    close([converted(x)], [expected])
    model[0] = nn.utils.fuse_conv_bn_eval(model[0], model[1])
    model[1] = nn.Identity()
    close([model(x)], [expected])


# Graphs


@deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's check of the channels
@pytest.mark.parametrize("fuse", [True, False])
def test_traces_exports_and_symbolic_traces(fuse):
    model = small().eval()
    theirs = copy.deepcopy(model)
    accelerate(model, fuse=fuse)
    x = torch.randn(2, 3, 7, 7)
    graphs = [
        torch.jit.trace(model, x),
        torch.export.export(model, (x,)).module(),
        torch.fx.symbolic_trace(model),
    ]
    for graph in graphs:
        close([graph(x)], [theirs(x)])
    layers = [node.target for node in graphs[-1].graph.nodes if node.op == "call_module"]
    assert layers == ["0", "1", "2"]  # what tools look for patterns in


def test_compiled_models_are_compiled_again_with_ours():
    operators = []

    def keep(graph, inputs):
        operators.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    torch._dynamo.reset()
    model = small()
    compiled = torch.compile(model, backend=keep, fullgraph=True)
    x = torch.randn(2, 3, 7, 7)
    expected = compiled(x)
    (row,) = accelerate(compiled, verify=x).rows
    assert row.name == "_orig_mod.1"
    close([compiled(x)], [expected])
    assert len(operators) == 2
    assert not any("relu" in operator for operator in operators[1])  # in the norm's operator
    restore(compiled)
    assert torch.equal(compiled(x), expected)
    torch._dynamo.reset()


def test_functional_calls_and_transforms():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU())
    theirs = copy.deepcopy(model)
    accelerate(model)
    x = torch.randn(5, 2, 3, 6, 6)
    results = []
    for net in (model, theirs):
        parameters = dict(net.named_parameters())

        def loss(parameters, x, net=net):
            return torch.func.functional_call(net, parameters, (x,)).square().sum()

        results.append(list(torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x).values()))
    close(*results)


# The report


def test_the_report_is_data_and_a_table():
    report = accelerate(nn.Sequential(small(), nn.LayerNorm(4)))
    assert dataclasses.asdict(report)["rows"][0] == {
        "name": "0.1",
        "before": "torch.nn.InstanceNorm2d",
        "after": "momentnorm.InstanceNorm2d",
        "fused": "ReLU",
        "why_not": "",
        "replay": None,
    }
    header, first, second, summary = str(report).splitlines()
    assert header.split() == ["layer", "from", "to", "fused", "why", "not"]
    assert first.split()[:3] == ["0.1", "torch.nn.InstanceNorm2d", "momentnorm.InstanceNorm2d"]
    assert second.split(maxsplit=3) == [
        "1",
        "torch.nn.LayerNorm",
        "kept",
        "momentnorm has torch's own",
    ]
    assert summary == "1 of 2 layers swapped, 1 with the activation behind them"
    empty = accelerate(nn.Linear(2, 2))
    assert (empty.rows, str(empty)) == ((), "no normalization layers: nothing to do")


# Verification


def everything(model):
    return {
        "types": types(model),
        "tensors": [tensor.clone() for tensor in model.state_dict(keep_vars=True).values()],
        "grad": [parameter.grad for parameter in model.parameters()],
        "random": torch.get_rng_state(),
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
    }


@pytest.mark.parametrize("training", [True, False])
def test_verification_leaves_no_trace(network, training):
    model, x, swapped, _ = network
    model.train(training)
    model(x).sum().backward()
    unverified = copy.deepcopy(model)
    accelerate(unverified)
    before = everything(model)
    report = accelerate(model, verify=x)
    assert types(model) == types(unverified)
    after = everything(model)
    for name in ("tensors", "grad", "random"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert (after["training"], after["hooks"]) == (before["training"], before["hooks"])
    assert report.verification.right
    assert (report.verification.gradients is None) == (not training)
    assert report.verification.outputs < 1e-4
    assert sum(row.replay is not None for row in report.rows) == swapped
    assert all(row.replay.right for row in report.swapped)
    assert all(row.replay.torch_seconds > 0 for row in report.swapped)
    assert "faster" in str(report) or not swapped


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["cyclegan", "pix2pix", "resnet", "convnext"])
def test_other_dtypes_and_layouts_are_verified_too(name, dtype):
    build, shape, swapped, _ = MODELS[name]
    model = build().to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)
    report = accelerate(model, verify=x)
    assert sum(row.replay.right for row in report.swapped) == swapped
    assert report.verification.outputs <= report.verification.tolerance


def test_wrapped_models():
    model = nn.DataParallel(small())
    (row,) = accelerate(model, verify=torch.randn(2, 3, 6, 6)).rows
    assert row.name == "module.1"
    assert type(model.module[1]) is momentnorm.InstanceNorm2d


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x, *, scale):
        x.relu_()  # writes over what it is given
        return {"y": self.norm(x) * scale, "shape": x.shape}


def test_inputs_of_all_kinds():
    x = torch.randn(2, 4, 3, requires_grad=True)
    scale = torch.tensor(2.0)
    kept = x.detach().clone()
    report = accelerate(Keywords(), verify={"x": x, "scale": scale})
    assert report.verification.right
    assert torch.equal(x, kept)
    assert x.grad is None
    assert accelerate(nn.GroupNorm(2, 4), verify=(x,)).verification.right


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x).detach()


def test_outputs_without_gradients():
    assert accelerate(Detached(), verify=torch.randn(2, 3, 4, 4)).verification.gradients == 0


def _wrong(function, error):
    def call(*args, **kwargs):
        return function(*args, **kwargs) * (1 + error)

    return call


def test_a_layer_that_computes_something_else_is_named_and_everything_undone(monkeypatch):
    monkeypatch.setattr(functional, "group_norm", _wrong(functional.group_norm, 1e-2))
    model = nn.Sequential(small(), nn.GroupNorm(2, 4))
    before = everything(model)
    with pytest.raises(
        accelerate_module.VerificationError, match=r"^1 differs from torch's layer"
    ) as raised:
        accelerate(model, verify=torch.randn(2, 3, 6, 6))
    after = everything(model)
    assert after["types"] == before["types"]
    assert not any(classes.MARK in vars(module) for module in model.modules())
    torch.testing.assert_close(after["tensors"], before["tensors"], rtol=0, atol=0)
    right, wrong = raised.value.report.rows
    assert right.replay.right
    assert not wrong.replay.right
    assert wrong.replay.our_error > 1e-3


def test_wrong_gradients_alone_are_noticed(monkeypatch):
    class Skewed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.01

    right = functional.instance_norm
    monkeypatch.setattr(
        functional, "instance_norm", lambda x, *a, **k: right(Skewed.apply(x), *a, **k)
    )
    x = torch.randn(2, 3, 6, 6)
    with pytest.raises(accelerate_module.VerificationError, match="differs from torch's layer"):
        accelerate(small(), verify=x)
    assert accelerate(small().eval(), verify=x).verification.right


def test_a_rounding_at_the_kink_of_an_activation_is_no_error(monkeypatch):
    def rounded(x, *args, activation=None, **kwargs):
        y = right(x, *args, **kwargs) + 2e-5  # one of some 100,000 values changes its sign
        return y if activation is None else F.relu(y)

    right = functional.instance_norm
    monkeypatch.setattr(functional, "instance_norm", rounded)
    model = nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.ReLU())
    (row,) = accelerate(model, verify=torch.randn(4, 4, 256, 256)).rows
    assert row.replay.difference > 1e-6


def test_wrong_running_statistics_are_noticed(monkeypatch):
    right = grid.move_towards
    monkeypatch.setattr(
        grid, "move_towards", lambda running, batch, share: right(running, batch, share / 2)
    )
    with pytest.raises(accelerate_module.VerificationError, match="differs from torch's layer"):
        accelerate(small(), verify=torch.randn(2, 3, 6, 6))


class TypeDependent(nn.Module):
    """What no swap can keep: it looks at the exact type."""

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)

    def forward(self, x):
        return self.norm(x) * (1 if type(self.norm) is nn.InstanceNorm2d else 2)


def test_a_model_that_computes_something_else_is_undone():
    model = TypeDependent()
    with pytest.raises(
        accelerate_module.VerificationError, match="the model does not: outputs differ"
    ):
        accelerate(model, verify=torch.randn(2, 3, 6, 6))
    assert type(model.norm) is nn.InstanceNorm2d


def test_where_torch_is_wrong_float64_decides():
    model = nn.Sequential(nn.InstanceNorm2d(3, eps=1e-12)).eval()
    x = 1000 + 0.001 * torch.randn(2, 3, 16, 16)
    report = accelerate(model, verify=x)
    assert not report.verification.right
    assert "1 layers differ by more than rounding: from float64 torch's" in str(report)
    replay = report.rows[0].replay
    assert replay.difference > replay.tolerance
    assert replay.our_error < 1e-5 < replay.torch_error


class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.InstanceNorm2d(3), 0

    def forward(self, x):
        self.calls += 1
        return self.norm(x) + self.calls


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Undecided(), torch.randn(1, 3, 4, 4), "verify= cannot compare anything"),
        (nn.Flatten(), torch.zeros(2, 2, dtype=torch.long), "no floating point tensor"),
        (small(), torch.randn(1, 5, 4, 4), "channels"),
    ],
    ids=["undecided", "integers", "misfit"],
)
def test_a_trial_that_cannot_be_leaves_the_model(model, inputs, message):
    before = types(model)
    with pytest.raises((ValueError, RuntimeError), match=message):
        accelerate(model, verify=inputs)
    assert types(model) == before


def test_the_first_layers_names_in_nested_and_tied_models():
    model = nn.ModuleDict({"a": pix2pix_unet(), "b": cyclegan_generator(blocks=1)})
    report = accelerate(model)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, accelerate_module._NORMS)
    ]
    assert [row.name for row in report.rows] == names


def test_names_of_layers_are_escaped_in_the_report():
    model = nn.Sequential()
    model.add_module("a\x1b[31m", nn.InstanceNorm2d(2))
    text = str(accelerate(model))
    assert r"a\x1b[31m " in text
    assert "\x1b" not in text
