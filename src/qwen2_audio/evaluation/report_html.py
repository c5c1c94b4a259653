"""A report as one HTML file: no script, no font, no style from elsewhere; the charts stand in it as SVG."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape

from qwen2_audio.evaluation.document import Block, Cell, Chart, Section, Table, Text, printable

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.8rem; }}
h2 {{ margin-top: 3rem; border-bottom: 1px solid #ccc; }}
h3 {{ margin-top: 2rem; }}
.scroll, figure {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ padding: 0.3rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; }}
th {{ border-bottom: 2px solid #888; }}
.text {{ text-align: left; overflow-wrap: anywhere; }}
.ours {{ background: #fdeee3; font-weight: bold; }}
mark {{ background: #ffd9b8; padding: 0 0.1em; }}
figure {{ margin: 1.5rem 0; }}
figure svg {{ max-width: 100%; height: auto; }}
figcaption {{ color: #555; font-size: 0.9rem; max-width: 50rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def html(section: Section, charts: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        charts: SVG files by the names of the charts.
    """
    return _PAGE.format(title=_escaped(section.title), body=_section(section, charts, 1))


def _section(section: Section, charts: Mapping[str, str], level: int) -> str:
    blocks = "\n".join(_block(block, charts, level) for block in section.blocks)
    return f"<section>\n<h{level}>{_escaped(section.title)}</h{level}>\n{blocks}\n</section>"


def _block(block: Block, charts: Mapping[str, str], level: int) -> str:
    match block:
        case Section():
            return _section(block, charts, level + 1)
        case Table():
            return _table(block)
        case Chart():
            return f"<figure>\n{_svg(block, charts)}\n<figcaption>{_escaped(block.caption)}</figcaption>\n</figure>"
        case Text():
            return f"<p>{_escaped(block.text)}</p>"


def _table(table: Table) -> str:
    kinds = [' class="text"' if i in table.texts else "" for i in range(len(table.head))]
    head = "".join(f"<th{kind}>{_escaped(text)}</th>" for kind, text in zip(kinds, table.head, strict=True))
    lines = ['<div class="scroll"><table>', f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for number, row in enumerate(table.rows):
        cells = "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        ours = ' class="ours"' if number in table.ours else ""
        lines.append(f"<tr{ours}>{cells}</tr>")
    return "\n".join([*lines, "</tbody>", "</table></div>"])


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _escaped(cell)
    return "".join(f"<mark>{_escaped(span.text)}</mark>" if span.differs else _escaped(span.text) for span in cell)


def _svg(chart: Chart, charts: Mapping[str, str]) -> str:
    """The SVG file as an element of the page: nothing before it, no metadata, ids that no other chart has."""
    svg = charts[chart.name]
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'( id="| href="#|url\(#)', rf"\g<1>{chart.name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{_escaped(chart.title)}"', 1).strip()


def _escaped(text: str) -> str:
    return escape(printable(text))
