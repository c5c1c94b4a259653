"""Fields of requests: those that OpenAI's or vLLM's API knows and this server does not follow, and the base of our schema.

A field that would change the answer is refused by name, unless its value is the one that changes nothing. Bookkeeping is
accepted and has no effect. A field that nobody knows is refused with the nearest name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from qwen2_audio.errors import advice
from qwen2_audio.processing.chat_template import is_broken

_TOOLS = "the model calls no functions"
_SPEAKS = "the model answers in text only"
_PROMPT = "the prompt is always rendered as the model was trained on it"
_WHOLE = "answers begin after the prompt and hold neither it nor special tokens"
_SEARCH = "tokens are chosen one at a time, by sampling or greedily"
_JSON = "use response_format for answers in JSON"

REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = MappingProxyType(
    {
        "tools": (([],), _TOOLS),
        "tool_choice": (("none", "auto"), _TOOLS),
        "tool_calls": (([],), _TOOLS),
        "tool_call_id": ((), _TOOLS),
        "functions": (([],), _TOOLS),
        "function_call": (("none", "auto"), _TOOLS),
        "web_search_options": ((), _TOOLS),
        "modalities": ((["text"],), _SPEAKS),
        "audio": ((), _SPEAKS),
        "refusal": (("",), "a refusal is an answer like any other; give it as content"),
        "annotations": (([],), "answers have no annotations"),
        "reasoning": (("",), "the model does not reason apart from its answer"),
        "reasoning_content": (("",), "the model does not reason apart from its answer"),
        "reasoning_effort": (("none",), "the model does not reason apart from its answer"),
        "verbosity": (("medium",), "say in the messages how long the answer should be"),
        "moderation": ((), "answers are not moderated"),
        "name": ((), "prompts have no names of speakers; put them into the text"),
        "weight": ((1,), "this server does not train"),
        "chat_template": ((), _PROMPT),
        "chat_template_kwargs": (({},), _PROMPT),
        "documents": (([],), _PROMPT),
        "mm_processor_kwargs": (({},), _PROMPT),
        "media_io_kwargs": (({},), _PROMPT),
        "add_generation_prompt": ((True,), _PROMPT),
        "continue_final_message": ((False,), _PROMPT),
        "add_special_tokens": ((False,), _PROMPT),
        "truncate_prompt_tokens": ((), "a prompt is never cut; shorten it, or start a new conversation"),
        "prompt_embeds": ((), "a prompt is text and recordings"),
        "echo": ((False,), _WHOLE),
        "suffix": (("",), _WHOLE),
        "include_stop_str_in_output": ((False,), _WHOLE),
        "skip_special_tokens": ((True,), _WHOLE),
        "spaces_between_special_tokens": ((True, False), _WHOLE),
        "prompt_logprobs": ((), "log-probabilities are those of the answer; use logprobs"),
        "return_tokens_as_token_ids": ((False,), "tokens are given as text and bytes"),
        "return_token_ids": ((False,), "tokens are given as text and bytes; /tokenize gives the ids of a prompt"),
        "best_of": ((1,), _SEARCH),
        "use_beam_search": ((False,), _SEARCH),
        "length_penalty": ((1,), _SEARCH),
        "early_stopping": ((False,), _SEARCH),
        "allowed_token_ids": (([],), "use logit_bias or response_format"),
        "bad_words": (([],), "use logit_bias"),
        "logits_processors": (([],), "use logit_bias or response_format"),
        "thinking_token_budget": ((), "the model does not reason apart from its answer"),
        "structured_outputs": ((), _JSON),
        "guided_json": ((), _JSON),
        "guided_regex": ((), _JSON),
        "guided_choice": ((), _JSON),
        "guided_grammar": ((), _JSON),
        "store": ((False,), "nothing is kept"),
        "cache_salt": ((), "prompts of all clients share one cache"),
        "kv_transfer_params": ((), "the cache is not shared with other servers"),
        "vllm_xargs": (({},), "there are no extensions of that kind"),
        "continuous_usage_stats": ((False,), "usage comes at the end of a stream"),
        "priority": ((0,), "answers are begun in the order in which they are asked for"),
        "prediction": ((), "answers are written token by token, without a text to start from"),
    }
)
"""Name of a field: values that change nothing (null is one, always), and why others are refused."""

BOOKKEEPING = frozenset(
    (
        "user",
        "metadata",
        "safety_identifier",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "request_id",
    )
)
"""Fields of a whole request that are accepted without effect on the answer."""


class Strict(BaseModel):
    """A part of a request: no field that is not known, no conversion between types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Names that are accepted without effect."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        known = _names_of(cls)
        for name in given.keys() - known.keys():
            neutral, reason = REFUSED.get(name, ((), ""))
            if reason and not _is_neutral(given[name], neutral):
                message = f"{name} is not supported: {reason}; leave it out"
                raise refusal(name, message, "unsupported_parameter")
            if not reason and name not in cls.ignored:
                quoted = ascii(name[:100]) if is_broken(name) else repr(name[:100])
                raise refusal(quoted[1:-1], f"unknown field {quoted}; {advice(name, known)}", "unknown_parameter")
        followed = {name: value for name, value in given.items() if name in known}
        for name, value in followed.items():
            texts = value if isinstance(value, list) else [value]
            if any(isinstance(text, str) and is_broken(text) for text in texts):
                raise refusal(name, f"{name} holds half a character (a lone surrogate); repair the text")
        return followed


@cache
def _names_of(model: type[BaseModel]) -> Mapping[str, None]:
    """By what names its fields come, in order; looked up anew for each of 100,000 messages it would take a second."""
    return {field.alias or name: None for name, field in model.model_fields.items()}


def refusal(param: str, message: str, code: str = "invalid_value") -> PydanticCustomError:
    """An error whose message is complete as it is.

    Args:
        param: the field, within the part of the request that raises this.
    """
    return PydanticCustomError("refused", "{message}", {"message": message, "param": param, "code": code})


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)
