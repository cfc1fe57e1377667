"""Record: damaged, foreign and outdated files are refused."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from momentnorm.studies import STUDIES, StudyError, page, run
from support.studies_cases import counted, rows_of


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
