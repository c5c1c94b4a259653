"""`Answer`: the chunks of a server's answer, put together as `Delta`s with exact counts. No sockets here."""

from __future__ import annotations

from collections.abc import Iterator

from qwen2_audio.generation.sequence import FinishReason
from qwen2_audio.remote.stream import Chunk, LoopWatch, Usage
from qwen2_audio.serving.backend import Delta, TokenLogprob


class Answer:
    """Takes chunks, gives deltas. The last delta is held back until the usage has come, which follows it.

    Args:
        stop_loops: end where the text goes round in circles; see `GenerationOptions.stop_loops`.
    """

    def __init__(self, *, stop_loops: bool) -> None:
        self._watch = LoopWatch() if stop_loops else None
        self._usage: Usage | None = None
        self._tokens = 0
        self._reason: FinishReason | None = None
        self._last_text = ""
        self._last_logprobs: tuple[TokenLogprob, ...] = ()
        self.over = False

    @property
    def finished(self) -> bool:
        """Whether the server said why the answer ended."""
        return self._reason is not None

    def push(self, chunk: Chunk) -> Iterator[Delta]:
        """What a chunk adds; after a delta with a finish_reason, `over` is set and no more is wanted."""
        if chunk.usage:
            self._usage = chunk.usage
        logprobs = tuple(TokenLogprob(one.token, one.data, one.logprob, one.top) for one in chunk.logprobs)
        if chunk.finish_reason is not None:
            self._reason = chunk.finish_reason
        if self._reason is not None:
            self._last_text += chunk.text
            self._last_logprobs += logprobs
            return
        looped = self._watch is not None and self._watch.push(chunk.text)
        if chunk.text or logprobs or looped:
            new = self._new_tokens(len(logprobs))
            self.over = looped
            yield self._delta(chunk.text, new, "length" if looped else None, logprobs)

    def end(self) -> Delta:
        """The last delta, once the server has nothing more to say; only where it is `finished`."""
        self.over = True
        return self._delta(
            self._last_text, self._new_tokens(len(self._last_logprobs)), self._reason, self._last_logprobs
        )

    def _new_tokens(self, logprobs: int) -> int:
        """Tokens since the last delta: as the server counts, else as many as have log-probabilities, else not known yet."""
        counted = self._usage.completion_tokens - self._tokens if self._usage else logprobs
        new = max(0, counted)
        self._tokens += new
        return new

    def _delta(self, text: str, tokens: int, reason: FinishReason | None, logprobs: tuple[TokenLogprob, ...]) -> Delta:
        usage = self._usage
        return Delta(
            text,
            tokens,
            usage.prompt_tokens if usage else 0,
            reason,
            logprobs,
            cached_tokens=usage.cached_tokens if usage else 0,
        )
