"""What a caller can say about an answer, and what a checkpoint says when the caller is silent."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen2_audio.config import MAX_CLIP_SECONDS
from qwen2_audio.errors import CheckpointError, UsageError
from qwen2_audio.generation.schema_bounds import why_too_costly

MOST_LOGPROBS = 20
"""Alternatives that can be asked for at every place of an answer."""
_BIAS_RULE = "pairs of a token id and a number from -100 to 100"


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How to choose tokens and when to stop.

    Attributes:
        max_new_tokens: the longest answer; None: as much as the context holds.
        min_new_tokens: no end token is chosen before so many others were; 0 is off. `max_new_tokens` and `stop` still hold.
        temperature: 0 is greedy; above 0 the logits are divided by it and a token is drawn.
        top_k: draw among the k most likely tokens only; 0 is off.
        top_p: draw among the fewest tokens whose probabilities add up to at least this; 1 is off.
        min_p: drop tokens less likely than this share of the most likely one; 0 is off.
        repetition_penalty: logits of tokens that stand in the prompt or the answer are divided by it when positive and
            multiplied when negative; 1 is off. It applies to greedy decoding too, as in `transformers`.
        presence_penalty: taken from the logit of every token that already stands in the answer, from -2 to 2.
        frequency_penalty: taken from it once for each time the token stands there, from -2 to 2.
        logit_bias: pairs of a token id and what is added to its logit, from -100 to 100.
        seed: makes drawing repeatable, whatever else is in the batch; None: a fresh one each time.
        stop: the answer ends before the first of these strings.
        stop_token_ids: the answer ends with any of these tokens too; they are not part of its text.
        ignore_eos: the tokens that end an answer do not end it; `stop`, `stop_token_ids` and `max_new_tokens` still do.
        stop_loops: the answer ends, with finish_reason "length", where it goes round in circles; see `loops`.
        logprobs: every step tells its token's log-probability, before penalties and temperature, and those of so many
            likeliest tokens, 0 to 20; None: it does not.
        json_schema: the answer is JSON that obeys this schema (JSON text; "{}": any object) and ends when it is complete.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    stop_loops: bool = False
    logprobs: int | None = None
    json_schema: str | None = None

    def __post_init__(self) -> None:
        limit = self.max_new_tokens
        _check(limit is None or _whole(limit, 1), "max_new_tokens", "a whole number above 0", limit)
        least = self.min_new_tokens
        _check(_whole(least, 0), "min_new_tokens", "a whole number, at least 0", least)
        warm = _real(self.temperature) and (self.temperature == 0 or 1e-4 <= self.temperature < float("inf"))
        _check(warm, "temperature", "0 or at least 0.0001", self.temperature)
        _check(_whole(self.top_k, 0), "top_k", "a whole number, at least 0", self.top_k)
        _check(_real(self.top_p) and 0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _check(_real(self.min_p) and 0 <= self.min_p <= 1, "min_p", "from 0 to 1", self.min_p)
        penalty = self.repetition_penalty
        _check(_real(penalty) and penalty > 0, "repetition_penalty", "above 0", penalty)
        seed_fits = self.seed is None or (_whole(self.seed, 0) and self.seed < 2**64)
        _check(seed_fits, "seed", "a whole number from 0 to 2**64 - 1", self.seed)
        _check(all(isinstance(text, str) and text for text in self.stop), "stop", "texts that are not empty", self.stop)
        self._check_choice()

    def _check_choice(self) -> None:
        """What weighs, forbids and reports tokens."""
        for name in ("presence_penalty", "frequency_penalty"):
            taken = getattr(self, name)
            _check(_real(taken) and -2 <= taken <= 2, name, "from -2 to 2", taken)
        _check(all(_is_bias(pair) for pair in self.logit_bias), "logit_bias", _BIAS_RULE, self.logit_bias)
        ends = self.stop_token_ids
        _check(all(_whole(token, 0) for token in ends), "stop_token_ids", "whole numbers, at least 0", ends)
        _check(isinstance(self.ignore_eos, bool), "ignore_eos", "true or false", self.ignore_eos)
        top = self.logprobs
        _check(top is None or (_whole(top, 0) and top <= MOST_LOGPROBS), "logprobs", f"from 0 to {MOST_LOGPROBS}", top)
        schema = self.json_schema
        _check(schema is None or _is_json_object(schema), "json_schema", "the JSON text of a schema, an object", schema)
        if schema is not None and (reason := why_too_costly(schema)):
            raise UsageError(f"the JSON schema cannot be followed: {reason}")

    def override(
        self,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        ignore_eos: bool | None = None,
        logprobs: int | None = None,
        json_schema: str | Mapping[str, Any] | None = None,
    ) -> GenerationOptions:
        """These options with those given put in their place; None leaves an option as it is."""
        single = None if stop is None else (stop,)
        alone = None if stop_token_ids is None else (stop_token_ids,)
        given: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": min_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "logit_bias": tuple(logit_bias.items() if isinstance(logit_bias, Mapping) else logit_bias or ()) or None,
            "seed": seed,
            "stop_token_ids": tuple(stop_token_ids) if isinstance(stop_token_ids, Iterable) else alone,
            "ignore_eos": ignore_eos,
            "logprobs": logprobs,
            "json_schema": json.dumps(json_schema) if isinstance(json_schema, Mapping) else json_schema,
            "stop": tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else single,
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})


_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_length": (0,),
    "max_length": (20,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ({},),
    "guidance_scale": (1,),
    "exponential_decay_length_penalty": (),
    "top_h": (),
    "watermarking_config": (),
    "num_return_sequences": (1,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
}
"""Keys of `generation_config.json` that would change the answer and are not followed here, with their neutral values."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """A checkpoint's `generation_config.json`.

    Attributes:
        options: how it answers unless told otherwise.
        end_ids: the tokens that end an answer.
        transcription_window: the longest piece, in seconds, in which it transcribes well (our own key of the file; 30, the
            longest that can be heard, when it is absent).
    """

    options: GenerationOptions
    end_ids: frozenset[int]
    transcription_window: float = MAX_CLIP_SECONDS

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], fallback_end_ids: Sequence[int]) -> GenerationDefaults:
        """Read the file's contents; `do_sample: false` means temperature 0, a missing value means `transformers`' default.

        Args:
            fallback_end_ids: what ends an answer when the file does not say.

        Raises:
            CheckpointError: a value that makes no sense.
        """
        for key, neutral in _UNSUPPORTED.items():
            if config.get(key) not in (None, *neutral):
                note = f"{key}={config[key]!r} in generation_config.json is not supported and has no effect"
                warnings.warn(note, stacklevel=2)
        drawn = bool(config.get("do_sample", False))
        values: dict[str, Any] = {"max_new_tokens": config.get("max_new_tokens")}
        if drawn:
            values |= {"temperature": 1.0, "top_k": 50}
        names = {"repetition_penalty", "min_new_tokens"}
        if drawn:
            names |= {"temperature", "top_k", "top_p", "min_p"}
        values |= {name: config[name] for name in names if config.get(name) is not None}
        stops = config.get("stop_strings") or ()
        values["stop"] = tuple(stops) if isinstance(stops, list | tuple) else (stops,)
        given = config.get("eos_token_id")
        end = list(fallback_end_ids) if given is None else given if isinstance(given, list) else [given]
        try:
            _check(all(_whole(token, 0) for token in end), "eos_token_id", "a token id or a list of them", given)
            window = config.get("transcription_window", MAX_CLIP_SECONDS)
            valid = _real(window) and 1 <= window <= MAX_CLIP_SECONDS
            _check(valid, "transcription_window", f"from 1 to {MAX_CLIP_SECONDS} seconds", window)
            return cls(GenerationOptions(**values), frozenset(end), window)
        except (UsageError, TypeError) as error:
            raise CheckpointError(f"generation_config.json makes no sense: {error}; correct the file") from error


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_bias(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and _whole(pair[0], 0) and _real(pair[1]) and abs(pair[1]) <= 100


def _is_json_object(text: Any) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _check(valid: bool, name: str, rule: str, got: Any) -> None:
    if not valid:
        raise UsageError(f"{name} must be {rule}, got {got!r}")
