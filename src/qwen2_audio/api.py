"""The front door: `load() -> Assistant`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack

from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.checkpoints.load import load_config, load_model, read_json
from qwen2_audio.checkpoints.merge import merge_trained, own_weights
from qwen2_audio.checkpoints.save import save
from qwen2_audio.config import MAX_SAMPLES, SAMPLE_RATE
from qwen2_audio.errors import AudioWarning, ConversationError, UsageError
from qwen2_audio.generation.engine import Engine, Request
from qwen2_audio.generation.options import GenerationDefaults, GenerationOptions
from qwen2_audio.generation.reply import Reply, answer_all
from qwen2_audio.generation.sequence import FinishReason
from qwen2_audio.model.linear import pack_linears
from qwen2_audio.processing.audio import load_part
from qwen2_audio.processing.chat_template import GENERATION_PROMPT, check, render_turn, with_system
from qwen2_audio.processing.conversation import AudioPart, AudioSource, Conversation, Part, TextPart, user_parts
from qwen2_audio.processing.processor import Processor, Prompt, load_processor
from qwen2_audio.processing.tokenizer import END_OF_TEXT, IM_END
from qwen2_audio.runtime import choose_runtime
from qwen2_audio.transcription import Transcriber

Item: TypeAlias = "AudioSource | Part"
Input: TypeAlias = "Item | Sequence[Item] | Conversation"
"""One thing to say or show, several in order, or a whole conversation."""


class Options(TypedDict, total=False):
    """Keyword options of every call that generates; see `GenerationOptions`. What is left out (or None) is as the
    checkpoint's `generation_config.json` says."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None


class ReplyStream:
    """Iterate over an answer's text as it is written; `cancel()` ends it early; `reply` is the answer so far."""

    def __init__(self, engine: Engine, request: Request, session: Session | None = None) -> None:
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._finish: FinishReason | None = None
        self._cancelled = False
        self._prompt_tokens = len(request.context) + len(request.ids)
        self._session = session
        cache = session.cache if session else None
        self._steps = engine.run([request], cache, lambda: self._cancelled)

    def __iter__(self) -> Iterator[str]:
        self._refuse_if_overtaken()
        for step in self._steps:
            self._tokens.append(step.token)
            self._pieces.append(step.text)
            self._finish = step.finish_reason
            if step.finish_reason and self._session:
                self._session._finished(self.reply)
            if step.text:
                yield step.text
                self._refuse_if_overtaken()
        if self._finish is None:
            self._finish = "cancelled"
            if self._session and self.reply.text:  # a turn without any answer is forgotten
                self._session._finished(self.reply)

    def _refuse_if_overtaken(self) -> None:
        """A session has one cache: an answer that was left unfinished cannot go on after the next turn has begun."""
        if self._finish is None and self._session and self._session.open_stream is not self:
            raise UsageError(
                "this answer was left unfinished and its session has gone on without it; "
                "read a stream to its end before the next turn"
            )

    def cancel(self) -> None:
        """Stop before the next token. May be called from another thread."""
        self._cancelled = True

    @property
    def reply(self) -> Reply:
        """The answer so far; whole once the iteration has ended."""
        return Reply("".join(self._pieces), self._finish or "cancelled", tuple(self._tokens), self._prompt_tokens)

    def run(self) -> Reply:
        """Go through to the end."""
        for _ in self:
            pass
        return self.reply


