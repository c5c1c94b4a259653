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
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwen2_audio.api import Assistant

_Call: TypeAlias = Callable[[], tuple[float, ...]]
_Times: TypeAlias = tuple[list[tuple[float, ...]], list[tuple[float, ...]]]

CLIP_SECONDS = (2, 5, 15, 30)
BATCHES = (1, 8)
MIXED_SECONDS = (2, 3, 4, 5, 6, 8, 10, 15)
DECODE_TOKENS = 33
INSTRUCTION = "What is said?"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: medians, in seconds; `ratio` (median of the turns' own) above 1 means that we are faster.

    Attributes:
        tokens: how many tokens came out in that time, 0 where it is not about tokens.
    """

    what: str
    ours: float
    theirs: float | None
    ratio: float | None
    tokens: int = 0


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
    typer.echo(f"{'':34}{'ours':>24}{'transformers':>24}{'ratio':>8}")
    for row in rows:
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else "-"
        typer.echo(f"{row.what:34}{_shown(row.ours, row.tokens):>24}{_shown(row.theirs, row.tokens):>24}{ratio:>8}")


def _shown(seconds: float | None, tokens: int) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" + (f" ({tokens / seconds:.0f} tokens/s)" if tokens else "")


def _measure(assistant: Assistant, theirs: _Transformers | None, runs: int) -> list[Row]:
    features, firsts, decodes = [], [], []
    for batch in BATCHES:
        for seconds in CLIP_SECONDS:
            waves = [_noise(seconds)] * batch
            of = f"{batch} x {seconds} s"
            ours = partial(_features, assistant, waves)
            them = partial(theirs.features, waves) if theirs else None
            features.append(_row(f"features, {of}", _take_turns(f"features, {of}", ours, them, runs), 0, 0))
            times = _answers(of, assistant, theirs, waves, runs)
            firsts.append(_row(f"first token, {of}", times, 0, 0))
            decodes.append(_row(f"decode, a step of {of}", times, 1, batch))
    waves = [_noise(seconds) for seconds in MIXED_SECONDS]
    of = f"{len(waves)} clips of {MIXED_SECONDS[0]} to {MIXED_SECONDS[-1]} s, {DECODE_TOKENS} tokens"
    mixed = _row(of, _answers(of, assistant, theirs, waves, runs), 2, len(waves) * DECODE_TOKENS)
    return [*features, *firsts, *decodes, mixed]


def _answers(
    of: str, assistant: Assistant, theirs: _Transformers | None, waves: list[NDArray[Any]], runs: int
) -> _Times:
    return _take_turns(
        f"answers, {of}", partial(_answer, assistant, waves), partial(theirs.answer, waves) if theirs else None, runs
    )


def _take_turns(what: str, ours: _Call, theirs: _Call | None, runs: int) -> _Times:
    """What both sides measure of themselves, in turn; one uncounted warm-up each."""
    times: _Times = ([], [])
    for run in range(runs + 1):
        if sys.stderr.isatty():
            typer.echo(f"\r{what:60} {run}/{runs}", nl=False, err=True)
        for side, call in enumerate((ours, theirs)):
            if call is not None:
                measured = call()
                if run:
                    times[side].append(measured)
    if sys.stderr.isatty():
        typer.echo(f"\r{'':70}\r", nl=False, err=True)
    return times


def _row(what: str, times: _Times, which: int, tokens: int) -> Row:
    ours, theirs = ([measured[which] for measured in side] for side in times)
    if not theirs:
        return Row(what, statistics.median(ours), None, None, tokens)
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return Row(what, statistics.median(ours), statistics.median(theirs), ratio, tokens)


def _noise(seconds: float) -> NDArray[Any]:
    import numpy as np

    return (np.random.default_rng(0).standard_normal(int(seconds * 16_000)) * 0.05).astype(np.float32)


def _features(assistant: Assistant, waves: list[NDArray[Any]]) -> tuple[float]:
    started = time.perf_counter()
    for wave in waves:
        assistant.processor.clip(wave)
    return (time.perf_counter() - started,)


def _answer(assistant: Assistant, waves: list[NDArray[Any]]) -> tuple[float, float, float]:
    """Time to the first tokens, of a later step, and of all; exactly DECODE_TOKENS a clip, none of which ends an answer."""
    from qwen2_audio.generation.engine import Engine, Request
    from qwen2_audio.generation.options import GenerationOptions
    from qwen2_audio.processing.conversation import Conversation, TextPart

    started = time.perf_counter()
    engine = Engine(assistant.engine.model, assistant.engine.tokenizer, frozenset())
    options = GenerationOptions(max_new_tokens=DECODE_TOKENS)
    prompts = [assistant.processor.prepare(Conversation().user((w, 16_000), TextPart(INSTRUCTION))) for w in waves]
    steps = engine.run([Request(prompt.ids, prompt.clips, options) for prompt in prompts])
    next(steps)
    first = time.perf_counter()
    for _ in steps:
        pass
    return _spans(started, first)


def _spans(started: float, first: float) -> tuple[float, float, float]:
    ended = time.perf_counter()
    return first - started, (ended - first) / (DECODE_TOKENS - 1), ended - started


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

    def features(self, waves: list[NDArray[Any]]) -> tuple[float]:
        started = time.perf_counter()
        self._processor.feature_extractor(
            waves, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        return (time.perf_counter() - started,)

    def answer(self, waves: list[NDArray[Any]]) -> tuple[float, float, float]:
        import torch

        started = time.perf_counter()
        steps: list[float] = []

        def note_the_time(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            steps.append(time.perf_counter())
            return torch.zeros(ids.shape[0], dtype=torch.bool)

        content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": INSTRUCTION}]
        message = [{"role": "user", "content": content}]
        text = self._processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        inputs = self._processor(
            text=[text] * len(waves), audio=waves, sampling_rate=16_000, return_tensors="pt", padding=True
        )
        length = {"min_new_tokens": DECODE_TOKENS, "max_new_tokens": DECODE_TOKENS}
        with torch.inference_mode():
            self._model.generate(**inputs, **length, do_sample=False, stopping_criteria=[note_the_time])
        return _spans(started, steps[0])
