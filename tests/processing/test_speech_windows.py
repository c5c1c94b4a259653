"""Windows of speech: nothing that is said is lost or heard twice, cuts lie in pauses, blocks do not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen2_audio.config import MIN_SAMPLES, SAMPLE_RATE
from qwen2_audio.errors import AudioError
from qwen2_audio.processing import speech_windows as module
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.speech_windows import SHORTEST_SPEECH, Window, runs, speech_mask, speech_windows
from qwen2_audio.processing.vad import CHUNK, VoiceActivity

SENTENCE = Path(__file__).parents[2] / "examples" / "sentence.flac"
Wave = NDArray[np.float32]


class LoudIsSpeech:
    """Stands in for the network: the probability of speech is a chunk's first sample."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)

    def push(self, samples: Wave) -> Wave:
        wave = np.concatenate([self._rest, samples])
        whole = len(wave) // CHUNK * CHUNK
        self._rest = wave[whole:]
        return wave[:whole:CHUNK].copy()

    def finish(self) -> Wave:
        return self._rest[:1]


@pytest.fixture(autouse=True)
def loud_is_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VoiceActivity", LoudIsSpeech)


def wave_of(*stretches: tuple[float, float], samples: int = 0) -> Wave:
    """Stretches of (loudness, seconds), to the nearest chunk, and so many loud samples behind them."""
    parts = [np.full(round(seconds * SAMPLE_RATE / CHUNK) * CHUNK, level) for level, seconds in stretches]
    return np.concatenate([*parts, np.full(samples, 0.9)]).astype(np.float32)


def seconds(window: Window) -> tuple[float, float]:
    return window.start / SAMPLE_RATE, window.end / SAMPLE_RATE


STRETCHES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.4, 0.6, 0.95]), st.floats(0.03, 4.0)), min_size=1, max_size=12
)


@given(STRETCHES, st.integers(0, 700), st.floats(1.0, 12.0))
def test_all_speech_lies_in_exactly_one_window(
    stretches: list[tuple[float, float]], samples: int, longest: float
) -> None:
    wave = wave_of(*stretches, samples=samples)
    found = list(speech_windows([wave], longest))
    covered = np.zeros(len(wave), int)
    for window in found:
        covered[window.start : window.end] += 1
        np.testing.assert_array_equal(window.samples, wave[window.start : window.end])
        assert window.seconds <= longest
        assert len(window.samples) >= MIN_SAMPLES
        assert window.start <= window.spoken[0] < window.spoken[1] <= window.end
    assert covered.max(initial=0) <= 1
    assert [window.start for window in found] == sorted(window.start for window in found)
    for start, end in runs(wave[::CHUNK] >= 0.5):
        if end - start >= SHORTEST_SPEECH:
            assert covered[start * CHUNK : end * CHUNK].all()


@given(STRETCHES, st.lists(st.integers(3000, 90_000), min_size=1, max_size=6), st.floats(1.0, 6.0))
def test_blocks_do_not_matter(stretches: list[tuple[float, float]], sizes: list[int], longest: float) -> None:
    wave = wave_of(*stretches, samples=100)
    blocks, at = [], 0
    while at < len(wave):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(wave[at : at + size])
        at += size
    whole, streamed = list(speech_windows([wave], longest)), list(speech_windows(blocks, longest))
    assert [(w.start, w.end, w.spoken, w.joined) for w in streamed] == [
        (w.start, w.end, w.spoken, w.joined) for w in whole
    ]


def test_silence_is_left_out_and_times_are_kept() -> None:
    (window,) = speech_windows([wave_of((0, 40), (1, 2), (0, 40))], 10.0)
    assert seconds(window) == pytest.approx((39.5, 42.5), abs=0.05)
    assert [at / SAMPLE_RATE for at in window.spoken] == pytest.approx([40, 42], abs=0.02)
    assert window.probability == 1.0
    assert list(speech_windows([wave_of((0, 40))], 10.0)) == []
    with pytest.raises(AudioError, match="empty"):
        list(speech_windows([], 10.0))


def test_short_stretches_share_a_window() -> None:
    (window,) = speech_windows([wave_of((1, 2), (0, 0.8), (1, 2), (0, 0.8), (1, 3), (0, 9))], 10.0)
    assert seconds(window) == pytest.approx((0, 9.1), abs=0.05)


