"""How a bad recording must be refused: one line that says what was wrong, what was given and what to do."""

from __future__ import annotations

import pytest

from qwen2_audio.errors import AudioError
from qwen2_audio.processing.audio import load_audio


def assert_refused(source: object, *words: str) -> None:
    with pytest.raises(AudioError) as caught:
        load_audio(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert ";" in message or "must" in message or "is (samples, rate)" in message, f"no advice in {message!r}"
