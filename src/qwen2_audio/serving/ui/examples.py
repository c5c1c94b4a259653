"""Ready examples: recordings made for this project, each with what to ask about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from qwen2_audio.serving.ui.clips import Clip, new_clip


@dataclass(frozen=True, slots=True)
class Example:
    """A card on the empty page.

    Attributes:
        name: its text is `example.NAME`, its question `example.NAME.ask` (none: the recordings speak for themselves).
        sounds: files of the folder `sounds`.
        icon: strokes of its figure, in a square of 24.
    """

    name: str
    sounds: tuple[str, ...]
    icon: str
    asks: bool = True

    def clips(self) -> tuple[Clip, ...]:
        """The recordings, decoded. Call it off the event loop."""
        return tuple(_clip(sound) for sound in self.sounds)


EXAMPLES = (
    Example("question", ("question.ogg",), "M4 5h16v11h-9l-4 4v-4H4z", asks=False),
    Example("speech", ("sentence.ogg",), "M5 4h14v16H5zM8 9h8M8 13h8M8 17h4"),
    Example("sound", ("sound.ogg",), "M6 16V11a6 6 0 0 1 12 0v5l2 2H4zM10 21h4"),
    Example(
        "music",
        ("music.ogg",),
        "M9 18V6l10-2v12M9 18a2.5 2.5 0 1 1-2.5-2.5A2.5 2.5 0 0 1 9 18zM19 16a2.5 2.5 0 1 1-2.5-2.5A2.5 2.5 0 0 1 19 16z",
    ),
    Example("compare", ("slow.ogg", "quick.ogg"), "M4 8v8M8 5v14M12 9v6M16 6v12M20 9v6"),
)


@lru_cache(maxsize=16)
def _clip(sound: str) -> Clip:
    from qwen2_audio.config import SAMPLE_RATE
    from qwen2_audio.processing.audio import load_audio
    from qwen2_audio.processing.conversation import AudioPart

    data = (files("qwen2_audio.serving.ui") / "sounds" / sound).read_bytes()
    return new_clip(AudioPart((load_audio(data), SAMPLE_RATE)), sound)
