"""The form of a transcription: OpenAI's fields, checked, and the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from qwen2_audio.longform.listening import LANGUAGES, TRANSCRIBE, TRANSLATE, transcribe_in
from qwen2_audio.serving.errors import RequestError
from qwen2_audio.serving.fields import Strict

F = TypeVar("F", bound="AudioForm")
ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
_LISTS = ("include", "timestamp_granularities")
_NO_SPEAKERS = "it does not tell speakers apart"
_REFUSED: Mapping[str, str] = {
    "known_speaker_names": _NO_SPEAKERS,
    "known_speaker_references": _NO_SPEAKERS,
    "keywords": "the model takes no hints; correct its text afterwards",
    "languages": "give one in language",
}
_NO_PROMPT = (
    "prompt: the model was not taught to go on from a text before, so none is passed on to it; leave it out, or ask it with "
    "your own words in /v1/chat/completions"
)
_NO_WORDS = "timestamp_granularities: times of words are not known, only those of segments; ask for segment"
_NO_DIARIZATION = f"response_format: diarized_json is not supported: {_NO_SPEAKERS}; use verbose_json"
_ONLY_AUTO = "chunking_strategy: recordings are cut where nobody speaks, as suits the model; give auto, or leave it out"


class AudioForm(Strict):
    """Fields that both routes have."""

    ignored: ClassVar[frozenset[str]] = frozenset({"user"})
    task: ClassVar[str]
    model: str = Field(description="A name of /v1/models.", min_length=1)
    prompt: str = Field("", description="Must be empty: the model takes no text to go on from.")
    response_format: ResponseFormat = "json"
    temperature: float = Field(0.0, description="0 takes the likeliest token; more is freer.", ge=0, le=2)

    @property
    def instruction(self) -> str:
        """What is asked of the model."""
        raise NotImplementedError

    @property
    def spoken(self) -> str:
        """The name of the language of the text."""
        raise NotImplementedError


class TranscriptionForm(AudioForm):
    """The fields of /v1/audio/transcriptions."""

    task = "transcribe"
    language: str | None = Field(None, description="Of the speech, ISO 639-1. It is not guessed where it is left out.")
    stream: bool = Field(False, description="Events transcript.text.delta and, at the end, transcript.text.done.")
    include: list[Literal["logprobs"]] = Field([], description="logprobs, with response_format json.")
    timestamp_granularities: list[Literal["segment"]] = Field([], description="segment, with verbose_json.")
    chunking_strategy: Literal["auto"] = Field("auto", description="Recordings are always cut where nobody speaks.")

    @property
    def instruction(self) -> str:
        """What is asked of the model."""
        return transcribe_in(self.language) if self.language else TRANSCRIBE

    @property
    def spoken(self) -> str:
        """The name of the language, "unknown" where nobody said it."""
        return LANGUAGES[self.language].lower() if self.language else "unknown"


class TranslationForm(AudioForm):
    """The fields of /v1/audio/translations."""

    task = "translate"

    @property
    def instruction(self) -> str:
        """What is asked of the model."""
        return TRANSLATE

    @property
    def spoken(self) -> str:
        """The language of the text."""
        return "english"


def read_form(form: FormData, kind: type[F]) -> tuple[F, UploadFile]:
    """The fields and the file of a form.

    Raises:
        RequestError, RequestValidationError: a field is missing, unknown, given twice or makes no sense.
    """
    given: dict[str, Any] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        if name in _LISTS:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise RequestError(f"{key[:100]} is given twice; give it once", key[:100])
        else:
            given[name] = value
    file = given.pop("file", None)
    if not isinstance(file, UploadFile):
        raise RequestError("file: give a recording, as a file of multipart/form-data", "file", "missing_parameter")
    for name, value in given.items():
        if isinstance(value, UploadFile) or (isinstance(value, list) and any(isinstance(v, UploadFile) for v in value)):
            raise RequestError(f"{name[:100]} must be text, not a file", name[:100])
    _refuse_by_name(given)
    try:
        checked = kind.model_validate({name: _typed(name, value) for name, value in given.items()})
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(errors, body=given) from None
    _check_together(checked)
    return checked, file


def _refuse_by_name(given: Mapping[str, Any]) -> None:
    for name in given:
        base = name.partition("[")[0]
        if base in _REFUSED:
            raise RequestError(
                f"{base} is not supported: {_REFUSED[base]}; leave it out", base, "unsupported_parameter"
            )
    if str(given.get("prompt", "")).strip():
        raise RequestError(_NO_PROMPT, "prompt", "unsupported_parameter")
    if "word" in given.get("timestamp_granularities", ()):
        raise RequestError(_NO_WORDS, "timestamp_granularities", "unsupported_parameter")
    if given.get("response_format") == "diarized_json":
        raise RequestError(_NO_DIARIZATION, "response_format", "unsupported_parameter")
    if given.get("chunking_strategy", "auto") != "auto" or any(name.startswith("chunking_strategy[") for name in given):
        raise RequestError(_ONLY_AUTO, "chunking_strategy", "unsupported_parameter")


def _typed(name: str, value: Any) -> Any:
    """A form knows only text; what is no number or truth value stays text, for the schema to complain about."""
    if name == "stream" and str(value).lower() in ("true", "false", "1", "0"):
        return str(value).lower() in ("true", "1")
    if name == "temperature":
        try:
            return float(value)
        except ValueError:
            return value
    return value or None if name == "language" else value


def _check_together(form: AudioForm) -> None:
    """Fields that only make sense with others."""
    if not isinstance(form, TranscriptionForm):
        return
    if form.language is not None and form.language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise RequestError(f"language: {form.language[:100]!r} is not known; known are {known}", "language")
    format = form.response_format
    if form.include and format != "json":
        raise RequestError(f"include: logprobs come only with response_format json, not {format}", "include")
    if form.timestamp_granularities and format != "verbose_json":
        message = f"timestamp_granularities: times come with response_format verbose_json, not {format}"
        raise RequestError(message, "timestamp_granularities")
    if form.stream and format not in ("json", "text"):
        raise RequestError(f"stream: events hold text only; response_format {format} comes whole", "stream")
