"""The engine on a tiny random model: greedy ids equal to transformers, cached = uncached, batched = single."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen2_audio.api import Assistant, load
from qwen2_audio.generation.engine import Engine, Request
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import Conversation, TextPart
from tests.tiny import AUDIO_ID, IM_END_ID, sound, tiny_config, tiny_folder, tiny_model

SECONDS = (0.1, 1.33, 3.0, 7.77)


@pytest.fixture(scope="module", params=[0, 1, 2])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = request.param
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model", seed=seed, mel_bins=80 if seed else 128, gqa=seed < 2)


@pytest.fixture(scope="module")
def assistant(folder: Path) -> Assistant:
    return load(folder, device="cpu")


def conversations() -> list[Conversation]:
    clips = [(sound(seconds, seed=i), 16_000) for i, seconds in enumerate(SECONDS)]
    one = [Conversation().user(clip, TextPart("what is this?")) for clip in clips]
    several = Conversation().user(clips[0], clips[1]).assistant("hello").user(TextPart("the dog"), clips[2])
    return [*one, several, Conversation().user("hello world")]


def greedy(assistant: Assistant, items: list[Conversation], tokens: int) -> list[list[int]]:
    engine = Engine(assistant.engine.model, assistant.engine.tokenizer, frozenset())
    prompts = [assistant.processor.prepare(item) for item in items]
    options = GenerationOptions(max_new_tokens=tokens)
    out: list[list[int]] = [[] for _ in items]
    for step in engine.run([Request(prompt.ids, prompt.clips, options) for prompt in prompts]):
        out[step.index].append(step.token)
    return out


def test_greedy_ids_equal_transformers_over_64_tokens(assistant: Assistant, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

        theirs: Any = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        processor: Any = AutoProcessor.from_pretrained(folder)
    for item in conversations():
        prompt = assistant.processor.prepare(item)
        audio = [np.asarray(source[0]) for source in item.audios]  # type: ignore[index]
        inputs = processor(text=prompt.text, audio=audio or None, sampling_rate=16_000, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == prompt.ids
        with torch.inference_mode():
            ids = theirs.generate(
                **inputs, max_new_tokens=64, min_new_tokens=64, do_sample=False, repetition_penalty=1.0
            )
        banned = {320, IM_END_ID}  # min_new_tokens forbids the end tokens on their side
        ours = greedy_without(assistant, item, 64, banned)
        assert ours == ids[0, len(prompt.ids) :].tolist()


def greedy_without(assistant: Assistant, item: Conversation, tokens: int, banned: set[int]) -> list[int]:
    """Greedy, cached, with some tokens forbidden; written out by hand."""
    model, prompt = assistant.engine.model, assistant.processor.prepare(item)
    cache = model.new_cache(1, len(prompt.ids))
    out: list[int] = []
    with torch.inference_mode():
        audio = (
            model.encode_audio([c.mel for c in prompt.clips], [c.frames for c in prompt.clips])
            if prompt.clips
            else None
        )
        logits = model(torch.tensor(prompt.ids), [len(prompt.ids)], audio, cache)[-1:]
        for _ in range(tokens):
            logits[0, list(banned)] = -torch.inf
            out.append(int(logits[0].argmax()))
            logits = model(torch.tensor(out[-1:]), [1], cache=cache)
    return out


def test_cached_equals_uncached(assistant: Assistant) -> None:
    item = conversations()[4]
    prompt = assistant.processor.prepare(item)
    model = assistant.engine.model
    tokens = greedy(assistant, [item], 24)[0]
    with torch.inference_mode():
        audio = model.encode_audio([c.mel for c in prompt.clips], [c.frames for c in prompt.clips])
        ids = prompt.ids + tokens
        logits = model(torch.tensor(ids), [len(ids)], audio)
    assert logits[len(prompt.ids) - 1 : -1].argmax(-1).tolist() == tokens


def test_batched_equals_single(assistant: Assistant) -> None:
    items = conversations()
    assert greedy(assistant, items, 20) == [greedy(assistant, [item], 20)[0] for item in items]


def test_batch_larger_than_one_prefill(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    items = conversations()
    together = greedy(assistant, items, 8)
    monkeypatch.setattr("qwen2_audio.generation.engine.PREFILL_TOKENS", 64)
    assert greedy(assistant, items, 8) == together


def test_drawing_does_not_depend_on_the_batch(assistant: Assistant) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 5, "max_new_tokens": 12}
    items = conversations()[:3]
    together = [reply.tokens for reply in assistant.batch(items, **options)]
    assert together == [assistant.chat(item, **options).tokens for item in items]


def test_the_least_length_equals_transformers(assistant: Assistant, folder: Path) -> None:
    """Whatever token ends answers: none ends before its time, then it may; 0 is the answer as it always was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Qwen2AudioForConditionalGeneration

        theirs: Any = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    prompts = [assistant.processor.prepare(Conversation().user(text)).ids for text in ("hello world", "the dog")]
    free = greedy(assistant, [Conversation().user(text) for text in ("hello world", "the dog")], 8)
    ends = frozenset({free[0][0], free[0][3], free[1][1]})  # the tokens that are likeliest where answers would not end
    engine = Engine(assistant.engine.model, assistant.engine.tokenizer, ends)
    for least in (0, 1, 6):
        ours: list[list[int]] = [[] for _ in prompts]
        given = {"min_new_tokens": least} if least else {}
        options = GenerationOptions(max_new_tokens=12, **given)
        for step in engine.run([Request(ids, options=options) for ids in prompts]):
            ours[step.index].append(step.token)
        for ids, answer in zip(prompts, ours, strict=True):
            with torch.inference_mode():
                reference = theirs.generate(
                    input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    max_new_tokens=12, min_new_tokens=least, eos_token_id=sorted(ends), do_sample=False,
                    repetition_penalty=1.0,
                )  # fmt: skip
            assert answer == reference[0, len(ids) :].tolist()
            assert len(answer) > least or least == 0
        if least == 0:
            assert len(ours[0]) == 1 and ours[0] == free[0][:1]


def test_max_new_tokens_and_stop_hold_below_the_least_length(assistant: Assistant) -> None:
    options: dict[str, Any] = {"temperature": 0, "min_new_tokens": 9}
    assert len(assistant.chat("hello", **options, max_new_tokens=4).tokens) == 4
    whole = assistant.chat("hello", **options, max_new_tokens=9)
    assert len(whole.tokens) == 9 and not set(whole.tokens) & assistant.engine.end_ids
    stopped = assistant.chat("hello", **options, stop=whole.text[1:3])
    assert stopped.finish_reason == "stop" and len(stopped.tokens) < 9


def test_finished_rows_leave_the_batch_and_the_others_go_on() -> None:
    model = tiny_model(tiny_config(0), 0)

    class Words:
        def decode(self, ids: list[int], *, skip_special: bool = False) -> str:
            return "".join(chr(97 + i % 26) for i in ids)

    engine = Engine(model, Words(), frozenset())  # type: ignore[arg-type]
    requests = [Request([5, 6, 7 + i], options=GenerationOptions(max_new_tokens=3 + 4 * i)) for i in range(3)]
    steps = list(engine.run(requests))
    counts = [sum(step.index == i for step in steps) for i in range(3)]
    assert counts == [3, 7, 11]
    assert [[s.finish_reason for s in steps if s.index == i][-1] for i in range(3)] == ["length"] * 3
    assert AUDIO_ID not in requests[0].ids
