"""`qwen2-audio bench`: our engine and `transformers` on the same checkpoint, in one run, taking turns."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwen2_audio.api import Assistant

CLIP_SECONDS = (2, 5, 15, 30)
BATCH_SECONDS = (2, 3, 4, 5, 6, 8, 10, 15)
DECODE_TOKENS = 33
INSTRUCTION = "What is said?"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: medians, in seconds; `ratio` above 1 means that we are faster."""

    what: str
    ours: float
    theirs: float | None
    ratio: float | None


def bench(
    model: Annotated[str, typer.Option("--model", "-m", help="A model name or folder.")] = "mini",
    runs: Annotated[int, typer.Option(min=1, help="Counted runs of each measurement, after one warm-up.")] = 3,
    alone: Annotated[bool, typer.Option(help="Measure only this package, without transformers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time features, first token, decoding and a batch, against transformers on the same checkpoint."""
    import torch

    from qwen2_audio.api import load

    assistant = load(model, device="cpu", dtype="float32")
    theirs = None if alone else _Transformers(assistant.folder)
    rows = _measure(assistant, theirs, runs)
    if as_json:
        about = {"model": str(model), "threads": torch.get_num_threads(), "torch": torch.__version__, "runs": runs}
        typer.echo(json.dumps(about | {"rows": [asdict(row) for row in rows]}))
        return
    typer.echo(f"{model}, float32, {torch.get_num_threads()} threads, medians of {runs} runs, taking turns")
    typer.echo(f"{'':34}{'ours':>10}{'transformers':>14}{'ratio':>8}")
    for row in rows:
        other = f"{row.theirs * 1000:11.0f} ms" if row.theirs is not None else "-"
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else "-"
        typer.echo(f"{row.what:34}{row.ours * 1000:7.0f} ms{other:>14}{ratio:>8}")


def _measure(assistant: Assistant, theirs: _Transformers | None, runs: int) -> list[Row]:
    def compare(what: str, waves: list[NDArray[Any]], tokens: int) -> Row:
        them = partial(theirs.answer, waves, tokens) if theirs else None
        return _compare(what, partial(_answer, assistant, waves, tokens), them, runs)

    rows = []
    for seconds in CLIP_SECONDS:
        wave = _noise(seconds)
        them = partial(theirs.features, [wave]) if theirs else None
        rows.append(_compare(f"features, {seconds} s", partial(assistant.processor.clip, wave), them, runs))
    firsts = [compare(f"first token, {seconds} s", [_noise(seconds)], 1) for seconds in CLIP_SECONDS]
    rows += firsts
    for seconds, first in zip(CLIP_SECONDS, firsts, strict=True):
        whole = compare("", [_noise(seconds)], DECODE_TOKENS)
        rows.append(_per_token(f"decode, a token after {seconds} s", whole, first))
    rows.append(compare(f"8 clips of 5 s, {DECODE_TOKENS} tokens", [_noise(5)] * 8, DECODE_TOKENS))
    waves = [_noise(seconds) for seconds in BATCH_SECONDS]
    mixed = f"{len(waves)} clips of {BATCH_SECONDS[0]} to {BATCH_SECONDS[-1]} s, {DECODE_TOKENS} tokens"
    rows.append(compare(mixed, waves, DECODE_TOKENS))
    return rows


def _compare(what: str, ours: Callable[[], Any], theirs: Callable[[], Any] | None, runs: int) -> Row:
    """Both sides in turn; one uncounted warm-up each."""
    if sys.stderr.isatty():
        typer.echo(f"\r{what or 'decode':40}", nl=False, err=True)
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for side, call in enumerate((ours, theirs)):
            if call is not None:
                started = time.perf_counter()
                call()
                if run:
                    times[side].append(time.perf_counter() - started)
    median = statistics.median(times[0])
    if theirs is None:
        return Row(what, median, None, None)
    other = statistics.median(times[1])
    return Row(what, median, other, statistics.median(b / a for a, b in zip(*times, strict=True)))


def _per_token(what: str, whole: Row, first: Row) -> Row:
    ours = (whole.ours - first.ours) / (DECODE_TOKENS - 1)
    if whole.theirs is None or first.theirs is None:
        return Row(what, ours, None, None)
    theirs = (whole.theirs - first.theirs) / (DECODE_TOKENS - 1)
    return Row(what, ours, theirs, theirs / ours)


def _noise(seconds: float) -> NDArray[Any]:
    import numpy as np

    return (np.random.default_rng(0).standard_normal(int(seconds * 16_000)) * 0.05).astype(np.float32)


def _answer(assistant: Assistant, waves: list[NDArray[Any]], tokens: int) -> None:
    """Exactly `tokens` tokens a clip, as if none of them could end an answer."""
    from qwen2_audio.generation.engine import Engine, Request
    from qwen2_audio.generation.options import GenerationOptions
    from qwen2_audio.processing.conversation import Conversation, TextPart

    engine = Engine(assistant.engine.model, assistant.engine.tokenizer, frozenset())
    options = GenerationOptions(max_new_tokens=tokens)
    prompts = [assistant.processor.prepare(Conversation().user((w, 16_000), TextPart(INSTRUCTION))) for w in waves]
    for _ in engine.run([Request(prompt.ids, prompt.clips, options) for prompt in prompts]):
        pass


class _Transformers:
    """The other side: the same folder in transformers' own classes."""

    def __init__(self, folder: Path) -> None:
        try:
            import transformers
        except ImportError:
            raise UsageError(
                "bench compares with transformers: pip install transformers librosa, or use --alone"
            ) from None
        import torch

        transformers.logging.set_verbosity_error()
        self._processor = transformers.AutoProcessor.from_pretrained(folder)
        self._processor.tokenizer.padding_side = "left"
        name = "Qwen2AudioForConditionalGeneration"
        self._model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()

    def features(self, waves: list[NDArray[Any]]) -> Any:
        return self._processor.feature_extractor(
            waves, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )

    def answer(self, waves: list[NDArray[Any]], tokens: int) -> Any:
        import torch

        content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": INSTRUCTION}]
        message = [{"role": "user", "content": content}]
        text = self._processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        inputs = self._processor(
            text=[text] * len(waves), audio=waves, sampling_rate=16_000, return_tensors="pt", padding=True
        )
        with torch.inference_mode():
            return self._model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
