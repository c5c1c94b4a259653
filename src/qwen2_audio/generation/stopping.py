"""Stop strings in a growing text: nothing that might become a stop string is shown before that is decided."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Watches text as it grows. `text` is all that has been let through."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add text; returns what can be shown now. Once `stopped` is set, everything from the stop string on is gone."""
        if self.stopped:
            return ""
        held = self._held + piece
        hits = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if hits:
            self.stopped = True
            return self._show(held[: min(hits)], "")
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        return self._show(held[: len(held) - keep], held[len(held) - keep :])

    def finish(self) -> str:
        """The text is over: let go of what was held back."""
        return self._show(self._held, "")

    def _show(self, piece: str, held: str) -> str:
        self._held = held
        self.text += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
