"""HTML: a trace as a table for notebooks, or as a page that loads no other file."""

from __future__ import annotations

from html import escape

from .layout import Table, heading, layout, worked
from .steps import Step
from .trace import Trace

#: Style of the table. Its colours follow those of the page around it, light or dark.
_STYLE = """
.momentnorm-trace { font: 14px/1.45 system-ui, sans-serif; text-align: left; }
.momentnorm-trace > table { border-collapse: collapse; width: 100%; }
.momentnorm-trace > table > tbody > tr > td, .momentnorm-trace > table > tbody > tr > th {
  border-top: 1px solid color-mix(in srgb, currentColor 22%, transparent);
  padding: 8px 12px 8px 0; text-align: left; vertical-align: top; background: none; }
.momentnorm-trace th.part { font-size: 17px; padding-top: 22px; border-top-width: 2px; }
.momentnorm-trace .step { font: bold 14px ui-monospace, monospace; overflow-wrap: anywhere; }
.momentnorm-trace .small { opacity: .75; font-size: 12.5px; }
.momentnorm-trace code { font: 13px ui-monospace, monospace; background: none; color: inherit; }
.momentnorm-trace .tables { display: flex; flex-wrap: wrap; gap: 8px 26px; }
.momentnorm-trace .tables table { border-collapse: collapse; margin: 0; width: auto; }
.momentnorm-trace .tables caption { caption-side: top; text-align: left; padding: 0;
  font-size: 12.5px; opacity: .75; color: inherit; white-space: nowrap; }
.momentnorm-trace .tables td, .momentnorm-trace .tables th { padding: 1px 6px; text-align: right;
  font: 13px ui-monospace, monospace; font-variant-numeric: tabular-nums; background: none;
  border: 1px solid color-mix(in srgb, currentColor 16%, transparent); }
.momentnorm-trace .tables th { font: 12.5px system-ui, sans-serif; opacity: .75; border: 0; }
"""


def fragment(trace: Trace, precision: int = 4) -> str:
    """Table of the steps of a trace, with name and shape, formula, and values in each row."""
    rows = []
    part = ""
    for step in trace.steps:
        if step.part != part:
            part = step.part
            rows.append(f'<tr><th class="part" colspan="3" scope="colgroup">{part}</th></tr>')
        rows.append(_row(step, precision))
    notes = "".join(f"<p>Note: {escape(note)}</p>" for note in trace.notes)
    checks = "".join(f"<li>{escape(check.text)}</li>" for check in trace.checks)
    return (
        f'<div class="momentnorm-trace"><style>{_STYLE}</style>'
        f"<p><code>{escape(trace.layer)}</code><br>{escape(trace.summary)}</p>{notes}"
        f"<table><tbody>{''.join(rows)}</tbody></table><p>Checked:</p><ul>{checks}</ul></div>"
    )


def page(trace: Trace, precision: int) -> str:
    """Whole page of a trace, which loads no other file."""
    name = escape(trace.layer.partition("(")[0])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}, step by step</title>"
        "<style>:root { color-scheme: light dark; } "
        "body { font-family: system-ui, sans-serif; max-width: 1100px; margin: 24px auto; "
        "padding: 0 16px; }</style></head>"
        f"<body><h1>{name}, step by step</h1>{fragment(trace, precision)}</body></html>\n"
    )


def _row(step: Step, precision: int) -> str:
    shown = layout(step, precision)
    tables = "".join(_table(table) for table in shown.tables)
    formula = f'<code title="{escape(step.latex)}">{escape(step.formula)}</code>'
    if step.worked is not None:
        formula += f'<br><span class="small">first: {escape(worked(step.worked, precision))}</span>'
    if step.note:
        formula += f'<br><span class="small">{escape(step.note)}</span>'
    omitted = f'<div class="small">{escape(shown.omitted)}</div>' if shown.omitted else ""
    return (
        f'<tr><td><span class="step">{escape(step.name)}</span><br>'
        f'<span class="small">{escape(heading(step))}</span></td><td>{formula}</td>'
        f'<td><div class="tables">{tables}</div>{omitted}</td></tr>'
    )


def _table(table: Table) -> str:
    rows = []
    if table.columns:
        corner = "<th></th>" if table.row_heads else ""
        heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.columns)
        rows.append(f"<tr>{corner}{heads}</tr>")
    for index, row in enumerate(table.rows):
        head = ""
        if table.row_heads:
            text = table.row_heads[index] if index < len(table.row_heads) else ""
            head = f'<th scope="row">{escape(text)}</th>'
        rows.append(f"<tr>{head}{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    return f"<table>{caption}{''.join(rows)}</table>"
