"""What the data doctor found as one HTML page: tables, plots, every finding with its rows; nothing is loaded by it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lora_ft.assemble.examination import Examination, SplitReport
from lora_ft.data.doctor.findings import SEVERITIES, Finding
from lora_ft.evaluate.svg import bars, histogram

MOST_LABELS = 30
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#1c2530;background:#fff}
table{border-collapse:collapse;margin:1rem 0;width:100%}th,td{padding:.35rem .6rem;border-bottom:1px solid #d9dfe6;
text-align:left;vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
details{border:1px solid #d9dfe6;border-left-width:6px;border-radius:4px;margin:.6rem 0;padding:.5rem .8rem}
details.error{border-left-color:#b3261e}details.warning{border-left-color:#b26a00}details.note{border-left-color:#5b7a99}
summary{cursor:pointer}summary b{margin-right:.6rem}blockquote{margin:.3rem 0;padding:.2rem .8rem;background:#f3f5f8;
white-space:pre-wrap;overflow-wrap:anywhere}code{background:#f3f5f8;padding:0 .2rem}.rows{overflow-wrap:anywhere}
.plots{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:.5rem 0}figcaption{color:#5a6675;font-size:13px}
svg{max-width:100%;height:auto;font:11px system-ui,sans-serif;fill:#1c2530}svg rect{fill:#4a7fb5}
svg line.mark{stroke:#b3261e;stroke-width:1.5}svg text.mark{fill:#b3261e}svg text.tick{fill:#5a6675}
@media(prefers-color-scheme:dark){body{background:#15191e;color:#dde3ea}th,td,details{border-color:#36404b}
blockquote,code{background:#222931}svg{fill:#dde3ea}}
"""


def data_page(examination: Examination) -> str:
    """The page as one text; styles and plots are in it."""
    title = f"{examination.recipe}: data"
    worst = [f"{sum(one.severity == kind for one in examination.findings)} {kind}s" for kind in SEVERITIES]
    found = "".join(
        _finding(finding, examination, excerpts)
        for finding, excerpts in zip(examination.findings, examination.excerpts, strict=True)
    )
    lengths = ""
    if examination.max_length is not None:
        lengths = (
            f"<p>max_length is {examination.max_length}; {examination.suggested} would leave 99 % of the training "
            "rows whole.</p>"
        )
    prepared = "".join(f"<p>{escape(count.line())}</p>" for count in examination.prepared)
    off = f"<p>Turned off in the recipe: {escape(', '.join(examination.off))}.</p>" if examination.off else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1><p>{escape(examination.task)}; {', '.join(worst)}; looked at in "
        f"{examination.seconds:.1f} s.</p>{prepared}<h2>Splits</h2>{_splits(examination)}{lengths}"
        f"{''.join(_plots(name, one, examination) for name, one in examination.splits.items())}"
        f"<h2>Findings</h2>{found or '<p>Nothing is wrong.</p>'}{off}</body></html>\n"
    )


def _splits(examination: Examination) -> str:
    heads = "".join(
        f"<th class=n>{name}</th>"
        for name in ("rows", "bad rows", "characters: median, 95 %, max", "tokens: median, 95 %, max", "too long")
    )
    rows = []
    for name, one in examination.splits.items():
        spreads = [
            "" if spread is None else f"{spread.median}, {spread.most_rows}, {spread.most}"
            for spread in (one.characters, one.tokens)
        ]
        cells = (str(one.rows), str(one.bad), *spreads, "" if one.longer is None else f"{one.longer / one.rows:.1%}")
        rows.append(f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>")
    return f"<table><tr><th>split</th>{heads}</tr>{''.join(rows)}</table>"


def _plots(name: str, report: SplitReport, examination: Examination) -> str:
    """Labels and lengths of one split."""
    labels = list(report.labels.items())
    rest = sum(count for _, count in labels[MOST_LABELS:])
    shown = [*labels[:MOST_LABELS], *([(f"{len(labels) - MOST_LABELS} more", rest)] if rest else [])]
    plots = [("rows of each label", bars(shown))] if shown else []
    if report.tokens is not None:
        line = examination.max_length
        drawn = histogram(report.tokens.edges, report.tokens.counts, line=line, line_name=f"max_length {line}")
        plots.append(("tokens of a row", drawn))
    if report.characters is not None:
        plots.append(("characters of a row", histogram(report.characters.edges, report.characters.counts)))
    figures = "".join(f"<figure>{plot}<figcaption>{what}</figcaption></figure>" for what, plot in plots)
    return f'<h3>{escape(name)}</h3><div class="plots">{figures}</div>' if figures else ""


def _finding(finding: Finding, examination: Examination, excerpts: Sequence[str]) -> str:
    quotes = "".join(f"<blockquote>{escape(text)}</blockquote>" for text in excerpts)
    where = f'<p class="rows">{escape(examination.places(finding))}</p>' if len(finding.rows) else ""
    opened = " open" if finding.severity == "error" else ""
    return (
        f'<details class="{finding.severity}"{opened}><summary><b>{escape(finding.name)}</b>{escape(finding.split)}: '
        f"{finding.count} of {finding.of} ({finding.share:.1%})</summary><p>{escape(finding.told)}.</p>"
        f"<p>What to do: {escape(finding.remedy)}.</p>{where}{quotes}</details>"
    )
