"""The page of a folder of results: every word of judgement on it comes from the CSVs."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

from ..stylize.images import whole_file
from .catalogue import STUDIES
from .errors import StudyError
from .layers import LABELS
from .record import read_results
from .results import MissingError, Results, Sample, agree
from .runner import BOTH, SEEDS
from .study import VERDICTS, AnyStudy
from .tables import Table

#: Of results and page, within the folder that the user names.
FOLDER = "studies"
PAGE = "studies.md"

_INTRODUCTION = """\
# Studies

What is often said of these norms, tried with small networks on images that come inside packages.
This page is written by `momentnorm study` from the CSV files beside it. No verdict is typed: each
claim has a criterion, stated with it, and the figures decide. A figure is the mean over the seeds
± their standard deviation (of n - 1), which is the spread. "Does not at this scale" says what was
found here, not that the claim is wrong.
"""


def write_page(out: Path) -> Path:
    """Draw every study in the folder, and write the page of all of them.

    Raises:
        StudyError: there is none, or its files cannot be read.
    """
    text = page(out)
    for study in found_in(out):
        _, results = read_results(out / FOLDER, study)
        study.draw(_judged(results), out / FOLDER)
    with whole_file(out / PAGE) as file:
        file.write(text.encode())
    return out / PAGE


def found_in(out: Path) -> list[AnyStudy]:
    """The studies with results in a folder."""
    return [s for s in STUDIES.values() if (out / FOLDER / f"{s.name}.csv").exists()]


def page(out: Path) -> str:
    """The page's Markdown, a function of the files in the folder."""
    studies = found_in(out)
    if not studies:
        raise StudyError(f"{out / FOLDER}: no results in it; run a study first")
    folder = out / FOLDER
    sections = [section(study, folder) for study in studies]
    return "\n".join([_INTRODUCTION, _summary(studies, folder), *sections])


def _summary(studies: list[AnyStudy], folder: Path) -> str:
    """How many claims of each study came out how."""
    rows = []
    for study in studies:
        known, results = read_results(folder, study)
        judged = _judged(results)
        words = collections.Counter(c.verdict(judged)[0] for c in study.claims(judged))
        counts = [str(words[verdict]) for verdict in VERDICTS]
        rows.append([f"[{study.title}](#{_anchor(study.title)})", known["setting"], *counts])
    return Table("", ["study", "setting", *VERDICTS], rows).markdown()


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def section(study: AnyStudy, folder: Path) -> str:
    """One study's part of the page."""
    known, results = read_results(folder, study)
    judged = _judged(results)
    parts = [f"## {study.title}\n", study.text + "\n", _conditions(study, known, results)]
    claims = [[c.text, *c.verdict(judged), c.criterion] for c in study.claims(judged)]
    verdicts = [[text, f"**{word}**", figures, when] for text, word, figures, when in claims]
    heading = ["claim", "verdict", "figures", "counts as reproduced if"]
    parts.append(Table("", heading, verdicts).markdown())
    parts.append(f"![{study.title}]({FOLDER}/{study.name}.svg)\n")
    for norm, label in LABELS.items():
        picture = f"{study.name}-{norm}.jpg"
        if (folder / picture).exists():
            parts.append(f"![{study.title}, {label}]({FOLDER}/{picture})\n")
    parts += [table.markdown() for table in study.tables(judged)]
    if len(results.distinct("layers")) > 1:
        parts.append(_comparison(study, results))
    return "\n".join(parts)


def _judged(results: Results) -> Results:
    """The finished seeds of momentnorm's layers, where there are any."""
    kinds = results.distinct("layers")
    return results.where(layers="momentnorm" if "momentnorm" in kinds else kinds[0]).whole()


def _conditions(study: AnyStudy, known: dict[str, Any], results: Results) -> str:
    settings, versions = known["settings"], known["versions"]
    seeds = sorted(_judged(results).distinct("seed"), key=float)
    option = " --quick" if known["setting"] == "quick" else ""
    kinds = results.distinct("layers")
    layers = kinds[0] if len(kinds) == 1 else BOTH
    option += f" --layers {layers}" if layers != "momentnorm" else ""
    option += f" --seeds {len(seeds)}" if len(seeds) != SEEDS else ""
    lines = [
        f"    momentnorm study {study.name}{option} -o OUT\n",
        f"The **{known['setting']}** setting, with seeds {', '.join(map(str, seeds))}. "
        f"Settings: {_settings_text(settings)}. "
        f"{known['machine']}, threads: {known['threads']}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
    ]
    for kind in kinds:
        rows = results.where(layers=kind).whole().rows
        seconds = sum(float(row["seconds"]) for row in rows)
        lines.append(
            f"With {kind}'s layers {len(rows)} trainings took {seconds:.0f} s of one core."
        )
    return "\n".join(lines) + "\n"


def _settings_text(settings: dict[str, Any]) -> str:
    parts = []
    for name, value in settings.items():
        if isinstance(value, dict):
            shown = f"({_settings_text(value)})"
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
        parts.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def _comparison(study: AnyStudy, results: Results) -> str:
    """Whether torch's layers say the same, and how long each took for the same cells."""
    names = list(results.rows[0])
    names = names[1 : names.index("seed")]  # between the layers and the seed: the cell's keys
    both: list[tuple[Sample, Sample]] = []
    seconds = dict.fromkeys(("momentnorm", "torch"), 0.0)
    finished = [set(results.where(layers=kind).whole().distinct("seed")) for kind in seconds]
    shared = Results([row for row in results.rows if row["seed"] in set.intersection(*finished)])
    for cell in dict.fromkeys(tuple(row[name] for name in names) for row in shared.rows):
        here = shared.where(**dict(zip(names, cell, strict=True)))
        try:
            pair = [here.sample(study.metric, layers=kind) for kind in seconds]
        except MissingError:  # no such layer in torch, or not yet computed
            continue
        both.append((pair[0], pair[1]))
        for kind in seconds:
            seconds[kind] += sum(float(row["seconds"]) for row in here.where(layers=kind).rows)
    same = sum(agree(ours, theirs) for ours, theirs in both)
    return (
        f"With torch's layers instead: in {same} of the {len(both)} cells that have both, the "
        f"means ({study.metric}) differ by no more than the two spreads together. These cells took "
        f"{seconds['torch']:.0f} s with torch's layers and {seconds['momentnorm']:.0f} s with "
        "momentnorm's.\n"
    )