def test_what_fits_is_heard_whole_unless_nobody_speaks() -> None:
    (window,) = speech_windows([wave_of((0, 2), (1, 2), (0, 3), (1, 1), (0, 2))], 10.0)
    assert seconds(window) == (0, window.seconds) and window.seconds == pytest.approx(10, abs=0.1)
    assert [at / SAMPLE_RATE for at in window.spoken] == pytest.approx([2, 8], abs=0.1)
    (word,) = speech_windows([wave_of((0.3, 0.5))], 10.0)
    assert word.spoken == (0, len(word.samples))
    assert list(speech_windows([wave_of((0.1, 5))], 10.0)) == []


def test_a_long_pause_ends_a_window() -> None:
    first, second = speech_windows([wave_of((1, 2), (0, 2), (1, 2), (0, 9))], 10.0)
    assert (first.end - first.spoken[1]) / SAMPLE_RATE == pytest.approx(0.51, abs=0.01)
    assert (second.spoken[0] - second.start) / SAMPLE_RATE == pytest.approx(0.51, abs=0.01)
    assert (
        len(list(speech_windows([wave_of((1, 0.5), (0, 2), (1, 2), (0, 9))], 10.0))) == 1
    )  # a word alone is hard to hear


def test_the_longest_pause_of_the_second_half_is_chosen() -> None:
    wave = wave_of((1, 2), (0, 0.95), (1, 3), (0, 0.8), (1, 1.5), (0, 0.3), (1, 9))
    assert seconds(next(speech_windows([wave], 10.0)))[1] == pytest.approx(5.95 + 0.4, abs=0.05)


def test_speech_without_a_pause_is_cut_where_it_is_quietest() -> None:
    wave = wave_of((1, 7), (0.6, 0.4), (1, 12))
    first, second, third = speech_windows([wave], 10.0)
    assert 7.0 < seconds(first)[1] < 7.4
    assert [first.joined, second.joined, third.joined] == [False, True, True]
    assert first.end == second.start and second.end == third.start and third.end == len(wave)


def test_halves_lose_nothing() -> None:
    (window,) = speech_windows([wave_of((0, 3), (1, 6), (0, 1))], 10.0)
    parts = window.halves()
    np.testing.assert_array_equal(np.concatenate([part.samples for part in parts]), window.samples)
    assert parts[0].start == window.start and parts[-1].end == window.end
    assert parts[0].spoken[0] == window.spoken[0] and parts[-1].spoken[1] == window.spoken[1]


def test_halves_have_the_times_of_speech_and_leave_out_silence() -> None:
    (window,) = speech_windows([wave_of((0, 1), (1, 1), (0, 4.5), (1, 2), (0, 1.5))], 10.0)
    parts = window.halves()
    assert [part.joined for part in parts] == [False] * len(parts)
    spoken = [(part.spoken[0] / SAMPLE_RATE, part.spoken[1] / SAMPLE_RATE) for part in parts]
    assert spoken == [pytest.approx((1, 2), abs=0.05), pytest.approx((6.5, 8.5), abs=0.05)]
    wave = wave_of((0, 8), (1, 2))
    late = Window(0, wave, (8 * SAMPLE_RATE, len(wave)), 1.0)
    (half,) = late.halves()
    assert half.start > 0 and half.spoken == late.spoken and not half.joined
    wave = wave_of((1, 4))
    first, second = Window(0, wave, (0, len(wave)), 1.0, joined=True).halves()
    assert first.joined and second.joined and first.spoken[1] == second.spoken[0] == second.start


def test_mask() -> None:
    def mask(*levels: float, **given: bool) -> list[int]:
        return speech_mask(np.array(levels, np.float32), **given).astype(int).tolist()

    assert mask(0.4, 0.6, 0.4, 0.4, 0.3, 0.4) == [0, 1, 1, 1, 0, 0]  # from 0.5 on, until below 0.35
    assert mask(0.4, 0.4, 0.3, inside=True) == [1, 1, 0]
    assert mask(0, 1, 1, 0, 0) == [0, 0, 0, 0, 0]  # too short
    assert mask(1, 1, 1, *[0] * 5, 1, 1, 1) == [1] * 11
    assert mask(1, 1, 1, *[0] * 6, 1, 1, 1) == [1] * 3 + [0] * 6 + [1] * 3
    assert mask(0, 1) == [0, 0] and mask(0, 1, over=False) == [0, 1]


def test_a_sentence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VoiceActivity", VoiceActivity)
    sentence = load_audio(SENTENCE)
    silence = np.zeros(3 * SAMPLE_RATE, np.float32)
    found = list(speech_windows([silence, sentence, silence, silence, sentence], 12.0))
    assert len(found) == 2
    gap = found[1].spoken[0] - found[0].spoken[0]
    assert gap == pytest.approx(len(sentence) + 6 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
