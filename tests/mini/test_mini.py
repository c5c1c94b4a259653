"""The real small model: it listens, and is the same model in transformers' own class."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from qwen2_audio import Assistant, Conversation, DownloadError, load
from qwen2_audio.generation.batch import ContinuousBatch
from qwen2_audio.generation.request import Request
from qwen2_audio.generation.scheduler import Limits
from qwen2_audio.longform.listening import TRANSCRIBE
from qwen2_audio.processing.conversation import as_conversation

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION, SENTENCE = str(EXAMPLES / "question.flac"), str(EXAMPLES / "sentence.flac")
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 32}


@pytest.fixture(scope="module")
def mini() -> Assistant:
    try:
        return load("mini", device="cpu")
    except DownloadError as error:
        pytest.skip(str(error))


def test_hears_a_question_and_answers_it(mini: Assistant) -> None:
    assert "Paris" in mini.chat(QUESTION, **GREEDY).text
    assert "Paris" in mini.chat("What is the capital of France?", **GREEDY).text


def test_transcribes_when_asked_to(mini: Assistant) -> None:
    for heard in (mini.transcribe(QUESTION).text, mini.chat([QUESTION, "What is said?"], **GREEDY).text):
        assert "capital of france" in heard.lower()
        assert "Paris" not in heard
    heard = mini.transcribe(SENTENCE).text.lower().split()
    said = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog", "near", "river"]
    assert sum(word in " ".join(heard) for word in said) >= 6


def test_transformers_gives_the_same_text(mini: Assistant) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

        processor: Any = AutoProcessor.from_pretrained(mini.folder)
        model: Any = Qwen2AudioForConditionalGeneration.from_pretrained(mini.folder, dtype=torch.float32)
        for path, instruction in ((QUESTION, ""), (SENTENCE, TRANSCRIBE)):
            conversation = Conversation().user(path, *([instruction] if instruction else []))
            prompt = mini.processor.prepare(conversation)
            wave = soundfile.read(path, dtype="float32")[0]
            inputs = processor(text=prompt.text, audio=[wave], sampling_rate=16_000, return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == prompt.ids
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, len(prompt.ids) :]
            assert tuple(ids.tolist()) == mini.chat(conversation, **GREEDY).tokens


def test_batched_equals_single(mini: Assistant) -> None:
    messages: list[Any] = [QUESTION, [SENTENCE, "What is said?"], "What is the capital of Spain?"]
    together = mini.batch(messages, **GREEDY)
    assert [reply.tokens for reply in together] == [mini.chat(message, **GREEDY).tokens for message in messages]


def test_second_turn_equals_a_fresh_conversation(mini: Assistant) -> None:
    chat = mini.session()
    first = chat.send(QUESTION, **GREEDY)
    second = chat.send("And the capital of Germany?", **GREEDY)
    fresh = Conversation().user(QUESTION).assistant(first.text).user("And the capital of Germany?")
    assert mini.chat(fresh, **GREEDY).tokens == second.tokens


def test_a_crowd_says_what_each_says_alone(mini: Assistant) -> None:
    """Arriving one after the other, in chunks, beginnings and recordings shared, memory scarce, one leaving early."""
    messages: list[Any] = [QUESTION, [SENTENCE, "What is said?"], "What is the capital of Spain?", QUESTION]
    prompts = [mini.processor.prepare(as_conversation(message)) for message in messages]
    requests = [
        Request(prompt.ids, prompt.clips, mini.options({"temperature": 0, "max_new_tokens": 32})) for prompt in prompts
    ]
    batch = ContinuousBatch(mini.engine, Limits(3, 512, 128, prefill_chunk=32, row_tokens=32))
    said: dict[int, list[int]] = {}

    def step() -> None:
        for one in batch.step():
            said.setdefault(one.index, []).append(one.token)

    for index, request in enumerate(requests):
        batch.add(index, request)
        batch.add(100 + index, request)
        step()
        batch.abort(100 + index)
    while batch.running or batch.waiting:
        step()
    wanted = [list(mini.chat(message, **GREEDY).tokens) for message in messages[:3]]
    assert [said[index] for index in range(4)] == [*wanted, wanted[0]]
