"""Studies: each one end to end, with our layers and with torch's."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch

from momentnorm.cli import main
from momentnorm.studies import STUDIES, page, run, stylization
from support.studies_cases import APART, TINY, rows_of


def cells_of(cells, norms, settings, layers):
    return [cell for cell in cells(settings, layers) if cell["norm"] in norms]


@pytest.fixture
def tiny(monkeypatch):
    """Studies with tiny settings in place of the quick ones."""
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
        # Both kinds take turns cell by cell, so that their times can be compared.
        assert row["layers"] == "momentnorm" or list(ours)[-1] == key
    assert theirs
    assert set(theirs) <= set(ours)  # torch has no SN
    figure = "loss" if "loss" in rows[0] else study.metric
    for key, row in theirs.items():
        assert float(row[figure]) == pytest.approx(float(ours[key][figure]), rel=APART[name]), key
    assert "computed with torch's layers too. In " in page.page(tmp_path)


def test_the_same_seed_gives_the_same_figures(tiny, tmp_path):
    study = tiny["depth"]
    for folder in ("one", "two"):
        run(study, tmp_path / folder, seeds=[3])
    one, two = (rows_of(tmp_path / folder / "depth.csv") for folder in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}
