"""A model behind an OpenAI-compatible URL (vLLM, a cluster of it, a hosted one), asked through `chat/completions`.

That API has no bare prompts with recordings (`completions` takes text only), so the base model's samples are asked in a chat
too, recordings first, then the prompt; `identity()` says so, and their scores do not compare with those of bare prompts.
Nor has it a least length: an answer may be empty.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from typing import Any

from qwen2_audio import __version__
from qwen2_audio.errors import AudioError, UsageError
from qwen2_audio.evaluation.answerers import MAX_NEW_TOKENS, check_long_audio, hear
from qwen2_audio.evaluation.chat_client import ChatClient
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.remote.wire import audio_content

_PARALLEL = 32


class OpenAIAnswerer:
    """A server, asked for a whole batch at once."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        long_audio: str = "cut",
        timeout: float = 120.0,
        attempts: int = 5,
        pause: float = 1.0,
    ) -> None:
        """
        Args:
            base_url: such as "http://localhost:8000/v1".
            key_variable: the environment variable that holds the key; see `ChatClient`.
            long_audio: see `qwen2_audio.evaluation.answerers.LONG_AUDIO`.
            timeout: seconds without a sign of life before a request counts as failed.
            attempts: how often a request is made before its sample counts as failed.
            pause: seconds before the second attempt; twice as long before each further one, or what the server asks for.

        Raises:
            UsageError: httpx is not installed, the URL or the key is none, no attempts, or an unknown `long_audio`.
        """
        check_long_audio(long_audio)
        self._client = ChatClient(
            base_url, model, name="the server", key_variable=key_variable, timeout=timeout, attempts=attempts,
            pause=pause, connections=_PARALLEL, may_be_empty=True,
        )  # fmt: skip
        self._model = model
        self._max_new_tokens = max_new_tokens
        self._long_audio = long_audio

    def answer(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        """Answers as they come.

        Raises:
            UsageError: what every sample would meet, see `ChatClient.ask`; after the answers that were on their way.
        """
        stopped = threading.Event()
        pool = ThreadPoolExecutor(_PARALLEL)
        problem: UsageError | None = None
        try:
            futures = [pool.submit(self._answer, sample, stopped) for sample in samples]
            for future in as_completed(futures):
                try:
                    answer = future.result()
                except UsageError as error:
                    problem = problem or error
                    stopped.set()
                    for waiting in futures:
                        waiting.cancel()
                except CancelledError:
                    pass
                else:
                    if not (answer.error and stopped.is_set()):  # perhaps only because it was stopped
                        yield answer
            if problem is not None:
                raise problem
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)

    def identity(self) -> dict[str, Any]:
        """The model by its name and address (never the key)."""
        return {
            "kind": "server",
            "model": self._model,
            "url": self._client.address,
            "max_new_tokens": self._max_new_tokens,
            "min_new_tokens": 0,
            "temperature": 0.0,
            "long_audio": self._long_audio,
            "bare_prompts": "asked in a chat: chat/completions has no other form with recordings",
            "qwen2_audio": __version__,
        }

    def _answer(self, sample: Sample, stopped: threading.Event) -> Answer:
        started = time.monotonic()
        try:
            content = self._content(sample)
        except AudioError as problem:
            return Answer(sample, "", str(problem), time.monotonic() - started)
        reply = self._client.ask(content, temperature=0.0, max_tokens=self._max_new_tokens, stopped=stopped)
        return Answer(sample, reply.text, reply.error, time.monotonic() - started)

    def _content(self, sample: Sample) -> list[dict[str, Any]]:
        """The recordings, then the prompt, as parts of a message."""
        content = [audio_content(hear(path, self._long_audio)) for path in sample.audio]
        return [*content, {"type": "text", "text": sample.prompt}] if sample.prompt else content
