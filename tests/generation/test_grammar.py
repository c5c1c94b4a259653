"""Answers in JSON: whatever the model would rather say, it obeys the schema and ends where it is complete."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.generation.batch import ContinuousBatch
from qwen2_audio.generation.engine import Engine
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.request import Request
from qwen2_audio.generation.sequence import Step
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import Processor
from tests.tiny import END_OF_TEXT_ID, IM_END_ID

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "word": {"enum": ["cat", "dog", "你好"]},
        "loud": {"type": "boolean"},
        "times": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2},
    },
    "required": ["word", "loud", "times"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(model: Qwen2Audio, processor: Processor) -> Engine:
    return Engine(model, processor.tokenizer, frozenset({END_OF_TEXT_ID, IM_END_ID}))


def say(engine: Engine, schema: object, **options: Any) -> tuple[str, Step]:
    chosen = GenerationOptions(json_schema=json.dumps(schema), **{"max_new_tokens": 300, **options})
    steps = list(engine.run([Request([5, 6, 7], options=chosen)]))
    return "".join(step.text for step in steps), steps[-1]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_an_answer_obeys_its_schema_and_ends_where_it_is_complete(
    engine: Engine, temperature: float, seed: int
) -> None:
    text, last = say(engine, SCHEMA, temperature=temperature, seed=seed)
    answer = json.loads(text)
    assert list(answer) == ["word", "loud", "times"]
    assert answer["word"] in SCHEMA["properties"]["word"]["enum"] and isinstance(answer["loud"], bool)
    assert len(answer["times"]) <= 2 and all(0 <= time <= 99 for time in answer["times"])
    assert last.finish_reason == "stop" and text.endswith("}")


def test_the_empty_schema_is_any_object(engine: Engine) -> None:
    text, last = say(engine, {}, temperature=1.0, seed=1)
    assert text.lstrip().startswith("{")
    assert last.finish_reason == "length" or isinstance(json.loads(text), dict)


def test_what_the_answer_has_no_room_for_is_cut(engine: Engine) -> None:
    text, last = say(engine, SCHEMA, max_new_tokens=4)
    assert last.finish_reason == "length" and text.lstrip().startswith("{")


def test_an_answer_that_may_end_or_go_on_ends_by_itself_or_not(engine: Engine) -> None:
    """A number may always have one more digit; the end is a token like any other."""
    bias = {"logit_bias": ((IM_END_ID, 100.0),)}
    text, last = say(engine, {"type": "integer"}, **bias)
    assert last.token == IM_END_ID and last.finish_reason == "stop" and isinstance(json.loads(text), int)
    text, last = say(engine, {"type": "integer"}, **bias, min_new_tokens=3, max_new_tokens=9)
    assert len(text) >= 3 or text.startswith("0") or text.startswith("-0")


def test_the_least_length_does_not_hold_an_answer_that_is_complete(engine: Engine) -> None:
    text, last = say(engine, {"const": "cat"}, min_new_tokens=100)
    assert (text, last.finish_reason) == ('"cat"', "stop")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "nonsense"}, "Invalid type: nonsense"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "http://localhost/schema"}, "not present"),
        ({"type": "string", "pattern": "(?=a)b"}, "regex"),
        ({"allOf": [{"type": "string"}, {"type": "number"}]}, "incompatible types"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_runs(
    engine: Engine, schema: dict[str, Any], reason: str
) -> None:
    batch = ContinuousBatch(engine)
    with pytest.raises(UsageError, match=f"the JSON schema cannot be followed: .*{reason}"):
        batch.add(0, Request([5], options=GenerationOptions(json_schema=json.dumps(schema))))
    assert batch.running == batch.waiting == 0


def test_what_is_no_schema_is_refused() -> None:
    for text in ("", "[]", "{", "1"):
        with pytest.raises(UsageError, match="json_schema must be the JSON text of a schema"):
            GenerationOptions(json_schema=text)


def test_a_grammar_does_not_change_what_others_say(engine: Engine) -> None:
    plain = Request([5, 6, 7], options=GenerationOptions(max_new_tokens=20))
    schema = GenerationOptions(json_schema=json.dumps(SCHEMA), max_new_tokens=300)
    alone = [step.token for step in engine.run([plain])]
    text, _ = say(engine, SCHEMA)
    steps = list(engine.run([plain, Request([5, 6, 7], options=schema), plain]))
    assert [[s.token for s in steps if s.index == i] for i in (0, 2)] == [alone, alone]
    assert "".join(step.text for step in steps if step.index == 1) == text


def test_without_the_package_the_command_that_installs_it_is_named(
    model: Qwen2Audio, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    engine = Engine(model, processor.tokenizer, frozenset())
    with pytest.raises(UsageError, match="pip install 'llguidance"):
        say(engine, SCHEMA)
