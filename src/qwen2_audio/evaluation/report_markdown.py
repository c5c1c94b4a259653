"""A report in Markdown, for GitHub and for people who read it as it is."""

from __future__ import annotations

import re

from qwen2_audio.evaluation.document import Block, Cell, Chart, Section, Table, Text, printable


def markdown(section: Section, level: int = 1) -> str:
    """A section and all below it; charts are linked as NAME.png."""
    parts = [f"{'#' * level} {_escaped(section.title)}", *(_block(block, level) for block in section.blocks)]
    return "\n\n".join(parts) + ("\n" if level == 1 else "")


def table(content: Table) -> str:
    """A table by itself; this run's rows are bold."""
    lines = ["| " + " | ".join(map(_escaped, content.head)) + " |"]
    lines.append("|" + "|".join(" --- " if i in content.texts else " ---: " for i in range(len(content.head))) + "|")
    for number, row in enumerate(content.rows):
        cells = [_cell(cell) for cell in row]
        if number in content.ours:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _block(block: Block, level: int) -> str:
    match block:
        case Section():
            return markdown(block, level + 1)
        case Table():
            return table(block)
        case Chart():
            return f"![{_escaped(block.title)}]({block.name}.png)\n\n{_escaped(block.caption)}"
        case Text():
            return _escaped(block.text)


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _escaped(cell)
    return "".join(_bold(_escaped(span.text)) if span.differs else _escaped(span.text) for span in cell)


def _bold(text: str) -> str:
    """Spaces stay outside, where Markdown wants them."""
    inside = text.strip()
    return text.replace(inside, f"**{inside}**", 1) if inside else text


def _escaped(text: str) -> str:
    """Text that means nothing to Markdown or HTML; what means nothing anyway, as "_" within a word or "< 1", stays readable."""
    return re.sub(r"[\\`*{}\[\]|~$]|<(?=[a-zA-Z/!?])|&(?=[\w#])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable(text))
