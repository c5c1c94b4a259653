"""The front door: `load() -> Assistant`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.checkpoints.load import load_config, load_model, read_json, weight_files
from qwen2_audio.checkpoints.merge import merge_trained, own_weights
from qwen2_audio.checkpoints.quantize import is_int8, put_into_int8
from qwen2_audio.checkpoints.quantize_gpu import is_rounded, round_language_model
from qwen2_audio.checkpoints.save import save
from qwen2_audio.errors import UsageError
from qwen2_audio.generation.engine import Engine, Request
from qwen2_audio.generation.options import GenerationDefaults, GenerationOptions
from qwen2_audio.generation.reply import Reply, answer_all
from qwen2_audio.generation.sequence import FinishReason
from qwen2_audio.kernels.steps import lay_out
from qwen2_audio.longform.listening import TRANSCRIBE, TRANSLATE, Question
from qwen2_audio.longform.segments import Segment
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.chat_template import GENERATION_PROMPT, begin, check, render_turn, with_system
from qwen2_audio.processing.conversation import (
    AudioPart,
    AudioSource,
    Conversation,
    Input,
    Item,
    TextPart,
    as_audio,
    as_conversation,
    is_wave,
    user_parts,
)
from qwen2_audio.processing.processor import Processor, Prompt, load_processor
from qwen2_audio.processing.tokenizer import END_OF_TEXT, IM_END
from qwen2_audio.remote.address import is_address
from qwen2_audio.remote.opening import open_remote, refuse_local_options
from qwen2_audio.runtime import Runtime, choose_runtime
from qwen2_audio.transcription import Transcriber, Transcript, blocks_of

LEAST_INT8_BYTES = 10**8
"""Files smaller than this stay exact under `quantize="auto"`: they are quick anyway."""


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
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    json_schema: str | Mapping[str, Any] | None


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

    def transcribe(self, audio: AudioSource | AudioPart, **options: Unpack[Options]) -> Transcript:
        """Write down what is said in a recording of any length; see `transcribe_many`."""
        return self.transcribe_many([audio], **options)[0]

    def transcribe_many(
        self, audios: Sequence[AudioSource | AudioPart], **options: Unpack[Options]
    ) -> list[Transcript]:
        """Write down what is said in several recordings, together.

        Recordings longer than the checkpoint's transcription window (30 s unless its `generation_config.json` says less)
        are cut where nobody speaks and heard window by window, each a segment of the result with its times; silence is
        left out. They are decoded as they are heard, so that memory does not grow with their length.

        Unless told otherwise it is greedy, free to repeat words (no repetition penalty), and no longer than fast speech
        could be. Where the model goes round in circles the window is heard again in halves; what still does ends with
        finish_reason "length".
        """
        if isinstance(audios, str | bytes | AudioPart):
            raise UsageError("transcribe_many takes a list of recordings; for a single one use transcribe")
        parts = [as_audio(audio) for audio in audios]
        return self._transcriber(options).transcribe([blocks_of(part) for part in parts])

    def transcribe_stream(self, audio: AudioSource | AudioPart, **options: Unpack[Options]) -> Iterator[Segment]:
        """Like `transcribe`, segment by segment as they come."""
        return self._transcriber(options).segments(blocks_of(as_audio(audio)))

    def translate(self, audio: AudioSource | AudioPart, **options: Unpack[Options]) -> Transcript:
        """Write down in English what is said in any language; as `transcribe` otherwise."""
        return self._transcriber(options, TRANSLATE).transcribe([blocks_of(as_audio(audio))])[0]

    def _transcriber(self, options: Options, instruction: str = TRANSCRIBE) -> Transcriber:
        given: Options = {"temperature": 0.0, "repetition_penalty": 1.0}
        given.update({name: value for name, value in options.items() if value is not None})  # type: ignore[typeddict-item]
        limit = given.get("max_new_tokens")  # not the checkpoint's: what fits the window
        question = Question(instruction, replace(self.options(given), max_new_tokens=limit))
        return Transcriber(self.engine, self.processor, self.transcription_window, question)

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
            many: Sequence[Any] = audios if isinstance(audios, list | tuple) and not is_wave(audios) else [audios]
            prepared.append(self.processor.prepare_base(many, instruction))
        return answer_all(self.engine, [self._request(prompt, options) for prompt in prepared])

    def session(self, *, system: str | None = None) -> Session:
        """A chat of many turns that never computes anything twice."""
        return Session(self, system)

    def save(self, folder: str | Path) -> None:
        """Write the model as a checkpoint folder in the published layout.

        Raises:
            CheckpointError: the folder exists, or cannot be written.
            UsageError: the model was loaded quantised, which that layout does not know.
        """
        if is_int8(self.engine.model) or is_rounded(self.engine.model):
            raise UsageError(
                "a quantised model cannot be saved, its weights were rounded; load it with quantize='none'"
            )
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
        self.conversation = begin(self._system)
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
        if tokenizer.decode(said) != reply.text:  # cut by a stop string, or with control tokens that it does not show
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
    quantize: str = "none",
    revision: str | None = None,
    offline: bool = False,
    key_variable: str | None = None,
) -> Assistant:
    """Find, fetch if need be, and load a model.

    Args:
        model: "mini"; a checkpoint folder; a hub name such as "Qwen/Qwen2-Audio-7B-Instruct" (also "hf:NAME");
            "modelscope:NAME"; or "openai:http://host:8000/v1", a model behind an OpenAI-compatible address (another one than
            its first: "openai:http://host:8000/v1#NAME"), asked with the key in OPENAI_API_KEY: then the result is a
            `RemoteAssistant`, which chats, streams, batches and transcribes alike, and has no weights.
        adapter: what was trained on it: an adapter in peft's format (a folder), or the file that `qwen2-audio train` gave.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto", "float32", "bfloat16", "float16".
        quantize: "none"; "int8": on a CPU, a quarter of float32's memory and several times its speed, slightly less exact;
            "int8", "int4", "fp8" on CUDA: the language model's weights, int8 and fp8 by torchao; "auto": int8 where the CPU has
            instructions for it, no dtype was asked for and the model is not tiny.
        revision: branch, tag or commit of a hub model.
        offline: use only what is on this machine.
        key_variable: the environment variable with the key of a server, in place of OPENAI_API_KEY. That one is sent over
            https or to this machine only; a variable that is named goes wherever the address says.

    Raises:
        CheckpointError: the model cannot be found, fetched or read.
        UsageError: the device or dtype makes no sense here.
        ServerError: nobody answers at the address.
    """
    if isinstance(model, str) and is_address(model):
        refuse_local_options(
            adapter=adapter, device=device, dtype=dtype, quantize=quantize, revision=revision, offline=offline
        )
        return cast("Assistant", open_remote(model, key_variable=key_variable))
    if key_variable is not None:
        raise UsageError("key_variable is for a model at an address, openai:URL; leave it out")
    runtime = choose_runtime(device, dtype, quantize)
    name = str(model.absolute()) if isinstance(model, Path) else model  # a Path is a folder, whatever its name
    folder = find_checkpoint(name, revision=revision, offline=offline)
    if quantize == "auto" and sum(file.stat().st_size for file in weight_files(folder)) < LEAST_INT8_BYTES:
        runtime = replace(runtime, quantize="none")
    config = load_config(folder)
    processor = load_processor(folder, config)
    network = load_network(folder, runtime, adapter)
    defaults = read_defaults(folder, processor)
    engine = Engine(network, processor.tokenizer, defaults.end_ids)
    return Assistant(engine, processor, defaults, folder)


def load_network(folder: Path, runtime: Runtime, adapter: str | Path | None = None) -> Qwen2Audio:
    """The neural network of a checkpoint folder, with what was trained on it, laid out for inference."""
    at_once = runtime.int8_on_cpu and adapter is None
    network = load_model(folder, device=runtime.device, dtype=runtime.dtype, int8=at_once)
    if adapter is not None:
        own_weights(network)
        merge_trained(network, Path(os.path.expanduser(adapter)))
    if runtime.int8_on_cpu and not at_once:
        put_into_int8(network)
    return prepare_network(network, runtime)


def prepare_network(network: Qwen2Audio, runtime: Runtime) -> Qwen2Audio:
    """A model with its final weights, rounded where that is done on the device, and laid out for inference."""
    if runtime.quantize != "none" and not runtime.int8_on_cpu:
        round_language_model(network, runtime.quantize)
    lay_out(network)
    return network


def read_defaults(folder: Path, processor: Processor) -> GenerationDefaults:
    """How the checkpoint in `folder` answers unless told otherwise."""
    file = folder / "generation_config.json"
    fallback = [processor.tokenizer.id_of(token) for token in (IM_END, END_OF_TEXT)]
    return GenerationDefaults.from_hf(read_json(file) if file.exists() else {}, fallback)