class Assistant:
    """A loaded model, ready to be talked to."""

    def __init__(self, engine: Engine, processor: Processor, defaults: GenerationDefaults, folder: Path) -> None:
        self.engine = engine
        self.processor = processor
        self.defaults = defaults.options
        self.transcription_window = defaults.transcription_window
        self.folder = folder

    @property
    def model(self) -> Any:
        """The neural network, a `qwen2_audio.model.qwen2_audio.Qwen2Audio`."""
        return self.engine.model

    def chat(self, message: Input, *, system: str | None = None, **options: Unpack[Options]) -> Reply:
        """Answer one message: a recording (voice chat), recordings and text (audio analysis), text, or a conversation."""
        return self.stream(message, system=system, **options).run()

    def stream(self, message: Input, *, system: str | None = None, **options: Unpack[Options]) -> ReplyStream:
        """Like `chat`, but the text comes piece by piece."""
        prompt = self.processor.prepare(as_conversation(message, system))
        return ReplyStream(self.engine, self._request(prompt, options))

    def batch(self, messages: Sequence[Input], *, system: str | None = None, **options: Unpack[Options]) -> list[Reply]:
        """Answer several unrelated messages or conversations together; each as if it were alone."""
        if isinstance(messages, str | bytes | Conversation):
            raise UsageError("batch takes a list of messages, one for each answer; for a single one use chat")
        prompts = [self.processor.prepare(as_conversation(message, system)) for message in messages]
        return answer_all(self.engine, [self._request(prompt, options) for prompt in prompts])

    def transcribe(self, audio: AudioSource | AudioPart, **options: Unpack[Options]) -> Reply:
        """Write down what is said, long recordings piece by piece; see `transcribe_many`."""
        return self.transcribe_many([audio], **options)[0]

    def transcribe_many(self, audios: Sequence[AudioSource | AudioPart], **options: Unpack[Options]) -> list[Reply]:
        """Write down what is said in several recordings, together.

        Recordings longer than the checkpoint's transcription window (30 s unless its `generation_config.json` says less)
        are cut at pauses and transcribed piece by piece; above 30 s an `AudioWarning` says so.

        Unless told otherwise it is greedy, free to repeat words (no repetition penalty), and no longer than fast speech
        could be. Where the model goes round in circles the piece is heard again in halves; what still does ends with
        finish_reason "length".
        """
        if isinstance(audios, str | bytes | AudioPart):
            raise UsageError("transcribe_many takes a list of recordings; for a single one use transcribe")
        given: Options = {"temperature": 0.0, "repetition_penalty": 1.0}
        given.update({name: value for name, value in options.items() if value is not None})  # type: ignore[typeddict-item]
        limit = given.get("max_new_tokens")
        chosen = replace(
            self.options(given), max_new_tokens=limit
        )  # else not the checkpoint's, but what fits the piece
        recordings = []
        for number, audio in enumerate(audios, 1):
            samples = load_part(_as_audio(audio))
            if len(samples) > MAX_SAMPLES:
                name = audio if isinstance(audio, str | Path) else f"recording {number}"
                note = f"{name} is {len(samples) / SAMPLE_RATE:.1f} s long; it is transcribed in parts, cut at pauses"
                warnings.warn(note, AudioWarning, stacklevel=2)
            recordings.append(samples)
        return Transcriber(self.engine, self.processor, self.transcription_window, chosen).transcribe(recordings)

    def complete(
        self, audios: AudioSource | Sequence[AudioSource], instruction: str, **options: Unpack[Options]
    ) -> Reply:
        """The base model's bare prompt: recordings directly followed by the instruction, no chat."""
        return self.complete_many([(audios, instruction)], **options)[0]

    def complete_many(
        self, prompts: Sequence[tuple[AudioSource | Sequence[AudioSource], str]], **options: Unpack[Options]
    ) -> list[Reply]:
        """Continue several of the base model's bare prompts together; each as if it were alone.

        Args:
            prompts: pairs of the recordings (a list, or a single one) and the instruction that follows them.
        """
        prepared = []
        for audios, instruction in prompts:
            many: Sequence[Any] = audios if isinstance(audios, list) else [audios]
            prepared.append(self.processor.prepare_base(many, instruction))
        return answer_all(self.engine, [self._request(prompt, options) for prompt in prepared])

    def session(self, *, system: str | None = None) -> Session:
        """A chat of many turns that never computes anything twice."""
        return Session(self, system)

    def save(self, folder: str | Path) -> None:
        """Write the model as a checkpoint folder in the published layout."""
        save(self.engine.model, Path(os.path.expanduser(folder)), source=self.folder)

    def options(self, given: Options) -> GenerationOptions:
        """The checkpoint's defaults with what the caller gave put in their place."""
        unknown = given.keys() - Options.__annotations__.keys()
        if unknown:
            known = ", ".join(Options.__annotations__)
            raise UsageError(f"unknown option {sorted(unknown)[0]!r}; the options are {known}")
        return self.defaults.override(**given)

    def _request(self, prompt: Prompt, given: Options) -> Request:
        return Request(prompt.ids, prompt.clips, self.options(given))


