"""accelerate and its surroundings: memory layouts, the meta device, tools that match classes."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
import types

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import accelerate, check, restore
from momentnorm.models import accelerate as accelerate_module


@pytest.fixture(autouse=True)
def _kernels():
    """Name a backend, since layers are kept where there are no kernels."""
    with momentnorm.use_backend("stand_in"):
        yield


FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


def _images(dimensions=2, channels=4):
    x = torch.randn(2, channels, *[6] * dimensions)
    return x.contiguous(memory_format=FORMATS[dimensions])


class Encoder(nn.Module):
    """Convolutional encoder that flattens with view, which needs contiguous memory."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4), nn.ReLU())

    def forward(self, x):
        y = self.body(x)
        return y.view(len(y), -1)


class InOrder(nn.Module):
    """Model that reads the memory of a tensor in its order."""

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(4)

    def forward(self, x):
        y = self.norm(x)
        return torch.as_strided(y, (2, y[0].numel()), (y[0].numel(), 1)) * torch.arange(144.0)


# Layouts


@pytest.mark.parametrize("training", [True, False])
def test_without_keep_layout_outputs_have_torchs_strides(training):
    for dimensions in (2, 3):
        layers = nn.ModuleList(
            [
                getattr(nn, f"InstanceNorm{dimensions}d")(4, track_running_stats=True),
                getattr(nn, f"BatchNorm{dimensions}d")(4),
                nn.GroupNorm(2, 4),
                nn.Sequential(getattr(nn, f"InstanceNorm{dimensions}d")(4), nn.ReLU()),
            ]
        ).train(training)
        x = _images(dimensions)
        expected = [layer(x) for layer in layers]
        accelerate(layers, keep_layout=False)
        for layer, right in zip(layers, expected, strict=True):
            y = layer(x)
            assert y.stride() == right.stride()
            torch.testing.assert_close(y, right)
    unbatched, right = layers[0](x[0]), expected[0].stride()[1:]
    assert unbatched.stride() == right


def test_keep_layout_is_kept_in_copies_and_undone_by_restore():
    model, x = nn.Sequential(nn.InstanceNorm2d(4)), _images()
    accelerate(model, keep_layout=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin(x).is_contiguous()
    restore(model)
    assert "keep_layout" not in vars(model[0])
    accelerate(model)
    assert not model(x).is_contiguous()


def test_an_out_and_the_input_keep_their_memory_without_keep_layout():
    norm, x = momentnorm.InstanceNorm2d(4), _images()
    norm.keep_layout = False
    with torch.no_grad():
        out = torch.empty_like(x)
        assert norm(x, out=out) is out
        norm.inplace = True
        assert norm(x) is x


def test_verification_names_a_layout_that_a_view_does_not_take():
    model, x = Encoder().to(memory_format=torch.channels_last), _images()
    expected = model(x)
    with pytest.raises(accelerate_module.VerificationError) as raised:
        accelerate(model, verify=x)
    message = str(raised.value)
    assert message.startswith("'body.1' (InstanceNorm2d): it keeps channels_last, torch's ")
    assert "behind it the model raised RuntimeError: view size is not compatible" in message
    assert "write reshape(...) for view(...) there, or call momentnorm.accelerate(..." in message
    assert message.endswith("keep_layout=False); the model is unchanged")
    assert type(model.body[1]) is nn.InstanceNorm2d
    assert [row.name for row in raised.value.report.rows] == ["body.1"]
    report = accelerate(model, verify=x, keep_layout=False)
    assert report.verification.right
    torch.testing.assert_close(model(x), expected)


def test_verification_names_a_layout_whose_memory_is_read_in_order():
    model, x = InOrder(), _images()
    with pytest.raises(
        accelerate_module.VerificationError, match="With contiguous outputs of InstanceNorm"
    ):
        accelerate(model, verify=x)
    assert accelerate(model, verify=x, keep_layout=False).verification.right


def test_other_errors_do_not_name_the_layout():
    model = nn.Sequential(nn.InstanceNorm2d(4), nn.Linear(5, 5))
    with pytest.raises(RuntimeError, match="mat1 and mat2") as raised:
        accelerate(model, verify=_images())
    assert not isinstance(raised.value, accelerate_module.VerificationError)


def test_check_names_a_layout_that_a_view_does_not_take():
    x = _images()
    model = nn.Sequential(Encoder(), nn.Linear(64, 2)).to(memory_format=torch.channels_last)
    assert not check(model, x).of("exception")
    accelerate(model)
    report = check(model, x)
    (finding,) = report.of("layout")
    assert (finding.severity, finding.layer) == ("error", "0.body.1")
    assert finding.message.startswith("InstanceNorm2d: it keeps channels_last, torch's layer")
    assert "behind it '0' (Encoder) raised RuntimeError: view size" in finding.message
    assert "reshape" in finding.fix
    assert "keep_layout=False" in finding.fix
    assert not report.of("exception")
    assert isinstance(report.exception, RuntimeError)
    restore(model)
    accelerate(model, keep_layout=False)
    assert not check(model, x).of("exception")


# The meta device


def test_models_on_meta_are_swapped_since_they_will_be_materialized():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    (row,) = accelerate(model).swapped
    assert row.fused == "ReLU"
    twin = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model.to_empty(device="cpu").load_state_dict(twin.state_dict())
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(model(x), twin(x))


def test_a_model_on_meta_cannot_be_verified():
    model = nn.Sequential(nn.BatchNorm2d(4, device="meta"))
    with pytest.raises(ValueError, match="on the meta device, which has no values: materialize"):
        accelerate(model, verify=torch.zeros(1, 4, 2, 2, device="meta"))
    assert type(model[0]) is nn.BatchNorm2d


# Tools that match classes


@pytest.mark.parametrize(
    ("imported", "tool"),
    [
        ("torch.ao.quantization.quantize_fx", "prepare_fx"),
        ("torch.fx.experimental.optimization", "optimization's fuse"),
    ],
)
def test_a_report_warns_of_imported_tools_that_match_classes(imported, tool, monkeypatch):
    for name in ("torch._inductor", *accelerate_module.TYPE_MATCHERS):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert accelerate(nn.Sequential(nn.BatchNorm2d(3))).warnings == ()
    monkeypatch.setitem(sys.modules, imported, types.ModuleType(imported))
    report = accelerate(nn.Sequential(nn.BatchNorm2d(3)))
    (warning,) = report.warnings
    assert f"{tool} finds layers by their exact class" in warning
    assert "call momentnorm.restore(model) before it" in warning
    assert str(report).endswith(f"\nwarning: {warning}")
    assert accelerate(nn.Sequential(nn.LayerNorm(3))).warnings == ()


def test_a_report_warns_of_a_model_that_is_prepared_for_quantization():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model.qconfig = object()
    (warning,) = (text for text in accelerate(model).warnings if "fuse_modules" in text)
    assert "restore(model)" in warning


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tools_that_match_classes_work_after_restore(monkeypatch):
    name = "torch.fx.experimental.optimization"
    monkeypatch.setitem(sys.modules, name, None)  # monkeypatch puts the earlier entry back
    del sys.modules[name]
    optimization = importlib.import_module(name)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    accelerate(model)
    assert any("Norm" in type(m).__name__ for m in optimization.fuse(model).modules())
    restore(model)
    fused, x = optimization.fuse(model), torch.randn(1, 3, 5, 5)
    assert not any("Norm" in type(m).__name__ for m in fused.modules())
    torch.testing.assert_close(fused(x), model(x))
