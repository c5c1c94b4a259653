"""Answers in JSON: whatever the model would rather say, it obeys the schema and ends where it is complete."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.generation.batch import ContinuousBatch
from qwen2_audio.generation.engine import Engine
from qwen2_audio.generation.grammar import Grammar
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.request import Request
from qwen2_audio.generation.sequence import Step
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import Processor
from tests.tiny import END_OF_TEXT_ID, IM_END_ID, VOCAB

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


def contains(number: int) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^.*a{number}.*$"}


MANY = range(9)
CHAIN = {"d0": contains(0)} | {f"d{n}": {"$ref": f"#/$defs/d{n - 1}", "pattern": f"^.*a{n}.*$"} for n in MANY[1:]}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [contains(n) for n in MANY]},
        {"allOf": [{"anyOf": [contains(n), {"type": "null"}]} for n in MANY]},
        {"allOf": [{"type": "object", "properties": {"a": contains(n)}} for n in MANY]},
        {"allOf": [{"type": "object", "additionalProperties": contains(n)} for n in MANY]},
        {"allOf": [{"type": "array", "items": contains(n)} for n in MANY]},
        {"allOf": [{"type": "array", "prefixItems": [contains(n)]} for n in MANY]},
        {"allOf": [{"format": "uuid", **contains(n)} for n in MANY[:8]]},
        {"$ref": "#/$defs/d8", "$defs": CHAIN},
        {
            "properties": {"a": {"$ref": "#/definitions/x~1y%25"}},
            "definitions": {"x/y%": {"$defs": CHAIN, **CHAIN["d8"]}},
        }
        | {"$defs": CHAIN},
        {"$ref": "json-schema:///#/$defs/d8", "$defs": CHAIN},
        {"$ref": "#/$defs/d0", "$defs": {**CHAIN, "d0": {"$ref": "#/$defs/d8", "pattern": "b"}}},
    ],
)
def test_many_patterns_that_meet_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"the JSON schema cannot be followed: more than 8 patterns .*; write them as one"
    ):
        GenerationOptions(json_schema=json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "integer", "multipleOf": 999983}, "its multipleOf have a least common multiple of more than 10000"),
        ({"type": "integer", "multipleOf": 0.999983}, "multipleOf"),
        ({"properties": {"a": {"multipleOf": 997}, "b": {"multipleOf": 991}}}, "multipleOf"),
        ({"patternProperties": {f"^a{n}$": {} for n in range(33)}}, "it has 33 patternProperties, at most 32"),
    ],
)
def test_other_schemas_that_take_too_long_are_refused(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=f"the JSON schema cannot be followed: .*{reason}"):
        GenerationOptions(json_schema=json.dumps(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"pattern{n}": contains(n) for n in range(100)}},
        {"type": "object", "properties": {"pattern": contains(0), "format": contains(1), "$ref": {"type": "string"}}},
        {"anyOf": [contains(n) for n in range(20)]},
        {"allOf": [contains(n) for n in MANY[:8]]},
        {"type": "object", "properties": {"next": {"$ref": "#"}, **{f"k{n}": contains(n) for n in range(20)}}},
        {
            "allOf": [
                {"$ref": "#/$defs/base"},
                {"type": "object", "properties": {f"own{n}": contains(n) for n in range(20)}},
            ],
            "$defs": {"base": {"type": "object", "properties": {f"k{n}": contains(n) for n in range(20)}}},
        },
        {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 0.01}, "b": {"multipleOf": 25000}}},
    ],
)
def test_many_patterns_that_do_not_meet_are_followed(schema: dict[str, Any]) -> None:
    GenerationOptions(json_schema=json.dumps(schema))


def test_a_grammar_that_breaks_amid_an_answer_cuts_it(
    model: Qwen2Audio, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it fails nothing but the end is allowed; the answer is no more whole for that."""
    pushed: list[int] = []
    ends = frozenset({END_OF_TEXT_ID, IM_END_ID})

    def allowed(grammar: Grammar) -> bytes:
        only = ends if len(pushed) == 3 else {ord("a")}
        return bytes(token in only for token in range(VOCAB))

    monkeypatch.setattr(Grammar, "push", lambda grammar, token: pushed.append(token))
    monkeypatch.setattr(Grammar, "failed", property(lambda grammar: len(pushed) > 3))
    monkeypatch.setattr(Grammar, "complete", property(lambda grammar: False))
    monkeypatch.setattr(Grammar, "allowed", allowed)
    text, last = say(Engine(model, processor.tokenizer, ends), SCHEMA)
    assert len(pushed) == 4 and last.token in ends
    assert last.finish_reason == "length" and "<|" not in text


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
