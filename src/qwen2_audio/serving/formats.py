"""What a recording is by its first bytes, and whether that is what its sender calls it."""

from __future__ import annotations

from qwen2_audio.errors import AudioError

_FAMILIES: dict[str, tuple[str, ...]] = {
    "wav": ("wav", "wave", "x-wav"),
    "mp3": ("mp3", "mpeg", "mpga"),
    "flac": ("flac", "x-flac"),
    "ogg": ("ogg", "oga", "opus", "vorbis"),
    "webm": ("webm", "mkv", "matroska"),
    "mp4": ("mp4", "m4a", "mov", "aac", "3gp", "3gpp", "x-m4a"),
    "aac": ("aac", "adts"),
    "aiff": ("aif", "aiff", "aifc"),
    "au": ("au", "snd"),
    "caf": ("caf",),
    "amr": ("amr",),
    "wma": ("wma", "asf"),
}
"""A kind of file and what people call it."""
_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"RIFF", "wav"),
    (0, b"RF64", "wav"),
    (0, b"riff", "wav"),
    (0, b"ID3", "mp3"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"\x1a\x45\xdf\xa3", "webm"),
    (4, b"ftyp", "mp4"),
    (0, b"ADIF", "aac"),
    (0, b"FORM", "aiff"),
    (0, b".snd", "au"),
    (0, b"caff", "caf"),
    (0, b"#!AMR", "amr"),
    (0, b"\x30\x26\xb2\x75", "wma"),
)
"""Where, which bytes, and of what they are the beginning."""


def kind_of(data: bytes) -> str | None:
    """The kind of a sound file by its first bytes; None where they say nothing."""
    for place, start, kind in _STARTS:
        if data[place : place + len(start)] == start:
            return kind
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:  # a frame; without a layer it is aac
        return "mp3" if data[1] & 0x06 else "aac"
    return None


def check_format(data: bytes, said: str, name: str) -> None:
    """Refuse a recording that is not what its sender calls it: one of the two is a mistake.

    Raises:
        AudioError: `said` is no format, or that of another kind of file. "" says nothing.
    """
    if not said:
        return
    word = said.lower().removeprefix("audio/").removeprefix("video/").partition(";")[0].strip()
    kinds = [kind for kind, words in _FAMILIES.items() if word in words]
    if not kinds:
        known = ", ".join(words[0] for words in _FAMILIES.values())
        raise AudioError(f"{name}: there is no format {said[:40]!r}; give one of {known}")
    kind = kind_of(data)
    if kind is not None and kind not in kinds and not (kind == "mp3" and data[:3] == b"ID3"):  # tags go before anything
        raise AudioError(f"{name} is said to be {word}, but begins like {kind}; say format {kind!r}")
