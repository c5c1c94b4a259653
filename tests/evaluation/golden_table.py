"""The golden tables: what people write, and what a normaliser makes of it, beside each other in a file."""

from __future__ import annotations

from pathlib import Path


def golden(name: str) -> list[tuple[str, str]]:
    """The (text, normalised) pairs of `golden/<name>.tsv`; spaces at the ends and doubled ones are not kept there."""
    header, *lines = Path(__file__).with_name("golden").joinpath(f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    if header != "kind\ttext\tnormalised":
        raise ValueError(f"{name}.tsv begins with {header!r}")
    rows = [line.split("\t") for line in lines]
    return [(text, normalised) for _, text, normalised in rows]


def spaced(text: str) -> str:
    """With single spaces, and none at the ends."""
    return " ".join(text.split())
