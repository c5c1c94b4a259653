"""Answers that obey a JSON schema: which tokens may come next. The package `llguidance` does the parsing."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING

from qwen2_audio.errors import UsageError
from qwen2_audio.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_ANY_OBJECT = '{"type": "object"}'
_WHITESPACE = r"(\n {0,16}| )?"
"""Between two signs of JSON: nothing, a blank, or a new line with its indentation. Small models would go on with blanks for
ever."""
_KEPT_SCHEMAS = 64


class Grammars:
    """Makes a `Grammar` of a schema; remembers the last ones."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: frozenset[int]) -> None:
        """Args: end_ids: the tokens that are allowed where the answer may end."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = sorted(end_ids)
        self._words: LLTokenizer | None = None
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()

    def of(self, schema: str) -> Grammar:
        """The grammar of one answer.

        Args:
            schema: JSON text of a schema; "{}" is any object.

        Raises:
            UsageError: `llguidance` is not installed, or the schema asks for what it cannot follow.
        """
        if schema not in self._matchers:
            self._matchers[schema] = self._compile(schema)
        self._matchers.move_to_end(schema)
        if len(self._matchers) > _KEPT_SCHEMAS:
            self._matchers.popitem(last=False)
        return Grammar(self._matchers[schema].deep_copy())

    def _compile(self, schema: str) -> LLMatcher:
        try:
            from llguidance import LLMatcher, LLTokenizer
        except ImportError as error:
            raise UsageError("answers in JSON need the package llguidance: pip install 'llguidance>=1.3'") from error
        if self._words is None:
            self._words = LLTokenizer(self._tokenizer.to_json(), n_vocab=self._vocab_size, eos_token=self._end_ids)
        wanted = schema if json.loads(schema) else _ANY_OBJECT
        try:
            grammar = LLMatcher.grammar_from_json_schema(wanted, overrides={"whitespace_pattern": _WHITESPACE})
        except ValueError as error:
            raise _refused(schema, str(error)) from error
        matcher = LLMatcher(self._words, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(schema, matcher.get_error())
        return matcher


class Grammar:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> bytes:
        """One byte a token of the vocabulary: not 0 where it may come next. Empty when nothing may."""
        return b"" if self._matcher.is_stopped() else self._matcher.compute_logit_bias()

    def push(self, token: int) -> None:
        """Go on with a token that was allowed."""
        self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """The JSON is complete and nothing more may come."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def failed(self) -> bool:
        """The grammar became too complex to follow; the answer cannot go on."""
        return self._matcher.is_error()


def _refused(schema: str, reason: str) -> UsageError:
    first = reason.strip().splitlines()[0] if reason.strip() else "unknown reason"
    return UsageError(f"the JSON schema cannot be followed: {first}; simplify it (given: {schema:.200})")
