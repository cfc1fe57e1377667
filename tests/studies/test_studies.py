"""``momentnorm study``: each study end to end, going on where it was, and what is said if not."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from momentnorm import SwitchableNorm2d
from momentnorm.cli import main
from momentnorm.studies import STUDIES, StudyError, command, page, run, stylization
from momentnorm.studies.classify import classifier
from momentnorm.studies.layers import KINDS, norms_of
from momentnorm.studies.switchable import shares
from momentnorm.stylize.network import Architecture, Network

SMALL_STYLIZATION = stylization.Settings(
    width=4, blocks=1, steps=8, batch=2, size=32, style_size=32, test_size=64
)
#: How far torch's layers may end from ours. Roundings grow with each step of Adam, which divides
#: a gradient that should be zero by its own size.
APART = {"stylization": 0.02, "batch-size": 1e-3, "depth": 1e-3}
#: Each study at a size at which it takes a second or two.
TINY = {
    "stylization": SMALL_STYLIZATION,
    "batch-size": dataclasses.replace(
        STUDIES["batch-size"].quick, batches=(64, 128), widths=(4, 4), strides=(2, 2), epochs=1
    ),
    "depth": dataclasses.replace(STUDIES["depth"].quick, depths=(1, 2), width=4, epochs=1),
    "switchable": dataclasses.replace(
        STUDIES["switchable"].quick,
        widths=(4, 4),
        strides=(2, 2),
        batch=128,
        epochs=1,
        stylization=SMALL_STYLIZATION,
    ),
}


def cells_of(cells, norms, settings, layers):
    return [cell for cell in cells(settings, layers) if cell["norm"] in norms]


@pytest.fixture
def tiny(monkeypatch):
    """The studies with tiny settings in place of the quick ones."""
    for name, settings in TINY.items():
        monkeypatch.setitem(STUDIES, name, dataclasses.replace(STUDIES[name], quick=settings))
    photographs = ["skimage:chelsea", "skimage:coffee"]
    monkeypatch.setattr(stylization, "content_files", lambda folder: photographs)
    stylization.scene.cache_clear()
    fewer = {"stylization": ("instance", "batch", "switchable"), "depth": ("none", "he", "batch")}
    for name, norms in fewer.items():
        study = STUDIES[name]
        cells = functools.partial(cells_of, study.cells, norms)
        monkeypatch.setitem(STUDIES, name, dataclasses.replace(study, cells=cells))
    return STUDIES


def counted(monkeypatch, study):
    """The study, and a list of the cells that it computes, at no cost."""
    computed = []

    def compute(settings, cell, layers, seed, folder):
        computed.append((*cell.values(), layers, seed))
        return {"loss": 1.0, "accuracy": 0.5 + 0.01 * seed}

    study = dataclasses.replace(study, compute=compute)
    monkeypatch.setitem(STUDIES, study.name, study)
    return study, computed


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", TINY)
def test_each_study_from_the_command_line(name, tiny, tmp_path, capsys):
    assert main(["study", name, "--quick", "--seeds", "2", "--jobs", "1", "-o", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "studies.md")
    study = tiny[name]
    cells = study.cells(study.quick, "momentnorm")
    rows = rows_of(tmp_path / "studies" / f"{name}.csv")
    assert len(rows) == 2 * len(cells) == captured.err.count(" s\n")
    assert [row["seed"] for row in rows] == ["0"] * len(cells) + ["1"] * len(cells)
    assert all(float(row["seconds"]) > 0 and row[study.metric] != "" for row in rows)
    known = json.loads((tmp_path / "studies" / f"{name}.json").read_text())
    assert known["setting"] == "quick"
    assert known["settings"] == json.loads(json.dumps(dataclasses.asdict(TINY[name])))
    assert known["versions"]["torch"] == torch.__version__
    assert (tmp_path / "studies" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    text = (tmp_path / "studies.md").read_text()
    assert "The **quick** setting, with seeds 0, 1." in text
    for claim in study.claims(page.read_results(tmp_path / "studies", study)[1]):
        assert claim.text in text


@pytest.mark.parametrize(
    "name", [name for name, study in STUDIES.items() if "torch" in study.kinds]
)
def test_torch_layers_learn_the_same(name, tiny, tmp_path):
    study = tiny[name]
    assert run(study, tmp_path / "studies", seeds=[0, 1], layers="both")
    rows = rows_of(tmp_path / "studies" / f"{name}.csv")
    ours: dict = {}
    theirs: dict = {}
    for row in rows:
        key = tuple(row[key] for key in row if key in ("data", "norm", "batch", "depth", "seed"))
        (ours if row["layers"] == "momentnorm" else theirs)[key] = row
        # They take turns, so that their times can be compared.
        assert row["layers"] == "momentnorm" or list(ours)[-1] == key
    assert theirs
    assert set(theirs) <= set(ours)  # torch has no SN
    figure = "loss" if "loss" in rows[0] else study.metric
    for key, row in theirs.items():
        assert float(row[figure]) == pytest.approx(float(ours[key][figure]), rel=APART[name]), key
    assert "With torch's layers instead: in " in page.page(tmp_path)


def test_the_same_seed_gives_the_same_figures(tiny, tmp_path):
    study = tiny["depth"]
    for folder in ("one", "two"):
        run(study, tmp_path / folder, seeds=[3])
    one, two = (rows_of(tmp_path / folder / "depth.csv") for folder in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}


def test_a_run_that_stops_goes_on_and_computes_nothing_twice(monkeypatch, tmp_path):
    study, computed = counted(monkeypatch, STUDIES["depth"])
    assert not run(study, tmp_path, seeds=[0, 1], should_stop=lambda: len(computed) == 5)
    assert len(rows_of(tmp_path / "depth.csv")) == 5
    assert run(study, tmp_path, seeds=[0, 1])
    assert len(computed) == len(set(computed)) == 2 * len(study.cells(study.quick, "momentnorm"))
    # Another seed, and other layers, are added to what is there.
    before = len(computed)
    assert run(study, tmp_path, seeds=[0, 1, 2])
    assert run(study, tmp_path, seeds=[0], layers="torch")
    assert {cell[-2:] for cell in computed[before:]} == {("momentnorm", 2), ("torch", 0)}
    assert len(computed) == len(set(computed)) == len(rows_of(tmp_path / "depth.csv"))


def test_a_run_that_is_killed_keeps_what_is_finished(monkeypatch, tmp_path):
    study, computed = counted(monkeypatch, STUDIES["depth"])

    def break_down(settings, cell, layers, seed, folder):
        if len(computed) == 3:
            raise KeyboardInterrupt
        return study.compute(settings, cell, layers, seed, folder)

    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(study, compute=break_down), tmp_path)
    assert run(study, tmp_path)
    assert len(computed) == len(set(computed)) == len(rows_of(tmp_path / "depth.csv"))


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked on Windows")
def test_two_runs_into_one_folder_lose_no_rows(monkeypatch, tmp_path):
    """The second is refused while the first runs; another study and another folder are not."""
    study, computed = counted(monkeypatch, STUDIES["depth"])
    other, _ = counted(monkeypatch, STUDIES["batch-size"])
    met = []

    def compute(*arguments):
        if not met:
            with pytest.raises(StudyError) as error:
                run(study, tmp_path, seeds=[7])
            met.append(str(error.value))
            assert run(other, tmp_path, seeds=[0])
            assert run(study, tmp_path / "another", seeds=[0])
            computed.clear()
        return study.compute(*arguments)

    assert run(dataclasses.replace(study, compute=compute), tmp_path, seeds=[0])
    assert "another run of depth is writing into it; wait" in met[0]
    assert len(rows_of(tmp_path / "depth.csv")) == len(computed)
    assert not list(tmp_path.glob(".*")), "the lock is gone"
    assert run(study, tmp_path, seeds=[0, 7])


@pytest.mark.parametrize("words", ["\x1b[31mred", "a\n# heading", "\u202e"])
def test_words_that_act_on_a_page_are_not_a_studys(words, monkeypatch, tmp_path):
    study, _ = counted(monkeypatch, STUDIES["depth"])
    run(study, tmp_path, seeds=[0])
    known = json.loads((tmp_path / "depth.json").read_text())
    for changed in ({"machine": words}, {"versions": {words: "1"}}):
        (tmp_path / "depth.json").write_text(json.dumps(known | changed))
        with pytest.raises(StudyError, match="not a study's settings"):
            page.read_results(tmp_path, study)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_fifo_is_not_a_studys(suffix, monkeypatch, tmp_path):
    study, _ = counted(monkeypatch, STUDIES["depth"])
    run(study, tmp_path, seeds=[0])
    (tmp_path / f"depth.{suffix}").unlink()
    os.mkfifo(tmp_path / f"depth.{suffix}")
    with pytest.raises(StudyError, match="--restart"):
        run(study, tmp_path, seeds=[0])


def test_other_settings_are_refused_until_restart(monkeypatch, tmp_path):
    study, computed = counted(monkeypatch, STUDIES["depth"])
    run(study, tmp_path, seeds=[0])
    changed = dataclasses.replace(study, quick=dataclasses.replace(study.quick, width=5))
    for other, setting in ((changed, "quick"), (study, "full")):
        with pytest.raises(StudyError, match="--restart") as error:
            run(other, tmp_path, seeds=[0], setting=setting)
        word = "settings.width was 16, is 5" if setting == "quick" else "setting was quick, is full"
        assert word in str(error.value)
    computed.clear()
    run(changed, tmp_path, seeds=[0], restart=True)
    assert len(computed) == len(rows_of(tmp_path / "depth.csv"))


@pytest.mark.parametrize(
    "damage", ["no json", "not json", "brackets", "another json", "another csv", "half a row"]
)
def test_files_that_are_not_a_studys(damage, monkeypatch, tmp_path):
    study, _ = counted(monkeypatch, STUDIES["depth"])
    run(study, tmp_path, seeds=[0])
    if damage == "no json":
        (tmp_path / "depth.json").unlink()
    elif damage == "another csv":
        (tmp_path / "depth.csv").write_text("a,b\n1,2\n")
    elif damage == "half a row":
        (tmp_path / "depth.csv").write_text((tmp_path / "depth.csv").read_text()[:-20])
    else:
        text = {"not json": "{", "brackets": "[" * 100_000, "another json": "{}"}[damage]
        (tmp_path / "depth.json").write_text(text)
    with pytest.raises(StudyError, match="--restart"):
        run(study, tmp_path, seeds=[0])
    assert run(study, tmp_path, seeds=[0], restart=True)


def test_stopping_from_the_command_line(monkeypatch, tmp_path, capsys):
    study, _ = counted(monkeypatch, STUDIES["depth"])

    def interrupted(settings, cell, layers, seed, folder):
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C: the cell is finished first
        return study.compute(settings, cell, layers, seed, folder)

    monkeypatch.setitem(STUDIES, "depth", dataclasses.replace(study, compute=interrupted))
    assert main(["study", "depth", "--quick", "--jobs", "1", "-o", str(tmp_path)]) == 130
    assert "goes on" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "studies" / "depth.csv")) == 1


def test_several_processes_write_the_same_rows_in_the_same_order(tmp_path):
    study = dataclasses.replace(STUDIES["depth"], quick=TINY["depth"])
    for jobs in (1, 2):
        assert run(study, tmp_path / str(jobs), seeds=[0, 1], layers="both", jobs=jobs)
    one, two = (rows_of(tmp_path / str(jobs) / "depth.csv") for jobs in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}


def end_abruptly(settings, cell, layers, seed, folder):
    if cell["norm"] == "batch":
        os.kill(os.getpid(), signal.SIGKILL)  # as a system that runs out of memory does
    return {"loss": 1.0, "accuracy": 0.5}


def test_a_process_that_is_ended_from_outside_is_one_line(tmp_path):
    study = dataclasses.replace(STUDIES["depth"], quick=TINY["depth"], compute=end_abruptly)
    with pytest.raises(StudyError, match="fewer --jobs"):
        run(study, tmp_path, seeds=[0], jobs=2)
    assert 0 < len(rows_of(tmp_path / "depth.csv")) < len(study.cells(study.quick, "momentnorm"))


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C and kill are POSIX signals here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(number, tmp_path):
    program = "import sys; from momentnorm.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", program]
    argv += ["study", "depth", "--quick", "--jobs", "2", "-o", str(tmp_path)]
    options = {"start_new_session": True, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **options) as running:
        assert running.stderr.readline().startswith("momentnorm study: 1/63 ")
        try:
            if number == signal.SIGINT:
                os.killpg(running.pid, number)  # Ctrl-C is for all of them
            else:
                running.kill()
            _, rest = running.communicate(timeout=120)  # ends when the last process has
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == (130 if number == signal.SIGINT else -number)
    assert ("goes on" in rest) == (number == signal.SIGINT)
    assert "Traceback" not in rest
    assert 0 < len(rows_of(tmp_path / "studies" / "depth.csv")) < 63


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_a_missing_extra_is_one_line(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from momentnorm.cli import main\n"
        "sys.exit(main(['study', '--list']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'momentnorm[studies]'" in result.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nonsense", "-o", "x"], list(STUDIES)),
        ([], ["--list"]),
        (["depth"], ["-o FOLDER"]),
        (["depth", "-o", "x", "--seeds", "0"], ["--seeds"]),
        (["switchable", "-o", "x", "--layers", "torch"], ["--layers momentnorm"]),
        (["--page", "-o", "x"], ["run a study first"]),
    ],
)
def test_wrong_input_is_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["study", *argv])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["study", "depth", "--quick", "-o", str(tmp_path / "file")]) == 2
    assert "choose another place" in capsys.readouterr().err


def test_list(capsys):
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(STUDIES)


def test_the_layers_are_those_named():
    for layers, package in (("momentnorm", "momentnorm."), ("torch", "torch.")):
        for norm in norms_of(layers):
            norms = [
                module
                for network in (
                    classifier((8, 16), (1, 1), 3, norm, layers),
                    stylization.build(Architecture(norm, width=8, blocks=1), layers),
                )
                for module in network.modules()
                if "Norm" in type(module).__name__ and type(module).__name__ != "ConvNorm"
            ]
            assert len(norms) == (0 if norm == "none" else 2 + 7)
            assert all(type(module).__module__.startswith(package) for module in norms)
    assert set(KINDS["momentnorm"]) - set(KINDS["torch"]) == {"switchable"}


def test_shares_are_those_of_the_layers_in_order():
    model = nn.Sequential(SwitchableNorm2d(2), nn.ReLU(), SwitchableNorm2d(2))
    model[2].var_weight.data = torch.tensor([2.0, 1.0, 1.0]).log()
    found = shares(model)
    assert len(found) == 2 * 2 * 3
    assert found["var 1 in"] == pytest.approx(1 / 3)
    assert found["var 2 in"] == pytest.approx(0.5)
    assert found["mean 2 in"] == pytest.approx(1 / 3)


def test_brightness_and_contrast_are_not_clipped():
    image = torch.tensor([0.0, 0.25, 1.0])
    for change in stylization.CHANGES.values():
        assert change(image).min() >= 0
        assert change(image).max() <= 1
    assert stylization.CHANGES["darker"](image).tolist() == [0.0, 0.125, 0.5]
    assert stylization.CHANGES["brighter"](image).tolist() == [0.5, 0.625, 1.0]


def test_the_network_is_built_alike_with_both_layers():
    networks = []
    for layers in KINDS:
        torch.manual_seed(0)
        networks.append(stylization.build(Architecture("batch", width=4, blocks=1), layers))
    assert isinstance(networks[0], Network)
    for a, b in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(a, b)