class Session:
    """A conversation that goes on: the cache keeps what was heard and said, a new turn costs only what is new in it."""

    def __init__(self, assistant: Assistant, system: str | None) -> None:
        self._assistant = assistant
        self._system = system
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.conversation = Conversation().system(self._system) if self._system is not None else Conversation()
        if self.conversation.messages:
            check(self.conversation)
        self.cache = self._assistant.engine.model.new_cache(1, 512)
        self.open_stream: ReplyStream | None = None
        self._cached: list[int] = []
        self._pending: list[int] = []
        self._audios = 0

    def send(self, *message: Item, **options: Unpack[Options]) -> Reply:
        """Say something; the answer becomes part of the conversation."""
        return self.stream(*message, **options).run()

    def stream(self, *message: Item, **options: Unpack[Options]) -> ReplyStream:
        """Like `send`, piece by piece. The turn counts once the stream has been read to its end; a new turn before that
        takes its place."""
        assistant, processor = self._assistant, self._assistant.processor
        chosen = assistant.options(options)
        new = Conversation().add("user", *user_parts(message))
        check(new)
        heard, clips = processor.hear(new)
        opening = with_system(self.conversation.add("user", TextPart(""))).messages[0]
        text = render_turn(opening, 0)[0] if not self._cached and not self._pending else ""
        turn, audios = render_turn(heard.messages[0], self._audios)
        ids = self._pending + processor.encode(text + turn + GENERATION_PROMPT, clips)
        processor.check_context(len(self._cached) + len(ids))
        self.cache.truncate(0, len(self._cached))
        self._turn = (new, audios, self._cached + ids)
        self.open_stream = ReplyStream(assistant.engine, Request(ids, clips, chosen, context=self._cached), self)
        return self.open_stream

    def _finished(self, reply: Reply) -> None:
        """Enter an answer: keep what the cache holds of it, and remember what must follow before the next turn."""
        new, self._audios, prompt = self._turn
        self.conversation = Conversation((*self.conversation.messages, *new.messages)).assistant(reply.text)
        tokenizer = self._assistant.processor.tokenizer
        said = list(reply.tokens)
        end = tokenizer.id_of(IM_END)
        if said and said[-1] in self._assistant.engine.end_ids:
            said.pop()
        if tokenizer.decode(said, skip_special=True) != reply.text:  # cut by a stop string
            said = tokenizer.encode(reply.text)
        whole = prompt + said
        held = self.cache.lengths[0]
        actual = (prompt + list(reply.tokens))[:held]
        same = next((i for i, (a, b) in enumerate(zip(actual, whole, strict=False)) if a != b), min(held, len(whole)))
        self._cached, self._pending = whole[:same], [*whole[same:], end, *tokenizer.encode("\n")]


def load(
    model: str | Path = "mini",
    *,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    offline: bool = False,
) -> Assistant:
    """Find, fetch if need be, and load a model.

    Args:
        model: "mini"; a checkpoint folder; a hub name such as "Qwen/Qwen2-Audio-7B-Instruct" (also "hf:NAME"); or
            "modelscope:NAME".
        adapter: what was trained on it: an adapter in peft's format (a folder), or the file that `qwen2-audio train` gave.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto", "float32", "bfloat16", "float16".
        revision: branch, tag or commit of a hub model.
        offline: use only what is on this machine.

    Raises:
        CheckpointError: the model cannot be found, fetched or read.
        UsageError: the device or dtype makes no sense here.
    """
    runtime = choose_runtime(device, dtype)
    name = str(model.absolute()) if isinstance(model, Path) else model  # a Path is a folder, whatever its name
    folder = find_checkpoint(name, revision=revision, offline=offline)
    config = load_config(folder)
    processor = load_processor(folder, config)
    network = load_model(folder, device=runtime.device, dtype=runtime.dtype)
    if adapter is not None:
        own_weights(network)
        merge_trained(network, Path(os.path.expanduser(adapter)))
    pack_linears(network)
    file = folder / "generation_config.json"
    fallback = [processor.tokenizer.id_of(token) for token in (IM_END, END_OF_TEXT)]
    defaults = GenerationDefaults.from_hf(read_json(file) if file.exists() else {}, fallback)
    engine = Engine(network, processor.tokenizer, defaults.end_ids)
    return Assistant(engine, processor, defaults, folder)


def as_conversation(message: Input, system: str | None = None) -> Conversation:
    """A message as a conversation; a list of dicts is read as the original's conversation form, a tuple of two whose second
    is a number as (samples, rate)."""
    if isinstance(message, Conversation):
        conversation = message
    elif isinstance(message, list) and message and all(isinstance(item, dict) for item in message):
        conversation = Conversation.parse(message)
    else:
        wave = isinstance(message, tuple) and len(message) == 2 and not isinstance(message[1], str | bytes | Path)
        items: Sequence[Any] = message if isinstance(message, list | tuple) and not wave else [message]
        conversation = Conversation().user(*items)
    if system is None:
        return conversation
    if conversation.messages and conversation.messages[0].role == "system":
        raise ConversationError("a system message is given twice: in the conversation and as system=")
    return Conversation((*Conversation().system(system).messages, *conversation.messages))


def _as_audio(audio: AudioSource | Part) -> AudioPart:
    if isinstance(audio, TextPart):
        raise ConversationError(f"there is nothing to transcribe in a text: {audio.text!r:.60}")
    return audio if isinstance(audio, AudioPart) else AudioPart(audio)
