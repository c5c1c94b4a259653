"""On a GPU the next step begins before the host has seen the tokens of this one; here the same is done on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen2_audio import load
from qwen2_audio.generation.batch import ContinuousBatch
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.request import Request
from tests.tiny import sound, tiny_folder

GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0}


def ahead(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Lets batches go ahead; the list tells when they did."""
    done: list[bool] = []
    may = ContinuousBatch._may_go_ahead

    def asked(self: ContinuousBatch, answers: object) -> bool:
        done.append(may(self, answers))  # type: ignore[arg-type]
        return done[-1]

    monkeypatch.setattr(ContinuousBatch, "_goes_ahead", True)
    monkeypatch.setattr(ContinuousBatch, "_may_go_ahead", asked)
    return done


def test_answers_stay_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = load(tiny_folder(tmp_path / "tiny", seed=3), device="cpu")
    clips = [(sound(seconds, seed=number), 16_000) for number, seconds in enumerate((0.4, 2.0, 0.9))]
    items = [[clip, "what is this?"] for clip in clips] + ["hello", "the dog barked at the man"] * 3
    ways = [GREEDY, {**GREEDY, "max_new_tokens": 1}, {**GREEDY, "stop": "o"}, {"temperature": 0.8, "seed": 3}]

    def answers() -> list[object]:
        replies = [reply for way in ways for reply in assistant.batch(items, **{"max_new_tokens": 40, **way})]  # type: ignore[arg-type]
        return [(reply.text, reply.tokens, reply.finish_reason) for reply in replies]

    before = answers()
    done = ahead(monkeypatch)
    assert answers() == before
    assert done.count(True) > 20


def test_newcomers_and_leavers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = load(tiny_folder(tmp_path / "tiny", seed=3), device="cpu")
    options = GenerationOptions(max_new_tokens=20, ignore_eos=True)

    def requests(numbers: range) -> list[Request]:
        return [Request(assistant.engine.tokenizer.encode("the dog " * number), [], options) for number in numbers]

    alone = {}
    for number, request in enumerate(requests(range(1, 7))):
        alone[number] = [step.token for step in assistant.engine.run([request])]
    done = ahead(monkeypatch)
    batch, found = ContinuousBatch(assistant.engine), {number: [] for number in alone}  # type: ignore[var-annotated]
    for tick in range(200):
        if tick % 4 == 0 and tick // 4 < len(alone):
            batch.add(tick // 4, requests(range(tick // 4 + 1, tick // 4 + 2))[0])
        if tick == 11:
            batch.abort(1)
        if tick == 30:
            batch.forget()
        for step in batch.step() if batch.running or batch.waiting else []:
            found[step.index].append(step.token)
    assert any(done)
    assert not batch.running and not batch.waiting
    for number, tokens in found.items():
        assert tokens == alone[number] or (number == 1 and tokens == alone[1][: len(tokens)])
