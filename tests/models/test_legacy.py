"""load_legacy: old checkpoints load, and a checkpoint that does not fit changes nothing."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import load_legacy
from momentnorm.models import legacy

every_library = pytest.mark.parametrize("library", [nn, momentnorm], ids=["torch", "momentnorm"])


def _network(library=nn, track=False):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        library.InstanceNorm2d(4, affine=True, track_running_stats=track),
        nn.Sequential(nn.Conv2d(4, 4, 3), library.BatchNorm2d(4)),
    )


def _old(prefix="", **changes):
    """State dict of :func:`_network` as PyTorch 0.3 wrote it, without initial values."""
    names = {
        "0.weight": (4, 3, 3, 3),
        "0.bias": (4,),
        "1.weight": (4,),
        "1.bias": (4,),
        "1.running_mean": (4,),
        "1.running_var": (4,),
        "2.0.weight": (4, 4, 3, 3),
        "2.0.bias": (4,),
        "2.1.weight": (4,),
        "2.1.bias": (4,),
        "2.1.running_mean": (4,),
        "2.1.running_var": (4,),
    }
    names.update(changes)
    return OrderedDict((prefix + name, torch.rand(shape) + 0.5) for name, shape in names.items())


def _quietly(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_legacy(*args, **kwargs)


def _values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _assert_unchanged(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


@every_library
def test_unused_statistics_are_dropped(library):
    model, old = _network(library), _old()
    with pytest.raises(RuntimeError, match="Unexpected running stats"):
        _network(library).load_state_dict(old)
    report = _quietly(model, old)
    assert report.dropped == ("1.running_mean", "1.running_var")
    assert report.added == ("2.1.num_batches_tracked",)
    state = model.state_dict()
    for name in old.keys() - set(report.dropped):
        assert torch.equal(state[name], old[name]), name
    assert state["2.1.num_batches_tracked"] == 0
    assert "1.running_mean" not in state


def test_evaluation_equals_the_old_layers():
    # Up to 0.3 InstanceNorm was F.batch_norm of (1, N*C, ...), with training=True in eval() too.
    model, old = _network(), _old()
    _quietly(model, old)
    x = torch.randn(2, 4, 5, 5)
    weight, bias = old["1.weight"].repeat(2), old["1.bias"].repeat(2)
    theirs = torch.nn.functional.batch_norm(
        x.view(1, 8, 5, 5), None, None, weight, bias, training=True
    )
    torch.testing.assert_close(model.eval()[1](x), theirs.view_as(x))


@every_library
def test_statistics_are_kept_where_asked_for(library):
    model, old = _network(library), _old()
    report = _quietly(model, old, keep_running_statistics=True)
    assert report.tracking == ("1",)
    assert report.dropped == ()
    assert "switched to running statistics" in str(report)
    x = torch.randn(2, 4, 5, 5)
    expected = nn.functional.batch_norm(
        x, *(old[f"1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    )
    torch.testing.assert_close(model.eval()[1](x), expected)
    # Now the model tracks as any other does.
    _network(library, track=True).load_state_dict(model.state_dict())
    model.train()(torch.randn(2, 3, 8, 8))
    assert not torch.equal(model[1].running_mean, old["1.running_mean"])


@every_library
def test_a_model_that_tracks_gets_its_buffers(library):
    model, old = _network(library, track=True), _old()
    report = _quietly(model, old)
    assert report.dropped == ()
    assert report.added == ("1.num_batches_tracked", "2.1.num_batches_tracked")
    assert torch.equal(model[1].running_var, old["1.running_var"])


def test_a_count_is_set_back_to_zero():
    # torch's load_state_dict would keep the count of the model.
    model = _network()
    model(torch.randn(2, 3, 8, 8))
    assert model[2][1].num_batches_tracked == 1
    _quietly(model, _old())
    assert model[2][1].num_batches_tracked == 0


def test_the_prefix_of_data_parallel_is_removed():
    model, old = _network(), _old("module.")
    report = _quietly(model, old)
    assert report.renamed
    assert "'module.'" in str(report)
    assert torch.equal(model[0].weight, old["module.0.weight"])
    assert next(iter(old)) == "module.0.weight"  # the checkpoint is unchanged


def test_a_prefix_of_the_models_own_names_stays():
    model = nn.ModuleDict({"module": nn.Linear(2, 3)})
    report = load_legacy(model, {"module.weight": torch.ones(3, 2), "module.bias": torch.ones(3)})
    assert not report.renamed
    assert model["module"].weight.eq(1).all()


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # raised by torch while the compiler loads
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_loaded(wrap):
    model, old = _network(), _old()
    _quietly(wrap(model), old)
    assert torch.equal(model[0].weight, old["0.weight"])


def test_lazy_layers_are_refused():
    model = nn.Sequential(nn.LazyInstanceNorm2d(affine=True))
    with pytest.raises(ValueError, match="call the model once first"):
        load_legacy(model, _old())


def test_a_new_checkpoint_needs_no_change():
    model, new = _network(), _network()
    report = load_legacy(model, new.state_dict())  # a warning would be an error
    assert report == legacy.LegacyReport()
    assert str(report) == "nothing had to be changed"
    _assert_unchanged(model, _values(new))


class _Versioned(nn.Linear):
    _version = 3

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        self.loaded_version = local_metadata.get("version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.parametrize("parallel", [False, True])
def test_versions_are_kept(parallel):
    model = nn.Sequential(_Versioned(2, 3))
    state = (nn.DataParallel(model) if parallel else model).state_dict()
    assert _quietly(model, state).renamed is parallel
    assert model[0].loaded_version == 3
    new = nn.DataParallel(_network(track=True)).state_dict()
    del new["module.1.num_batches_tracked"]  # only its version remains
    with pytest.raises(RuntimeError, match="asked to track"):
        load_legacy(_network(), new)


def test_changes_are_reported():
    with pytest.warns(UserWarning, match="load_legacy") as told:
        report = load_legacy(_network(), _old("module."))
    assert str(told[0].message) == f"load_legacy:\n{report}"
    assert told[0].filename == __file__
    assert str(report) == (
        "renamed: 'module.' (of DataParallel) removed from every name\n"
        "dropped, since InstanceNorm uses the statistics of its input: 1.running_mean, "
        "1.running_var\n"
        "added with the value 0: 2.1.num_batches_tracked"
    )


@pytest.mark.parametrize("bare", [True, False])
def test_statistics_that_were_asked_for_are_not_dropped(bare):
    new = _network(track=True).state_dict()
    if bare:  # without versions, but with the count
        new = dict(new)
    else:  # as PyTorch 0.4.0 wrote it: with versions, but without the count
        del new["1.num_batches_tracked"]
        new._metadata["1"]["version"] = 1
    model = _network()
    before = _values(model)
    with pytest.raises(RuntimeError, match=r"1\.running_mean and 1\.running_var.*keep_running"):
        load_legacy(model, new)
    _assert_unchanged(model, before)
    _quietly(model, new, keep_running_statistics=True)
    assert model[1].track_running_stats


BAD = {
    "size": ({"2.0.weight": (4, 5, 3, 3)}, r"size mismatch for 2\.0\.weight.*\[4, 5, 3, 3\]"),
    "size of the last": ({"2.1.running_var": (5,)}, r"size mismatch for 2\.1\.running_var"),
    "unexpected": ({"3.weight": (4,)}, r"Unexpected key.*3\.weight"),
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("change", BAD)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, keep):
    changes, message = BAD[change]
    model = _network()
    before = _values(model)
    with pytest.raises(RuntimeError, match=f"(?s)nothing was loaded.*{message}"):
        load_legacy(model, _old(**changes), keep_running_statistics=keep)
    _assert_unchanged(model, before)
    assert not model[1].track_running_stats
    assert model[1].running_mean is None


def test_a_missing_name_changes_nothing():
    model, old = _network(), _old()
    before = _values(model)
    del old["2.0.bias"]
    with pytest.raises(RuntimeError, match=r"nothing was loaded(?s:.*)Missing key.*2\.0\.bias"):
        load_legacy(model, old)
    _assert_unchanged(model, before)


def test_not_strict():
    model, old = _network(), _old(**{"3.weight": (4,)})
    del old["2.0.bias"]
    bias = model[2][0].bias.detach().clone()
    report = _quietly(model, old, strict=False)
    assert report.missing == ("2.0.bias",)
    assert report.unexpected == ("3.weight",)
    assert torch.equal(model[2][0].bias, bias)
    assert torch.equal(model[0].weight, old["0.weight"])
    before = _values(model)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_legacy(model, _old(**{"0.bias": (5,)}), strict=False)
    _assert_unchanged(model, before)


def test_shared_layers_have_two_names():
    norm = nn.InstanceNorm2d(4)
    model = nn.ModuleDict({"a": norm, "b": norm})
    old = {
        f"{name}.{key}": torch.ones(4) for name in "ab" for key in ("running_mean", "running_var")
    }
    assert _quietly(model, old).dropped == tuple(old)
    assert not _quietly(model, old, keep_running_statistics=True).dropped


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_path(tmp_path, zipped, wrapped):
    old = _old("module.")
    content = {"epoch": 90, "arch": "net", "state_dict": old} if wrapped else old
    path = tmp_path / "old.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for name in (path, str(path)):
        model = _network()
        assert _quietly(model, name).renamed
        assert torch.equal(model[2][0].weight, old["module.2.0.weight"])


def test_a_pickled_module_is_not_run(tmp_path):
    torch.save(_network(), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"whole\.pth.*whole pickled module.*weights_only=False"):
        load_legacy(_network(), tmp_path / "whole.pth")


def test_other_files(tmp_path):
    (tmp_path / "text.pth").write_text("hello, this is text")
    with pytest.raises(ValueError, match=r"text\.pth.*no checkpoint"):
        load_legacy(_network(), tmp_path / "text.pth")
    with pytest.raises(FileNotFoundError):
        load_legacy(_network(), tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"model": {}, "epoch": 3}, "a dict of model, epoch: pass the entry"),
        ([1, 2], "got list"),
        (nn.Linear(2, 3), r"pass its state_dict\(\)"),
    ],
)
def test_objects_that_are_not_a_state_dict(checkpoint, message):
    with pytest.raises(ValueError, match=message):
        load_legacy(_network(), checkpoint)


def test_names_of_layers_are_escaped():
    model = nn.Sequential(OrderedDict({"a\x1b[31m": nn.InstanceNorm2d(2)}))
    state = {"a\x1b[31m.running_mean": torch.zeros(2), "a\x1b[31m.running_var": torch.ones(2)}
    with pytest.warns(UserWarning, match="dropped"):
        report = load_legacy(model, state)
    assert report.dropped == tuple(state)
    assert r"a\x1b[31m.running_mean" in str(report)
    assert "\x1b" not in str(report)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        load_legacy(_network(), tmp_path / "fifo")
