"""accelerate and restore: changes in a model, and everything that stays unchanged."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import momentnorm
from momentnorm import accelerate, restore
from momentnorm.models import classes, eligibility
from support.accelerated import close, deprecated, small, step, types
from support.models import cyclegan_generator, pix2pix_unet

#: Without a backend by name, layers are kept where there are no kernels.
pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("training", [True, False])
def test_networks_give_the_same_results(network, training):
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


def test_an_optimizer_built_before_trains_the_swapped_model(network):
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
def test_copies_give_the_same_results_and_can_be_restored(network, copied):
    model, x, swapped, _ = network
    before = types(model)
    accelerate(model)
    twin = copied(model)
    assert types(twin) == types(model)
    for mine, right in zip(step(twin.eval(), x), step(model.eval(), x), strict=True):
        assert torch.equal(mine, right)
    assert len(restore(twin).swapped) == swapped
    assert types(twin) == before


def test_a_second_call_changes_nothing(network):
    model, _, swapped, fused = network
    accelerate(model)
    before = types(model)
    again = accelerate(model)
    assert types(model) == before
    assert not again.swapped
    assert sum(row.why_not == "already a momentnorm layer" for row in again.rows) == swapped
    assert sum(bool(row.fused) for row in again.rows) == fused
    assert len(restore(model).swapped) == swapped


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


def test_tied_parameters_and_shared_modules_stay():
    first, second = nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Conv2d(4, 4, 1), second, first)
    report = accelerate(model)
    assert [row.name for row in report.rows] == ["0", "2"]
    assert model[0] is model[3]
    assert model[0].weight is model[2].weight
    assert len(list(model.parameters())) == 5


class Fast(nn.BatchNorm2d):
    """Subclass that inherits torch's forward."""

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
def test_subclasses_with_torchs_forward_become_subclasses_of_both():
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
    assert (row.why_not, row.fused) == ("already a momentnorm layer", "ReLU")
    restore(twin)
    assert types(twin) == types(theirs)


def test_restore_asks_to_remove_a_later_parametrization():
    model = small(nn.BatchNorm2d(4))
    accelerate(model)
    parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    (row,) = restore(model).kept
    assert "parametrization" in row.why_not
    parametrize.remove_parametrizations(model[1], "weight")
    restore(model)
    assert types(model) == types(small(nn.BatchNorm2d(4)))


def test_a_part_can_be_restored():
    model = nn.Sequential(small(), small())
    accelerate(model)
    restore(model[1])
    assert type(model[0][1]) is momentnorm.InstanceNorm2d
    assert types(model[1]) == types(small())


def test_a_lazy_layer_is_swapped_when_it_knows_its_channels():
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


@deprecated
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning"
)  # raised by torch's check of the channels
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
    assert layers == ["0", "1", "2"]  # patterns that tools look for


def test_compiled_models_are_compiled_again():
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
    assert not any(
        "relu" in operator for operator in operators[1]
    )  # The norm's operator includes it.
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
        "momentnorm uses torch's own layer",
    ]
    assert summary == "1 of 2 layers swapped, 1 fused with an activation"
    empty = accelerate(nn.Linear(2, 2))
    assert (empty.rows, str(empty)) == ((), "no normalization layers: nothing to do")


def test_wrapped_models():
    model = nn.DataParallel(small())
    (row,) = accelerate(model, verify=torch.randn(2, 3, 6, 6)).rows
    assert row.name == "module.1"
    assert type(model.module[1]) is momentnorm.InstanceNorm2d


def test_rows_have_the_first_name_in_nested_models():
    model = nn.ModuleDict({"a": pix2pix_unet(), "b": cyclegan_generator(blocks=1)})
    report = accelerate(model)
    names = [
        name for name, module in model.named_modules() if isinstance(module, eligibility.NORMS)
    ]
    assert [row.name for row in report.rows] == names


def test_names_of_layers_are_escaped_in_the_report():
    model = nn.Sequential()
    model.add_module("a\x1b[31m", nn.InstanceNorm2d(2))
    text = str(accelerate(model))
    assert r"a\x1b[31m " in text
    assert "\x1b" not in text
