"""The page of a certificate: the verdict, every row with its margin, and plots."""

import html
import itertools
import math
from pathlib import Path

from sciml.evaluate.html import image, page, section
from sciml.evaluate.verify import curves
from sciml.evaluate.verify.certificate import LAWS, Certificate, Row, condensed, number
from sciml.files import write_text

STYLE = """
.verdict { display: flex; gap: 1rem; flex-wrap: wrap; margin: 1.2rem 0 }
.card { flex: 1 1 9rem; border-radius: 8px; padding: .7rem 1rem; background: #f6f6f4 }
.card b { display: block; font-size: 1.7rem; line-height: 1.2 }
.pass { color: #2b7a4b } .fail { color: #b3261e } .information { color: #8a6a10 } .not { color: #777 }
.card.failed { background: #fbe9e7 } .card.passed { background: #e8f3ec }
table { border-collapse: collapse; width: 100%; font-size: .85rem; margin-bottom: 1rem }
th { text-align: left; font-weight: 600; border-bottom: 1px solid #bbb } td, th { padding: .22rem .5rem }
td { border-bottom: 1px solid #eee; vertical-align: top }
td.n { white-space: nowrap; font-variant-numeric: tabular-nums }
h3 { font-size: 1rem } summary { cursor: pointer; color: #3b6fb6 }
.law { font-weight: 600; background: #fafaf8 } .law .note { font-weight: 400 }
.bar { position: relative; width: 8rem; height: .55rem; background: #ecece8; border-radius: 3px; margin-top: .4rem }
.bar i { position: absolute; top: 0; bottom: 0; left: 0; border-radius: 3px }
.bar u { position: absolute; top: -3px; bottom: -3px; width: 1.5px; background: #222 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .85rem }
dt { color: #666 } dd { margin: 0 }
"""
COLUMNS = ("output", "", "value", "tolerance", "margin", "verdict", "worst on")
BELOW, ABOVE = 9, 3  # decades of a bar below and above the tolerance
COLOUR = {"pass": "#3f8f5b", "fail": "#c0392b", "information": "#c9a227", "not applicable": "#999"}
PLOTS = (
    ("nve", "Energy over time", curves.energy_over_time),
    ("dimer", "Dimers through the cutoff", curves.dimers),
    ("boost", "Invariance under boosts", curves.boosts),
    ("safety", "Soft and collinear limits", curves.limits),
)


def write_page(certificate: Certificate, path: Path) -> Path:
    """Write the page, without outside files; returns its path."""
    parts = [_headline(certificate), section("Laws", _summary(certificate))]
    for key, title, draw in PLOTS:
        if certificate.curves.get(key):
            parts.append(section(title, image(draw(certificate.curves[key]), title)))
    parts.append(section("What was certified", _facts(certificate)))
    parts.append(section("Every row", f"<details><summary>show</summary>{_rows(certificate)}</details>"))
    write_text(path, page(f"Certificate of {_name(certificate)}", "".join(parts), STYLE))
    return path


def _name(certificate: Certificate) -> str:
    path = Path(certificate.facts["package"])
    return path.parent.name if path.name == "package" else path.name


def _headline(certificate: Certificate) -> str:
    failed = certificate.failed
    word = "obeys every law that it claims" if not failed else f"breaks {', '.join(failed)}"
    cards = [f'<div class="card {"failed" if failed else "passed"}"><b class="{"fail" if failed else "pass"}">']
    cards[0] += f"{'FAIL' if failed else 'PASS'}</b>this model {html.escape(word)}</div>"
    for verdict in ("pass", "fail", "information", "not applicable"):
        style = verdict.partition(" ")[0]
        cards.append(f'<div class="card"><b class="{style}">{certificate.count(verdict)}</b>{verdict}</div>')
    title = html.escape(_name(certificate))
    return f'<h1>Physics certificate: {title}</h1><div class="verdict">{"".join(cards)}</div>'


def _summary(certificate: Certificate) -> str:
    """Every law with its row nearest to the tolerance, per precision."""
    body = []
    for law, rows in itertools.groupby(condensed(certificate.sorted()), key=lambda pair: pair[0].law):
        body.append(_law(law, certificate.failed))
        body += [_row(row, others) for row, others in rows]
    return _table(body)


def _table(body: list[str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _rows(certificate: Certificate) -> str:
    """A table per group of laws."""
    tables = []
    for group, rows in itertools.groupby(certificate.sorted(), key=lambda row: LAWS[row.law].group):
        body = []
        for law, of_law in itertools.groupby(rows, key=lambda row: row.law):
            body.append(_law(law, certificate.failed))
            body += [_row(row) for row in of_law]
        tables.append(f"<h3>{html.escape(group.capitalize())}</h3>{_table(body)}")
    return "".join(tables)


def _law(name: str, failed: list[str]) -> str:
    law = LAWS[name]
    causes = [other for other in failed if name in LAWS[other].consequences] if name in failed else []
    because = f" (may follow from: {', '.join(causes)})" if causes else ""
    text = f'{html.escape(name)} <span class="note">{html.escape(law.statement + because)}</span>'
    return f'<tr><td colspan="{len(COLUMNS)}" class="law">{text}</td></tr>'


def _row(row: Row, others: int = 0) -> str:
    """A row; ``others`` is how many it stands for."""
    subject = html.escape(row.subject) + (f' <span class="note">and {others} more</span>' if others else "")
    style = row.verdict.partition(" ")[0]
    worst = " · ".join(filter(None, (row.worst, row.inputs, row.note)))
    unit = f" {row.unit}" if row.unit else ""
    value = f"{number(row.value)}{unit}" if row.value is not None else ""
    cells = (
        f"<td>{subject}</td><td>{row.precision}</td>"
        f'<td class="n">{html.escape(value)}</td><td class="n">{number(row.tolerance)}</td><td>{_bar(row)}</td>'
        f'<td class="n {style}">{row.verdict}</td><td class="note">{html.escape(worst)}</td>'
    )
    return f"<tr>{cells}</tr>"


def _bar(row: Row) -> str:
    """The value on a logarithmic scale; the mark is the tolerance."""
    if row.value is None or row.tolerance is None:
        return ""
    ratio = row.value / row.tolerance if row.tolerance else (0.0 if row.value == 0 else math.inf)
    decades = ABOVE if math.isnan(ratio) else math.log10(ratio) if ratio > 0 else -BELOW
    share = min(max((decades + BELOW) / (BELOW + ABOVE), 0.02), 1.0)
    mark = 100 * BELOW / (BELOW + ABOVE)
    colour = COLOUR[row.verdict]
    filled = f'<i style="width:{100 * share:.0f}%;background:{colour}"></i>'
    return f'<div class="bar">{filled}<u style="left:{mark:.0f}%"></u></div>'


def _facts(certificate: Certificate) -> str:
    lines = []
    for name, value in certificate.facts.items():
        if isinstance(value, dict):
            value = "; ".join(
                f"{key}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in value.items()
            )
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        lines.append(f"<dt>{html.escape(name.replace('_', ' '))}</dt><dd>{html.escape(str(value))}</dd>")
    return f"<dl>{''.join(lines)}</dl>"
