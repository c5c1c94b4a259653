"""Voice activity: our network is silero's, streamed is whole, and quiet speech is speech."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen2_audio.errors import CheckpointError
from qwen2_audio.processing import vad
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.vad import CHUNK, Network, VoiceActivity
from tests.tiny import sound

EXAMPLES = Path(__file__).parents[2] / "examples"
_NAMES = (
    {
        "stft.forward_basis_buffer": "stft_conv.weight",
        "decoder.decoder.2.weight": "final_conv.weight",
        "decoder.decoder.2.bias": "final_conv.bias",
    }
    | {f"encoder.{n}.reparam_conv.{kind}": f"conv{n + 1}.{kind}" for n in range(4) for kind in ("weight", "bias")}
    | {f"decoder.rnn.{name}": f"lstm_cell.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
)


def speech_probabilities(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    activity = VoiceActivity()
    return np.concatenate([activity.push(samples), activity.finish()])


@pytest.fixture(scope="module")
def speech() -> NDArray[np.float32]:
    return load_audio(EXAMPLES / "sentence.flac")


def test_equals_the_original(speech: NDArray[np.float32]) -> None:
    """The package ships TorchScript with weights of another training; with those, both give the same."""
    folder = Path(str(find_spec("silero_vad").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        original: Any = torch.jit.load(folder / "data" / "silero_vad.jit")
        state = original._model.state_dict()
    network = Network.from_weights({_NAMES[name]: tensor.numpy() for name, tensor in state.items()})
    wave = np.concatenate([np.zeros(64, np.float32), speech])
    count = len(speech) // CHUNK
    chunks = np.lib.stride_tricks.sliding_window_view(wave, 64 + CHUNK)[::CHUNK][:count]
    zero = np.zeros(128, np.float32)
    ours = network.probabilities(chunks, zero, zero)[0]
    with torch.inference_mode():
        pieces = torch.from_numpy(speech[: count * CHUNK]).reshape(count, 1, CHUNK)
        theirs = [original(piece, 16_000).item() for piece in pieces]
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert max(theirs) > 0.9 and min(theirs) < 0.1


def test_speech_is_told_from_what_is_none(speech: NDArray[np.float32]) -> None:
    assert (speech_probabilities(speech) > 0.5).mean() > 0.6
    for other in (np.zeros(32_000, np.float32), sound(2.0)):
        assert speech_probabilities(other).max() < 0.5


@pytest.mark.parametrize("gain", [1.0, 0.03, 0.003])
def test_quiet_speech_is_speech(speech: NDArray[np.float32], gain: float) -> None:
    plain, quiet = speech_probabilities(speech) > 0.5, speech_probabilities(speech * np.float32(gain)) > 0.5
    assert (plain & quiet).sum() > 0.95 * plain.sum()


@given(st.lists(st.integers(0, 5000), max_size=12))
def test_streamed_equals_whole(sizes: list[int]) -> None:
    wave = sound(1.3, seed=2)
    activity, found = VoiceActivity(), []
    for size in sizes:
        block, wave_left = wave[:size], wave[size:]
        found.append(activity.push(block))
        wave = wave_left
    found += [activity.push(wave), activity.finish()]
    np.testing.assert_allclose(np.concatenate(found), speech_probabilities(sound(1.3, seed=2)), atol=1e-5)


def test_after_the_end_it_starts_anew() -> None:
    activity = VoiceActivity()
    first = np.concatenate([activity.push(sound(0.5)), activity.finish()])
    assert len(first) == -(-8000 // CHUNK)
    np.testing.assert_array_equal(np.concatenate([activity.push(sound(0.5)), activity.finish()]), first)
    assert len(activity.finish()) == 0


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    vad._packaged.cache_clear()
    monkeypatch.setattr(vad, "find_spec", lambda _name: None)
    with pytest.raises(CheckpointError, match="pip install 'silero-vad"):
        VoiceActivity()


def test_needs_neither_torch_nor_the_code_of_the_package() -> None:
    code = (
        "import sys; from qwen2_audio.processing.vad import VoiceActivity; VoiceActivity();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'silero_vad')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
