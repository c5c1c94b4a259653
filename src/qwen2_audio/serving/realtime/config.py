"""What a client has chosen for its connection: `SessionConfig`, changed by `session.update`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.longform.listening import LANGUAGES
from qwen2_audio.serving.realtime.fields import EventError, Fields

RATES = (24_000, SAMPLE_RATE)
"""Of the sound that comes in; the first is that of OpenAI's API."""
MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a connection may hold.

    Attributes:
        items: of its conversation.
        seconds: of sound in its conversation.
        turn_seconds: of one turn.
        text: characters of the instructions, and of the conversation.
    """

    items: int = 400
    seconds: float = 1200.0
    turn_seconds: float = 120.0
    text: int = 1_000_000


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """When the user's turn begins and ends, as heard by the server.

    Attributes:
        threshold: probability from which a sound is speech.
        prefix_padding_ms: sound kept from before speech was noticed.
        silence_duration_ms: silence that ends a turn.
        create_response: a turn's end asks for an answer.
        interrupt_response: a turn's beginning ends the answer that is being given.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True

    def as_json(self) -> dict[str, Any]:
        """In OpenAI's form."""
        return {
            "type": "server_vad",
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_duration_ms,
            "create_response": self.create_response,
            "interrupt_response": self.interrupt_response,
        }


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """A connection's choices.

    Attributes:
        rate: of the sound that comes in, 16 bits, one channel.
        turns: None: the client says when a turn ends.
        transcribe: also write down what the user says.
        language: that it is said in, by its code; "" is not said.
        max_tokens: of an answer; None: as the model's defaults say.
        temperature: None: as the model's defaults say (an extension, like `audio.input.format.rate` 16000).
        forget: drop the oldest turns when the context is full; else the answer fails.
    """

    model: str
    instructions: str = ""
    rate: int = RATES[0]
    turns: TurnDetection | None = field(default_factory=TurnDetection)
    transcribe: bool = False
    language: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    forget: bool = True

    def as_json(self) -> dict[str, Any]:
        """In OpenAI's form."""
        return {
            "type": "realtime",
            "object": "realtime.session",
            "model": self.model,
            "instructions": self.instructions,
            "output_modalities": ["text"],
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": self.rate},
                    "turn_detection": None if self.turns is None else self.turns.as_json(),
                    "transcription": self._transcription() if self.transcribe else None,
                    "noise_reduction": None,
                }
            },
            "max_output_tokens": "inf" if self.max_tokens is None else self.max_tokens,
            "temperature": self.temperature,
            "truncation": "auto" if self.forget else "disabled",
            "tools": [],
            "tool_choice": "auto",
        }

    def _transcription(self) -> dict[str, str]:
        return {"model": self.model} | ({"language": self.language} if self.language else {})

    def updated(self, given: Any, *, longest: int) -> SessionConfig:
        """These choices with those of a `session.update` in their place.

        Args:
            longest: characters of the instructions.

        Raises:
            EventError: one makes no sense, or is not to be had here.
        """
        session = Fields(given, "session")
        session.only(_SESSION, _NEUTRAL)
        session.one_of("type", ("realtime",), "realtime")
        if session.text("model", self.model) != self.model:
            raise EventError(
                "the model of a connection cannot be changed; connect anew", "invalid_value", "session.model"
            )
        check_modalities(session)
        audio = session.inside("audio")
        audio.only(("input",), {"output": ({},)})
        sound = audio.inside("input")
        sound.only(("format", "turn_detection", "transcription"), {"noise_reduction": ()})
        transcribe, language = self._transcribes(sound)
        truncation = session.one_of("truncation", ("auto", "disabled"), "auto" if self.forget else "disabled")
        return replace(
            self,
            instructions=session.text("instructions", self.instructions, longest=longest),
            rate=_rate(sound, self.rate),
            turns=_turns(sound, self.turns),
            transcribe=transcribe,
            language=language,
            max_tokens=max_tokens(session, self.max_tokens),
            temperature=temperature(session, self.temperature),
            forget=truncation == "auto",
        )

    def _transcribes(self, sound: Fields) -> tuple[bool, str]:
        """Whether, and in which language. Whichever model is named, the one of the connection hears."""
        if "transcription" not in sound.given:
            return self.transcribe, self.language
        if sound.given["transcription"] is None:
            return False, ""
        wanted = sound.inside("transcription")
        wanted.only(("model", "language"), {"prompt": ("",)})
        return True, wanted.one_of("language", tuple(LANGUAGES), "")


_SESSION = (
    "type",
    "model",
    "instructions",
    "output_modalities",
    "audio",
    "max_output_tokens",
    "temperature",
    "truncation",
)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "object": ("realtime.session",),
        "tools": ([],),
        "tool_choice": ("auto", "none"),
        "parallel_tool_calls": (True, False),
        "tracing": (),
        "include": ([],),
        "prompt": (),
        "reasoning": (),
    }
)


def check_modalities(given: Fields) -> None:
    """Refuse anything but answers in text."""
    modalities = given.given.get("output_modalities")
    if modalities not in (None, ["text"]):
        raise given.wrong("output_modalities", '["text"] (the model does not speak; read its text aloud)', modalities)


def max_tokens(given: Fields, default: int | None) -> int | None:
    """`max_output_tokens`, a number or "inf"."""
    value = given.given.get("max_output_tokens")
    if value is None:
        return default
    if value == "inf":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
        raise given.wrong("max_output_tokens", 'a whole number above 0, or "inf"', value)
    return value


def temperature(given: Fields, default: float | None) -> float | None:
    """0, which takes the likeliest token, or up to 2."""
    if given.given.get("temperature") is None:
        return default
    value = given.number("temperature", 0, 0, 2)
    return float(value) if value >= 1e-4 else 0.0


def _rate(sound: Fields, default: int) -> int:
    form = sound.inside("format")
    form.only(("type", "rate"))
    form.one_of("type", ("audio/pcm",), "audio/pcm")
    rate = form.given.get("rate")
    if rate is not None and rate not in RATES:
        raise form.wrong("rate", " or ".join(map(str, RATES)), rate)
    return default if rate is None else int(rate)


def _turns(sound: Fields, default: TurnDetection | None) -> TurnDetection | None:
    if "turn_detection" not in sound.given:
        return default
    if sound.given["turn_detection"] is None:
        return None
    known = default or TurnDetection()
    given = sound.inside("turn_detection")
    given.only(tuple(known.as_json()), {"idle_timeout_ms": ()})
    given.one_of("type", ("server_vad",))
    return TurnDetection(
        given.number("threshold", known.threshold, 0.05, 0.95),
        int(given.number("prefix_padding_ms", known.prefix_padding_ms, 0, 5000)),
        int(given.number("silence_duration_ms", known.silence_duration_ms, 50, 10_000)),
        given.flag("create_response", known.create_response),
        given.flag("interrupt_response", known.interrupt_response),
    )
