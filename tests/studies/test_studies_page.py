"""Page: verdicts and figures come from the CSVs; the committed page is up to date."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from momentnorm.cli import main
from momentnorm.studies import STUDIES, Results, StudyError
from momentnorm.studies.page import page, write_page
from momentnorm.studies.results import MissingError, Sample, agree, is_above, read_value
from momentnorm.studies.switchable import KINDS, share

DOCS = Path(__file__).parents[2] / "docs"


def plant(folder, name, rows, setting="quick"):
    """Write the CSV and JSON of a study with these rows."""
    (folder / "studies").mkdir(exist_ok=True)
    known = {
        "setting": setting,
        "settings": {"width": 3, "nested": {"steps": [1, 2]}},
        "versions": {"torch": "9.9"},
        "threads": 7,
        "machine": "a machine",
    }
    (folder / "studies" / f"{name}.json").write_text(json.dumps(known))
    with open(folder / "studies" / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows(rows)


def rows_of(metrics, layers="momentnorm", seeds=3, **keys):
    """Rows of one cell. Each figure grows by one percent of the first from seed to seed."""
    return [
        {
            "layers": layers,
            **keys,
            "seed": seed,
            **{name: value * (1 + 0.01 * seed) for name, value in metrics.items()},
            "seconds": 2.0,
        }
        for seed in range(seeds)
    ]


def verdicts(name, rows):
    """Verdict of each claim, by its text."""
    results = Results(rows)
    return {claim.text: claim.verdict(results)[0] for claim in STUDIES[name].claims(results)}


def batch_size_rows(accuracies):
    return [
        row
        for norm, pair in accuracies.items()
        for batch, value in zip((2, 32), pair, strict=True)
        for row in rows_of({"accuracy": value, "loss": 1.0}, data="digits", norm=norm, batch=batch)
    ]


AS_CLAIMED = {
    "batch": (0.6, 0.9),
    "layer": (0.9, 0.9),
    "instance": (0.5, 0.5),
    "group": (0.89, 0.9),
    "switchable": (0.9, 0.9),
}
AGAINST = {
    "batch": (0.9, 0.9),
    "layer": (0.7, 0.7),
    "instance": (0.8, 0.8),
    "group": (0.5, 0.9),
    "switchable": (0.5, 0.9),
}


@pytest.mark.parametrize(
    ("planted", "verdict"), [(AS_CLAIMED, "reproduced"), (AGAINST, "not reproduced at this scale")]
)
def test_batch_size_both_ways(planted, verdict):
    found = verdicts("batch-size", batch_size_rows(planted))
    assert len(found) == 6
    assert set(found.values()) == {verdict}


@pytest.mark.parametrize("holds", [True, False])
def test_depth_both_ways(holds):
    deep = {"none": 0.1, "he": 0.49} if holds else {"none": 0.95, "he": 0.95}
    rows = [
        row
        for norm in ("none", "he", "batch", "layer", "instance", "group", "switchable")
        for depth in (2, 24)
        for row in rows_of(
            {"accuracy": deep.get(norm, 0.9) if depth == 24 else 0.9, "loss": 1.0},
            norm=norm,
            depth=depth,
        )
    ]
    found = verdicts("depth", rows)
    assert len(found) == 7
    assert set(found.values()) == {"reproduced" if holds else "not reproduced at this scale"}


@pytest.mark.parametrize("holds", [True, False])
def test_stylization_both_ways(holds):
    changes = ("contrast 1", "contrast 0.5", "contrast 0.25", "darker", "brighter")
    rows = []
    for norm in ("none", "batch", "layer", "instance", "group", "switchable"):
        seen = (norm != "instance") == holds  # whether contrast and brightness change its figures
        style = {
            f"style loss, {change}": 1.0 + seen * (change in ("contrast 0.25", "brighter"))
            for change in changes
        }
        moved = {f"picture moves with {what}": float(seen) for what in ("contrast", "brightness")}
        rows += rows_of({"held out 8/8": 1.0 + seen, **style, **moved}, norm=norm)
    found = verdicts("stylization", rows)
    assert len(found) == 10
    assert set(found.values()) == {"reproduced" if holds else "not reproduced at this scale"}


@pytest.mark.parametrize("holds", [True, False])
def test_switchable_both_ways(holds):
    rows = []
    for task in ("digits", "patches", "stylization"):
        instance = 0.8 if (task == "stylization") == holds else 0.1
        planted = {"in": instance, "ln": (1 - instance) / 2, "bn": (1 - instance) / 2}
        shares = {
            f"{moment} {layer} {kind}": planted[kind]
            for moment in ("mean", "var")
            for layer in (1, 2)
            for kind in KINDS
        }
        rows += rows_of({"loss": 1.0, **shares}, task=task)
    found = verdicts("switchable", rows)
    assert len(found) == 10
    assert set(found.values()) == {"reproduced" if holds else "not reproduced at this scale"}
    # A share is the mean over layers, here of 0 and the planted value.
    for row in rows:
        row["mean 2 in"] = 0.0
    assert share(Results(rows), "digits", "mean", "in").values[0] == pytest.approx(
        (0.1 if holds else 0.8) / 2
    )


def test_a_difference_within_the_spread_is_none():
    low, high = Sample((0.5, 0.7, 0.9)), Sample((0.7, 0.9, 1.1))
    assert high.spread == pytest.approx(0.2)
    assert not is_above(high, low)
    assert agree(high, low)
    other = Sample((0.9, 1.1))  # 1 ± 0.14
    assert not is_above(Sample((1.14, 1.14)), other)
    assert is_above(Sample((1.15, 1.15)), other)
    assert not agree(Sample((1.0, 1.0)), Sample((2.0, 2.0)))


def test_one_seed_is_not_judged():
    rows = [row for row in batch_size_rows(AS_CLAIMED) if row["seed"] == 0]
    assert set(verdicts("batch-size", rows).values()) == {"not measured"}
    with pytest.raises(MissingError, match="1 seeds"):
        Results(rows).sample("accuracy", norm="batch", batch=2)


def test_a_seed_that_is_unfinished_is_left_out(tmp_path):
    rows = sorted(batch_size_rows(AS_CLAIMED), key=lambda row: row["seed"])
    plant(tmp_path, "batch-size", rows[:-1])
    text = page(tmp_path)
    assert "with seeds 0, 1." in text
    assert "--seeds 2" in text
    assert "With momentnorm's layers 20 trainings took 40 s of one core." in text
    assert text.count("**reproduced**") == 6
    # Nothing is judged with one finished seed, or with none.
    for count in (11, 3):
        plant(tmp_path, "batch-size", rows[:count])
        text = page(tmp_path)
        assert "**reproduced**" not in text
        assert "**not measured**" in text


def test_several_cells_are_not_taken_for_one():
    with pytest.raises(ValueError, match="more than one cell"):
        Results(batch_size_rows(AS_CLAIMED)).sample("accuracy", norm="batch")


def test_the_page_says_how_and_what(tmp_path):
    rows = batch_size_rows(AS_CLAIMED)
    plant(tmp_path, "batch-size", rows, setting="full")
    text = page(tmp_path)
    assert "The **full** setting, with seeds 0, 1, 2." in text
    assert "--quick" not in text
    assert "width 3, nested (steps 1 2)" in text
    assert "a machine, threads: 7; torch 9.9" in text
    assert "With momentnorm's layers 30 trainings took 60 s of one core." in text
    assert "| [Batch size](#batch-size) | full | 6 | 0 | 0 |" in text
    assert "| BN | 0.606 ± 0.006 | 0.909 ± 0.009 |" in text
    assert text.count("**reproduced**") == 6
    assert "torch's layers" not in text
    assert "## Depth" not in text


def test_the_page_compares_the_layers(tmp_path):
    ours = batch_size_rows(AS_CLAIMED)
    theirs = [{**row, "layers": "torch", "seconds": 3.0} for row in ours]
    theirs = [row for row in theirs if row["norm"] != "switchable"]
    for row in theirs:
        if (row["norm"], row["batch"]) == ("group", 2):
            row["accuracy"] = 0.1
    plant(tmp_path, "batch-size", ours + theirs)
    text = page(tmp_path)
    assert "8 cells were computed with torch's layers too. In 7 of them the two means" in text
    assert "All 8 took 72 s with torch's layers and 48 s with momentnorm's" in text
    assert text.count("**reproduced**") == 6  # judged by our rows alone


def test_the_page_names_the_command_that_made_it(tmp_path):
    ours = batch_size_rows(AS_CLAIMED)
    theirs = [{**row, "layers": "torch"} for row in ours if row["norm"] != "switchable"]
    for rows, option in (
        (ours, ""),
        (theirs, " --layers torch"),
        (ours + theirs, " --layers both"),
    ):
        plant(tmp_path, "batch-size", rows)
        assert f"    momentnorm study batch-size --quick{option} -o OUT\n" in page(tmp_path)


def test_a_training_that_diverged_has_no_spread(tmp_path):
    rows = batch_size_rows(AS_CLAIMED)
    rows[0]["loss"], rows[-1]["accuracy"] = math.inf, math.nan
    plant(tmp_path, "batch-size", rows)
    text = write_page(tmp_path).read_text()
    assert "nan ± nan" in text


FIRST, LAST = (
    "momentnorm,digits,batch,2,0,0.6,1.0,2.0",
    "momentnorm,digits,switchable,32,2,0.918,1.02",
)
#: Damage to a CSV: a part, its replacement, and the words of the error.
DAMAGES = {
    "cut in a row": (LAST + ",2.0\n", LAST[:28], "row 30 has 3 fields of 8"),
    "cut at a comma": (LAST + ",2.0\n", LAST + ",", "row 30: seconds cannot be ''"),
    "a field too many": (LAST, LAST + ",1", "row 30 has 9 fields of 8"),
    "a row twice": (FIRST, FIRST + "\n" + FIRST, "row 2 is there twice"),
    "no seconds": (
        "loss,seconds",
        "loss,second",
        "no rows of layers, data, norm, batch, seed, fig",
    ),
    "another study's": ("norm,batch,", "norm,depth,", "no rows of layers"),
    "text for a figure": (FIRST, FIRST.replace("0.6", "good"), "row 1: accuracy cannot be 'good'"),
    "no figure": (FIRST, FIRST.replace("0.6", ""), "other figures than another seed's"),
    "text for a seed": (FIRST, FIRST.replace(",0,", ",x,"), "seed cannot be 'x'"),
    "half a seed": (FIRST, FIRST.replace(",0,", ",0.5,"), "seed cannot be 0.5"),
    "text for a batch": (FIRST, FIRST.replace(",2,", ",two,"), "batch cannot be 'two'"),
    "a number for a norm": (FIRST, FIRST.replace("batch", "3"), "norm cannot be 3"),
    "an unknown norm": (FIRST, FIRST.replace("batch", "bach"), "norm cannot be 'bach'"),
    "unknown layers": (FIRST, FIRST.replace("momentnorm", "nobody"), "layers cannot be 'nobody'"),
    "no text": (FIRST, "\udcff", "can't decode"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_csv_is_refused(damage, tmp_path):
    plant(tmp_path, "batch-size", batch_size_rows(AS_CLAIMED))
    path = tmp_path / "studies" / "batch-size.csv"
    before, after, says = DAMAGES[damage]
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), errors="surrogateescape")
    with pytest.raises(StudyError, match=f"not a study's results .*{says}.*--restart"):
        page(tmp_path)


def test_other_things_in_place_of_a_csv(tmp_path, capsys):
    plant(tmp_path, "batch-size", batch_size_rows(AS_CLAIMED))
    path = tmp_path / "studies" / "batch-size.csv"
    heading = path.read_text().splitlines()[0]
    for text in ("", "\n", heading):
        path.write_text(text)
        with pytest.raises(StudyError, match="no rows"):
            page(tmp_path)
    path.unlink()
    path.mkdir()
    assert main(["study", "--page", "-o", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "directory" in err


@pytest.mark.parametrize(
    ("name", "value"), [("settings", 3), ("versions", ["torch"]), ("setting", None), ("machine", 1)]
)
def test_a_damaged_json_is_refused(name, value, tmp_path):
    plant(tmp_path, "batch-size", batch_size_rows(AS_CLAIMED))
    path = tmp_path / "studies" / "batch-size.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(StudyError, match=r"not a study's settings.*--restart"):
        page(tmp_path)


def test_figures_are_drawn_from_the_csv_and_the_same_each_time(tmp_path):
    plant(tmp_path, "batch-size", batch_size_rows(AS_CLAIMED))
    assert write_page(tmp_path) == tmp_path / "studies.md"
    svg = tmp_path / "studies" / "batch-size.svg"
    first = svg.read_bytes()
    write_page(tmp_path)
    assert svg.read_bytes() == first
    plant(tmp_path, "batch-size", batch_size_rows(AGAINST))
    write_page(tmp_path)
    assert svg.read_bytes() != first


def test_values_read_as_what_they_are():
    assert [read_value(text) for text in ("2", "0.5", "nan", "batch", "")][:2] == [2, 0.5]
    assert read_value("batch") == "batch"
    assert read_value("") == ""


def test_the_page_that_is_committed_is_what_the_csvs_say():
    assert (DOCS / "studies.md").read_text() == page(DOCS)
    for study in STUDIES.values():
        assert f"## {study.title}" in page(DOCS)
        assert (DOCS / "studies" / f"{study.name}.svg").exists()
