"""The benchmarks run. Nothing asserts on time."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from benchmarks import __main__ as program
from benchmarks import family, instance_norm, networks, peers, strided
from benchmarks.__main__ import PARTS, table
from benchmarks.timing import interleaved

from momentnorm.core.backends import operands

TINY = (1, 2, 4, 4)


def test_a_row():
    row = instance_norm.measure(TINY)
    assert row.shape == "1x2x4x4"
    assert min(row.copy, row.forward, row.torch_forward, row.training, row.torch_training) > 0
    row = dataclasses.replace(row, forward=4.0, torch_forward=1.0, training=1.0, torch_training=2.0)
    assert table([row]).count("| 1x2x4x4 |") == 1
    assert "Ours is slower: 1x2x4x4 forward (0.25x).\n" in table([row])


def test_every_call_has_its_turn():
    calls = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget=0)
    assert times.keys() == {"a", "b"}
    assert all(sorted(calls[i : i + 2]) == ["a", "b"] for i in range(4, len(calls), 2))


def test_a_turn_with_a_pause_has_a_call_that_is_not_timed():
    calls = []
    interleaved({"a": lambda: calls.append("a")}, budget=0, pause=1e-9)
    assert len(calls) == 2 + 9 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_peers(dtype, layout, monkeypatch):
    # Compiling takes seconds, and is torch's.
    monkeypatch.setattr(torch, "compile", lambda layer, **_: layer)
    row = peers.measure(TINY, dtype, layout, pause=1e-9)
    assert row.ratio("compiled_activation") == row.compiled_activation / row.ours_activation
    assert peers.table([row]).count("| 1x2x4x4 |") == 1


def test_peers_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda layer, **_: layer)
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    row = peers.measure(TINY, pause=1e-9)
    assert row.onnxruntime is None
    assert row.openvino is None
    assert peers.table([row]).splitlines()[2].endswith("| - | - |")
    assert peers.versions() == "onnxruntime not installed, openvino not installed"


def test_a_peer_that_is_wrong_is_not_timed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda layer, **_: lambda x: layer(x) + 1e-3)
    with pytest.raises(AssertionError, match="compiled"):
        peers.measure(TINY)


def test_where_ours_is_slower_is_named():
    row = peers.Row("1x2", "float32", "contiguous", 2.0, 1.0, 4.0, 1.0, 1.0, 1.0, None, None)
    assert "Ours is slower: 1x2 than torch (0.50x)." in peers.table([row])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 8), (2, 8, 3, 3), (2, 8, 2, 2, 2)], ids=str)
def test_the_family(shape, dtype, layout):
    group, batch = (
        family.measure(layer, shape, dtype, layout, budget=0)
        for layer in ("GroupNorm(2)", "BatchNorm")
    )
    assert group.speedup("training") == group.torch_training / group.training
    assert group.speedup("eval") is None
    assert batch.speedup("eval") == batch.torch_eval / batch.eval
    written = family.table([group, batch, family.Row("LayerNorm", "2x8", "float32", layout)])
    assert "| LayerNorm | 2x8 | torch's own kernel | 1x |" in written
    assert "Geometric mean: forward" in written


@pytest.mark.parametrize("layer", strided.LAYERS)
def test_strided_inputs(layer):
    row = strided.measure(layer, "crop", (2, 8, 3, 4), budget=0)
    assert (row.shape, row.layout) == ("2x8x3x4", "crop")
    assert row.speedup("training") == row.torch_training / row.training


@pytest.mark.parametrize("view", strided.VIEWS)
def test_strided_inputs_are_strided(view):
    x = strided.VIEWS[view](2, 8, 3, 4)
    assert x.shape == (2, 8, 3, 4)
    assert operands.layout(x) is None


def test_a_layer_of_the_family_that_is_wrong_is_not_timed(monkeypatch):
    monkeypatch.setattr(family, "layers", lambda *_: (torch.nn.GroupNorm(4, 8),) * 2)
    monkeypatch.setattr(torch.nn.GroupNorm, "forward", lambda self, x: 2 * x)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        family.measure("GroupNorm(4)", (2, 8, 3, 3))


def test_where_a_layer_of_the_family_is_slower_is_named():
    row = family.Row("BatchNorm", "1x2", "float32", "contiguous", 2.0, 1.0, 1.0, 4.0, 1.0, 1.0)
    written = family.table([row])
    assert "Geometric mean: forward 0.50x, training 4.00x, eval 1.00x." in written
    assert "Ours is slower: BatchNorm 1x2 forward (0.50x)." in written


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda norm: networks.generator(norm, width=4, blocks=1), (1, 3, 16, 16)),
        (lambda norm: networks.UNet(norm, features=(4, 8, 8)), (1, 1, 8, 8, 8)),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_networks(build, shape, layout):
    network = networks.Network(build, shape, lambda y: y.square().mean())
    forward, training = networks.measure("tiny", network, layout, budget=0)
    assert (forward.task, training.task) == ("forward", "training")
    assert forward.share("ours") == (forward.ours - forward.none) / forward.ours
    assert networks.table([forward, training]).count("| tiny |") == 2


def test_a_part_alone_leaves_the_others_in_the_document(tmp_path, monkeypatch):
    peer = peers.Row("1x2", "float32", "contiguous", 2.0, 1.0, 4.0, 1.0, 1.0, 1.0, None, 1.0)
    network = networks.Row("tiny", "contiguous", "forward", 1.0, 2.0, 1.5, 1.25)
    relative = family.Row("BatchNorm", "1x2", "float32", "contiguous", 2.0, 1.0, 1.0, 4.0, 1.0, 1.0)
    measured = {
        "instance_norm": lambda: iter([instance_norm.measure(TINY)]),
        "family": lambda: iter([relative]),
        "strided": lambda: iter([dataclasses.replace(relative, layout="crop")]),
        "peers": lambda: iter([peer]),
        "networks": lambda: iter([network]),
    }
    for name, rows in measured.items():
        monkeypatch.setitem(PARTS, name, dataclasses.replace(PARTS[name], rows=rows))
    threads = torch.get_num_threads()
    try:
        program.main(["--output", str(tmp_path)])
        document = (tmp_path / "benchmarks.md").read_text()
        program.main(["--output", str(tmp_path), "--only", "networks"])
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "benchmarks.md").read_text() == document
    assert "| 1x2x4x4 |" in document
    assert "| 1x2 | 2000000 | 1000000 (0.5x) |" in document
    assert "| BatchNorm | 1x2 | 2000000 | 0.50x |" in document
    assert "### float32, crop" in document
    assert "| tiny | contiguous | forward | 1000 | 2000 | 50% |" in document


def test_what_other_benchmarks_saved_is_refused(tmp_path):
    (tmp_path / "benchmarks.csv").write_text("shape,dtype\n1x2,float32\n")
    with pytest.raises(SystemExit, match="does not have the columns"):
        program.main(["--output", str(tmp_path), "--only", "networks"])
