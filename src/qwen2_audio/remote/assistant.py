"""`RemoteAssistant`: a model on a server, with the face of an `Assistant`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import UsageError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sequence import FinishReason
from qwen2_audio.longform.listening import TRANSCRIBE, TRANSLATE, Heard, Question, listen
from qwen2_audio.longform.segments import Segment
from qwen2_audio.processing.audio import load_audio, load_part
from qwen2_audio.processing.chat_template import begin, render_base
from qwen2_audio.processing.conversation import (
    AudioPart,
    AudioSource,
    Conversation,
    Input,
    Part,
    as_audio,
    as_conversation,
    user_parts,
)
from qwen2_audio.processing.speech_windows import Window, speech_windows
from qwen2_audio.remote.address import Address
from qwen2_audio.remote.client import CONNECTIONS, RemoteClient
from qwen2_audio.remote.models import RemoteModel
from qwen2_audio.remote.stream import LoopWatch
from qwen2_audio.remote.wire import (
    Dialect,
    bare_fields,
    chat_messages,
    completion_fields,
    given_fields,
    option_fields,
    refuse_lacking,
)
from qwen2_audio.transcription import Transcript, blocks_of

if TYPE_CHECKING:
    from typing import Unpack

    from qwen2_audio.api import Options

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class RemoteReply:
    """An answer of a server. `str(reply)` is its text.

    Attributes:
        finish_reason: "stop", "length" or "cancelled", as in `qwen2_audio.Reply`.
        prompt_tokens, completion_tokens: as the server counts them, 0 where it does not say or was cancelled before.
        tokens: always (); servers do not say the ids.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text


class RemoteStream:
    """Iterate over an answer's text as it comes; `cancel()` ends it early; `reply` is the answer so far."""

    def __init__(
        self,
        client: RemoteClient,
        path: str,
        body: dict[str, Any],
        *,
        session: RemoteSession | None = None,
        stop_loops: bool = False,
    ) -> None:
        self._chunks = client.stream(path, body)
        self._session = session
        self._watch = LoopWatch() if stop_loops else None
        self._pieces: list[str] = []
        self._finish: FinishReason | None = None
        self._prompt_tokens = self._completion_tokens = 0
        self._cancelled = False
        self.looped = False

    def __iter__(self) -> Iterator[str]:
        try:
            for chunk in self._chunks:
                if self._cancelled:
                    break
                if chunk.usage:
                    self._prompt_tokens = chunk.usage.prompt_tokens
                    self._completion_tokens = chunk.usage.completion_tokens
                self._finish = chunk.finish_reason or self._finish
                if chunk.text:
                    self._pieces.append(chunk.text)
                    yield chunk.text
                if self._watch and self._finish is None and self._watch.push(chunk.text):
                    self._finish, self.looped = "length", True
                    break
        finally:
            self._chunks.close()  # type: ignore[attr-defined]  # a generator; this hangs up
        if self._session is not None and self._session.open_stream is self and (self._finish or self._pieces):
            self._session.finished(self.reply)

    def cancel(self) -> None:
        """Stop at the next token. May be called from another thread."""
        self._cancelled = True

    @property
    def reply(self) -> RemoteReply:
        """The answer so far; whole once the iteration has ended."""
        reason = self._finish or "cancelled"
        return RemoteReply("".join(self._pieces), reason, self._prompt_tokens, self._completion_tokens)

    def run(self) -> RemoteReply:
        """Go through to the end."""
        for _ in self:
            pass
        return self.reply


