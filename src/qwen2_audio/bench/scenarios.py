"""What is asked of both sides. No tensors here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["batch", "shared", "turns", "crowd"]
INSTRUCTION = "What is said?"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Answers of exactly `tokens` tokens each, greedily.

    Attributes:
        seconds: length of each stream's clip.
        kind: "batch": all at once, one clip each; "shared": several questions about one clip, one after the other; "turns": a
            chat, its clip in the first turn, each turn's prompt holding all before; "crowd": as batch, through the serving
            engine, which takes up and lets go of streams as they come and end.
    """

    seconds: tuple[float, ...]
    tokens: int
    kind: Kind = "batch"

    @property
    def name(self) -> str:
        alike = len(set(self.seconds)) == 1
        span = f"{self.seconds[0]:g} s" if alike else f"{min(self.seconds):g} to {max(self.seconds):g} s"
        of = {
            "batch": "clips of",
            "crowd": "streams of",
            "shared": "questions, one clip of",
            "turns": "turns, a clip of",
        }
        if len(self.seconds) == 1:
            return f"a clip of {span}"
        return f"{len(self.seconds)} {of[self.kind]} {span}"


MIXED = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0)


def standard(tokens: int, *, quick: bool = False, clips: Sequence[float] = (), streams: int = 1) -> list[Scenario]:
    """The report's scenarios; `quick`: single clips and batches; `clips`: clips of so many seconds, `streams` each."""
    lengths = (2.0, 5.0, 15.0) if quick else (2.0, 5.0, 15.0, 30.0)
    if clips:
        return [Scenario((seconds,) * streams, tokens) for seconds in clips]
    chosen = [Scenario((seconds,), tokens) for seconds in lengths]
    chosen += [Scenario(MIXED, tokens), Scenario(MIXED * 2, tokens)]
    if not quick:
        chosen += [Scenario((5.0,) * 8, tokens), Scenario((5.0,), 4 * tokens)]
        chosen += [Scenario((10.0,) * 3, tokens, "shared"), Scenario((5.0,) * 4, tokens, "turns")]
        chosen += [Scenario(MIXED * 2, tokens, "crowd")]
    return chosen
