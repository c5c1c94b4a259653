"""What visitors show: heard as the model hears it, drawn, held as long as somebody wants it."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError
from qwen2_audio.longform.segments import Segment
from qwen2_audio.processing.conversation import AudioPart
from qwen2_audio.processing.windows import cut_windows
from qwen2_audio.serving.ui.bubbles import clip_card
from qwen2_audio.serving.ui.clips import Clips, new_clip
from qwen2_audio.serving.ui.picture import COLUMNS, TONE_ROWS, WAVE_ROWS, picture
from qwen2_audio.serving.ui.texts import texts
from qwen2_audio.serving.ui.transcribing import _gone
from qwen2_audio.serving.ui.transcript import Transcript
from tests.tiny import sound
from tests.ui.clips import clip, hearing_of


def test_names_of_recordings_are_no_markup() -> None:
    card = clip_card(clip(name='"><img src=x onerror=alert(1)>'), texts("en"))
    assert "<img src=x" not in card and "&lt;img src=x" in card


def test_what_is_not_whole_is_said() -> None:
    damaged = new_clip(AudioPart((sound(1.0), SAMPLE_RATE)), "a.mp3", ["<a.mp3> is damaged in one place, left out"])
    assert "&lt;a.mp3&gt; is damaged in one place, left out" in clip_card(damaged, texts("en"))
    lost = Segment(1.5, 2.0, "", "length")
    transcript = Transcript("a", told=["the file is damaged"], cut=[lost], seconds=3.0)
    shown = _gone(transcript, texts("en"))
    assert "the file is damaged" in shown and "cut short at 1.5 s" in shown


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"gone\.wav is no longer here; attach it again"):
        asyncio.run(hearing_of().files([str(tmp_path / "gone.wav")]))


def test_clips_that_nobody_claims_go() -> None:
    clips, clock = Clips(), time.monotonic()
    token = clips.wait(clip()).token
    assert clips.get(token) is not None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "monotonic", lambda: clock + 200)
        clips.sweep()
    assert clips.get(token) is None


def test_clips_live_as_long_as_somebody_holds_them() -> None:
    clips = Clips()
    waiting, token = clips.wait(clip()), ""
    token = waiting.token
    del waiting
    assert clips.get(token) is clips.claim(token)
    assert clips.get(token) is None  # nobody holds it any more
    with pytest.raises(AudioError, match="record it again"):
        clips.claim(token)


def test_a_clip_is_what_the_model_hears() -> None:
    long = clip(61.0)
    assert (long.windows, round(long.seconds)) == (3, 61)
    quiet = sound(59.0)
    for second in (21, 44):
        quiet[second * SAMPLE_RATE :][: SAMPLE_RATE // 2] = 0.0
    paused = new_clip(AudioPart((quiet, SAMPLE_RATE)), "a.wav")
    heard = [piece.shape[0] for piece in cut_windows(quiet)]
    assert paused.windows == len(heard) == 3 and clip(30.0).windows == 1
    np.testing.assert_allclose(np.diff([0.0, *paused.cuts, 1.0]) * quiet.shape[0], heard)
    samples, rate = soundfile.read(io.BytesIO(long.wav()), dtype="float32")
    assert rate == SAMPLE_RATE and np.abs(samples - long.samples).max() < 1e-4


def test_pictures_show_loudness_pitch_and_cuts() -> None:
    from PIL import Image

    tone = np.sin(2 * np.pi * 2000 * np.arange(16_000) / 16_000).astype(np.float32)
    tone[8000:] = 0
    opacity = np.asarray(Image.open(io.BytesIO(picture(tone, (0.75,)))).convert("RGBA"))[..., 3].astype(float)
    assert opacity.shape == (WAVE_ROWS + TONE_ROWS, COLUMNS)
    assert opacity[:, :300].mean() > 3 * opacity[:, 340:450].mean()
    row = int(opacity[WAVE_ROWS:, 100].argmax())
    assert abs(row - (1 - np.log(2000 / 60) / np.log(8000 / 60)) * TONE_ROWS) < 3
    assert opacity[:, 480].mean() > 5 * opacity[:, 500].mean()  # the cut
    assert picture(np.zeros(400, np.float32), ())[:4] == b"\x89PNG"