class RemoteAssistant:
    """A model on a server, ready to be talked to. What is left out of a call is as the server's defaults say.

    It has no weights here: no `model`, `engine`, `processor` or `save`.
    """

    def __init__(
        self,
        url: str,
        *,
        key_variable: str | None = None,
        timeout: float = 300.0,
        attempts: int = 3,
        pause: float = 0.5,
    ) -> None:
        """
        Args:
            url: such as "openai:http://host:8000/v1"; a model other than the server's first stands behind a `#`.
            key_variable: the environment variable with the server's key; see `qwen2_audio.remote.address`.
            timeout: seconds without a sign of life.
            attempts, pause: how often a busy or absent server is asked, and the seconds before the second time.

        Raises:
            UsageError, ServerError: the address makes no sense, nobody answers there, or the model is unknown.
        """
        self._client = RemoteClient(
            Address.parse(url, key_variable=key_variable), timeout=timeout, attempts=attempts, pause=pause
        )
        try:
            self.served: RemoteModel = self._client.model()
        except BaseException:
            self._client.close()
            raise

    @property
    def url(self) -> str:
        """The server's address."""
        return self._client.address.base

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{name!r}: the model {self.served.name} is on a server, and only its answers are here; load a checkpoint for more"
            if name in ("model", "engine", "processor", "defaults", "folder", "save", "options")
            else f"a RemoteAssistant has no {name!r}"
        )

    def chat(self, message: Input, *, system: str | None = None, **options: Unpack[Options]) -> RemoteReply:
        """Answer one message; see `Assistant.chat`."""
        return self.stream(message, system=system, **options).run()

    def stream(self, message: Input, *, system: str | None = None, **options: Unpack[Options]) -> RemoteStream:
        """Like `chat`, but the text comes piece by piece."""
        return self.open(as_conversation(message, system), self.fields(options))

    def batch(
        self, messages: Sequence[Input], *, system: str | None = None, **options: Unpack[Options]
    ) -> list[RemoteReply]:
        """Answer several unrelated messages or conversations at once, each as if it were alone."""
        if isinstance(messages, str | bytes | Conversation):
            raise UsageError("batch takes a list of messages, one for each answer; for a single one use chat")
        streams = [self.stream(message, system=system, **options) for message in messages]
        return together([stream.run for stream in streams])

    def transcribe(self, audio: AudioSource | AudioPart, **options: Unpack[Options]) -> Transcript:
        """Write down what is said; see `Assistant.transcribe`."""
        return self.transcribe_many([audio], **options)[0]

    def transcribe_many(
        self, audios: Sequence[AudioSource | AudioPart], **options: Unpack[Options]
    ) -> list[Transcript]:
        """Write down what is said in several recordings, together; see `Assistant.transcribe_many`."""
        if isinstance(audios, str | bytes | AudioPart):
            raise UsageError("transcribe_many takes a list of recordings; for a single one use transcribe")
        found: list[list[Segment]] = [[] for _ in audios]
        for number, segment in self._listen([as_audio(audio) for audio in audios], options, TRANSCRIBE):
            found[number].append(segment)
        return [Transcript.of(segments) for segments in found]

    def transcribe_stream(self, audio: AudioSource | AudioPart, **options: Unpack[Options]) -> Iterator[Segment]:
        """Like `transcribe`, segment by segment as they come."""
        return (segment for _, segment in self._listen([as_audio(audio)], options, TRANSCRIBE))

    def translate(self, audio: AudioSource | AudioPart, **options: Unpack[Options]) -> Transcript:
        """Write down in English what is said in any language; as `transcribe` otherwise."""
        return Transcript.of([segment for _, segment in self._listen([as_audio(audio)], options, TRANSLATE)])

    def _listen(
        self, parts: Sequence[AudioPart], given: Mapping[str, Any], instruction: str
    ) -> Iterator[tuple[int, Segment]]:
        windows = (
            (number, window)
            for number, part in enumerate(parts)
            for window in speech_windows(blocks_of(part), self.served.transcription_window)
        )
        question = Question(instruction, self._checked(given))
        return listen(windows, question, partial(self._hear, question))

    def _hear(self, question: Question, windows: Sequence[Window]) -> list[Heard]:
        def hear(window: Window) -> Heard:
            options = question.options_for(window)
            stream = self.open(question.conversation(window), self._all_fields(options), stop_loops=options.stop_loops)
            reply = stream.run()
            return Heard(reply.text, reply.finish_reason, prompt_tokens=reply.prompt_tokens)

        return together([partial(hear, window) for window in windows])

    def complete(
        self, audios: AudioSource | Sequence[AudioSource], instruction: str, **options: Unpack[Options]
    ) -> RemoteReply:
        """The base model's bare prompt; of servers, only ours takes it with recordings."""
        return self.complete_many([(audios, instruction)], **options)[0]

    def complete_many(
        self, prompts: Sequence[tuple[AudioSource | Sequence[AudioSource], str]], **options: Unpack[Options]
    ) -> list[RemoteReply]:
        """Continue several of the base model's bare prompts together; each as if it were alone."""
        bodies = []
        for audios, instruction in prompts:
            many: Sequence[Any] = audios if isinstance(audios, list) else [audios]
            render_base(len(many), instruction)  # complains about what cannot be a prompt
            bodies.append(bare_fields([load_audio(audio) for audio in many], instruction, self._dialect, self.url))
        fields = completion_fields(self.fields(options))
        streams = [RemoteStream(self._client, "/completions", body | fields) for body in bodies]
        return together([stream.run for stream in streams])

    def session(self, *, system: str | None = None) -> RemoteSession:
        """A chat of many turns; the server gets all of it every time, and may know its beginning still."""
        return RemoteSession(self, system)

    def open(
        self,
        conversation: Conversation,
        fields: Mapping[str, Any],
        *,
        session: RemoteSession | None = None,
        stop_loops: bool = False,
    ) -> RemoteStream:
        """The stream of an answer to a conversation; nothing is sent before it is read."""
        body = {"messages": chat_messages(conversation, warn=True), **fields}
        return RemoteStream(self._client, "/chat/completions", body, session=session, stop_loops=stop_loops)

    @property
    def _dialect(self) -> Dialect:
        return self.served.dialect

    def fields(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a request says beside the prompt: what was given, and no more."""
        options = self._checked(given)
        chosen = {name: getattr(options, name) for name, value in given.items() if value is not None}
        refuse_lacking(chosen, self._dialect, self.url)
        return self._stream_fields() | given_fields(chosen, self._dialect)

    def _all_fields(self, options: GenerationOptions) -> dict[str, Any]:
        """The same with every option that matters, whatever the server's defaults."""
        return self._stream_fields() | option_fields(options, self._dialect, self.url)

    def _stream_fields(self) -> dict[str, Any]:
        return {"model": self.served.name, "stream": True, "stream_options": {"include_usage": True}}

    @staticmethod
    def _checked(given: Mapping[str, Any]) -> GenerationOptions:
        known = [field.name for field in fields(GenerationOptions)]
        unknown = sorted(given.keys() - set(known))
        if unknown:
            raise UsageError(f"unknown option {unknown[0]!r}; the options are {', '.join(known)}")
        return GenerationOptions().override(**given)


def together(calls: Sequence[Callable[[], Outcome]]) -> list[Outcome]:
    """What all calls return, in order, several at a time; the first error ends it."""
    if len(calls) <= 1:
        return [call() for call in calls]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        futures = [pool.submit(call) for call in calls]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class RemoteSession:
    """A conversation that goes on; an answer becomes part of it."""

    def __init__(self, assistant: RemoteAssistant, system: str | None) -> None:
        self._assistant = assistant
        self._system = system
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.conversation = begin(self._system)
        self.open_stream: RemoteStream | None = None

    def send(self, *message: AudioSource | Part, **options: Unpack[Options]) -> RemoteReply:
        """Say something; the answer becomes part of the conversation."""
        return self.stream(*message, **options).run()

    def stream(self, *message: AudioSource | Part, **options: Unpack[Options]) -> RemoteStream:
        """Like `send`, piece by piece. The turn counts once the stream has been read to its end; a new turn before that takes
        its place."""
        heard = [
            AudioPart((load_part(part), SAMPLE_RATE)) if isinstance(part, AudioPart) else part
            for part in user_parts(message)
        ]
        self._asked = self.conversation.add("user", *heard)
        self.open_stream = self._assistant.open(self._asked, self._assistant.fields(options), session=self)
        return self.open_stream

    def finished(self, reply: RemoteReply) -> None:
        """Enter an answer."""
        self.conversation = self._asked.assistant(reply.text)
        self.open_stream = None
