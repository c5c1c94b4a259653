"""Rows of JSON, in the shapes that people have them, to what they teach. No recording is opened here, no tensor made.

- conversations: `{"messages": [{"role": ..., "content": ...}, ...]}`, content as text or as parts; recordings stand in the
  parts, or as `"audios": [...]` whose places the text marks with `<audio>` (a single one without a mark comes first);
- the same as `{"conversations": [{"from": "human", "value": ...}, ...]}` or `{"query": ..., "response": ...}`, the latter
  with `"history": [[query, response], ...]` and `"system"`;
- preferences: a conversation (or `"prompt"`) with `"chosen"` and `"rejected"` answers, or one with a last answer and
  `"rejected_response"` or `"rejected_messages"`, the same conversation with the worse answer;
- the official evaluation's: `{"audio": ..., "prompt": ..., "gt": ...}`, the base model's bare prompt;
- pre-training by task: `{"audio": ..., "text": ..., "task": "asr", "language": "en"}` (tasks.json names the tasks), also
  `{"wav": ..., "txt": ...}`; where the task is about language, the target begins with the language's tag.

A recording is a path (relative ones start at the file's folder), a URL, or `{"path": ..., "start": 1.5, "end": 4.0}` in
seconds. `"loss": false` on a message leaves that answer out of the loss, `"complete": false` says that the last answer was
cut off, `"spoken"` what is said in the only recording, `"loss_weight"` how much each of the row's targets counts beside those
of others (1). Other keys are the row's own business.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from qwen2_audio.errors import UsageError
from qwen2_audio.processing.conversation import AudioPart, Conversation, Message, Part, TextPart

AUDIO_TAG = "<audio>"
_REJECTED = {"rejected", "rejected_response", "rejected_messages"}
"""Where the worse answer stands."""
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_NOT_HEARD = ("wav", "audio_path", "audio_url", "audio_file")
"""Where other programs' conversations name their recordings."""
_SOURCE_KEYS = ("audio", "path", "audio_url", "url")


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation, and which of its messages are learnt.

    Attributes:
        learnt: one for each message; true for answers only.
        complete: whether the last answer ends where it ends.
        spoken: what is said in the only recording, "" where that is not known.
        weight: of each of its targets in the loss.
    """

    conversation: Conversation
    learnt: tuple[bool, ...]
    complete: bool = True
    spoken: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class BareRow:
    """The base model's form: recordings, a prompt, and the text that follows."""

    audios: tuple[AudioPart, ...]
    prompt: str
    target: str
    spoken: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A conversation that ends with the user, and a better and a worse answer."""

    conversation: Conversation
    chosen: str
    rejected: str


Row: TypeAlias = ChatRow | BareRow | PreferenceRow


def parse_row(row: Any, folder: Path) -> Row:
    """Read one row of any of the shapes above.

    Args:
        folder: what relative paths start from.

    Raises:
        UsageError: it has none of these shapes, or marks and recordings do not fit.
        ConversationError: a message makes no sense.
    """
    if not isinstance(row, Mapping):
        raise UsageError(f"a row is a JSON object, got {type(row).__name__}")
    if messages := _messages(row):
        audios = [_audio(value, folder) for value in _audio_list(row)]
        conversation = _conversation(messages, audios, folder)
        _refuse_lost(row, conversation)
        if _REJECTED & row.keys():
            return _preference(row, conversation)
        loss = tuple(_learnt(message) for message in messages)
        for message, learnt in zip(conversation.messages, loss, strict=True):
            if learnt and any(isinstance(part, AudioPart) for part in message.parts):
                raise UsageError(
                    "a recording stands in an answer; the model answers in text, give what is to be learnt"
                )
        complete = row.get("complete", True)
        if not isinstance(complete, bool) or not (complete or conversation.messages[-1].role == "assistant"):
            raise UsageError(
                f'"complete" is true, or false where the last message is an answer cut short, got {complete!r:.80}'
            )
        return ChatRow(conversation, loss, complete, _text(row, "spoken", ""), _weight(row))
    if row.get("complete", True) is not True:
        raise UsageError('"complete" is for conversations; leave it out')
    if {"audio", "prompt", "gt"} <= row.keys():
        audio, spoken = _audio(row["audio"], folder), _text(row, "spoken", "")
        return BareRow((audio,), _text(row, "prompt"), _text(row, "gt"), spoken, _weight(row))
    for heard, text in (("audio", "text"), ("wav", "txt")):
        if {heard, text} <= row.keys():
            return _task(row, _audio(row[heard], folder), _text(row, text))
    raise UsageError(
        'a row needs "messages" (or "conversations", or "query" and "response"), or "audio" with "prompt" and "gt", '
        f'or "audio" with "text"; got the keys {", ".join(map(repr, row)) or "of an empty object"}'
    )


def _messages(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The messages of a conversation of any of the three shapes; [] for other rows."""
    if "messages" in row:
        found = row["messages"]
        if not isinstance(found, list) or not all(isinstance(message, Mapping) for message in found):
            raise UsageError('"messages" must be a list of {"role": ..., "content": ...}')
        if not found:
            raise UsageError("the conversation is empty; add a user message")
        return _with_system(row, found)
    if "prompt" in row and {"chosen", "rejected"} <= row.keys():
        prompt = row["prompt"]
        return _messages(
            {**row, "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}
        )
    if "conversations" in row:
        return _with_system(row, [_of_sharegpt(message) for message in row["conversations"]])
    if "query" in row:
        turns = [*_history(row), [row["query"], row.get("response")]]
        roles = ("user", "assistant")
        inside: list[Mapping[str, Any]] = [
            {"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)
        ]
        if row.get("response") is None:
            if not {"chosen", "rejected"} & row.keys():
                raise UsageError('a row with "query" needs a "response", or "chosen" and "rejected"')
            inside.pop()
        return _with_system(row, inside)
    return []


def _history(row: Mapping[str, Any]) -> list[list[str]]:
    turns = row.get("history") or []
    for turn in turns if isinstance(turns, list) else [turns]:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
            raise UsageError(f'"history" must be a list of [query, response], two texts each; got {turn!r:.80}')
    return turns


def _with_system(row: Mapping[str, Any], messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages, behind the system message that stands beside them, if any."""
    if not row.get("system"):
        return messages
    if any(message.get("role") == "system" for message in messages):
        raise UsageError('there is a "system" beside a conversation that has a system message; leave one of them out')
    return [{"role": "system", "content": row["system"]}, *messages]


def _of_sharegpt(message: Any) -> Mapping[str, Any]:
    if not isinstance(message, Mapping) or message.get("from") not in _SHAREGPT_ROLES:
        known = ", ".join(_SHAREGPT_ROLES)
        raise UsageError(
            f'a message of "conversations" is {{"from": one of {known}, "value": text}}, got {message!r:.80}'
        )
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": _SHAREGPT_ROLES[message["from"]], "content": message.get("value"), **rest}


def _audio_list(row: Mapping[str, Any]) -> list[Any]:
    audios = row.get("audios", [row["audio"]] if "audio" in row else [])
    return audios if isinstance(audios, list) else [audios]


def _refuse_lost(row: Mapping[str, Any], conversation: Conversation) -> None:
    """Raise where a conversation would be learnt without the recording that its row has."""
    lost = [key for key in _NOT_HEARD if key in row]
    if lost and not any(isinstance(part, AudioPart) for message in conversation.messages for part in message.parts):
        raise UsageError(f'a conversation\'s recordings stand in "audios", got {lost[0]!r}; rename that key')


def _conversation(messages: Sequence[Mapping[str, Any]], audios: list[AudioPart], folder: Path) -> Conversation:
    """The messages with their recordings in place."""
    waiting = iter(audios)
    marks = sum(_marks(message.get("content")) for message in messages)
    if marks == 0 and len(audios) == 1 and not any(map(_brings_its_own, messages)):
        first = next((i for i, message in enumerate(messages) if message.get("role") == "user"), 0)
        messages = [_with_mark(message) if i == first else message for i, message in enumerate(messages)]
    elif marks != len(audios):
        raise UsageError(f"the messages have {marks} {AUDIO_TAG} marks for {len(audios)} recordings; give one each")
    out: list[Message] = []
    for index, message in enumerate(messages):
        parts = list(_parts(message.get("content"), waiting, folder))
        known = {key: value for key, value in message.items() if key != "loss"} | {"content": ""}
        (parsed,) = Conversation.parse([known]).messages if "role" in message else _no_role(index)
        out.append(Message(parsed.role, tuple(parts)))
    return Conversation(tuple(out))


def _no_role(index: int) -> Any:
    raise UsageError(f'message {index} has no "role"')


def _brings_its_own(message: Mapping[str, Any]) -> bool:
    """Whether a part of a message is a recording that says where it is."""
    content = message.get("content")
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    return any("audio" in str(part.get("type")) and not _is_mark(part) for part in parts)


def _with_mark(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if isinstance(content, Mapping):  # no list of parts, as will be said
        return message
    return {
        **message,
        "content": AUDIO_TAG + content if isinstance(content, str) else [{"type": "audio"}, *(content or [])],
    }


def _marks(content: Any) -> int:
    if isinstance(content, str):
        return content.count(AUDIO_TAG)
    return sum(
        _is_mark(part) or _marks(part.get("text") if isinstance(part, Mapping) else part) for part in content or []
    )


def _is_mark(part: Any) -> bool:
    return isinstance(part, Mapping) and dict(part) == {"type": "audio"}


def _parts(content: Any, waiting: Iterator[AudioPart], folder: Path) -> Iterator[Part]:
    if isinstance(content, str):
        for number, text in enumerate(content.split(AUDIO_TAG)):
            if number:
                yield next(waiting)
            if text:
                yield TextPart(text)
        return
    if not isinstance(content, list):
        raise UsageError(f"content must be text or a list of parts, got {type(content).__name__}")
    for part in content:
        if isinstance(part, str):
            yield from _parts(part, waiting, folder)
        elif _is_mark(part):
            yield next(waiting)
        elif isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
            yield from _parts(part["text"], waiting, folder)
        elif isinstance(part, Mapping) and part.get("type") in ("audio", "audio_url", "input_audio"):
            yield _audio({key: value for key, value in part.items() if key != "type"}, folder)
        else:
            raise UsageError(
                f'cannot read the content part {part!r:.100}; use {{"type": "text"}} or {{"type": "audio"}}'
            )


def _audio(value: Any, folder: Path) -> AudioPart:
    """A recording, written as a path, a URL or an object."""
    start, end = 0.0, None
    if isinstance(value, Mapping):
        value = {key: part for key, part in value.items() if part is not None}
        start, end = value.get("start", 0.0), value.get("end")
        if isinstance(value.get("bytes"), bytes):  # of a tar, or of the `datasets` library
            return AudioPart(value["bytes"], start, end)
        given = [value[key] for key in _SOURCE_KEYS if value.get(key) is not None]
        if "input_audio" in value:
            return AudioPart(_base64(value["input_audio"]), start, end)
        if len(given) != 1 or value.keys() - {*_SOURCE_KEYS, "start", "end"}:
            raise UsageError(f'a recording is a path or {{"path": ..., "start": ..., "end": ...}}, got {value!r:.100}')
        value = given[0]["url"] if isinstance(given[0], Mapping) and "url" in given[0] else given[0]
    if not isinstance(value, str) or not value:
        raise UsageError(f"a recording must be given as a path or URL, got {value!r:.100}")
    away = "://" in value or value.startswith("data:")
    return AudioPart(value if away else folder / value, start, end)


def _base64(value: Any) -> bytes:
    try:
        return base64.b64decode(value["data"], validate=True)
    except (TypeError, KeyError, binascii.Error) as error:
        raise UsageError(f'"input_audio" must be {{"data": base64, "format": ...}} ({error})') from error


def _learnt(message: Mapping[str, Any]) -> bool:
    loss = message.get("loss", message.get("role") == "assistant")
    if not isinstance(loss, bool) or (loss and message.get("role") != "assistant"):
        raise UsageError('"loss" is true or false, and true only on messages of the assistant')
    return loss


def _preference(row: Mapping[str, Any], conversation: Conversation) -> PreferenceRow:
    for key in ("loss_weight", "complete"):
        if key in row:
            raise UsageError(f'"{key}" is for answers that are learnt, not for preferences; leave it out')
    if "rejected_audios" in row:
        raise UsageError('both answers are to the same recordings; leave out "rejected_audios"')
    given = [row[key] for key in sorted(_REJECTED) if key in row]
    if len(given) > 1:
        raise UsageError(f"the worse answer is given {len(given)} times; leave one of {', '.join(sorted(_REJECTED))}")
    rejected = _answer(given[0])
    messages = conversation.messages
    if "chosen" in row:
        chosen = _answer(row["chosen"])
    elif messages[-1].role == "assistant" and not any(isinstance(part, AudioPart) for part in messages[-1].parts):
        chosen, messages = messages[-1].text, messages[:-1]
    else:
        raise UsageError('a preference needs "chosen" and "rejected", or a last answer in text and "rejected_response"')
    if not messages or messages[-1].role != "user":
        raise UsageError("before the chosen and the rejected answer, the conversation must end with the user")
    if not chosen.strip() or not rejected.strip():
        raise UsageError("the chosen or the rejected answer is empty; give both a text")
    if chosen == rejected:
        raise UsageError("the chosen and the rejected answer are the same; there is nothing to prefer")
    return PreferenceRow(Conversation(messages), chosen, rejected)


def _answer(value: Any) -> str:
    """An answer, as text or as messages of which it is the last."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
    if isinstance(value, Mapping):
        value = value.get("content", value.get("value"))
    if not isinstance(value, str) or not value:
        raise UsageError(f"an answer must be a text that is not empty, got {value!r:.80}")
    return value


@lru_cache(maxsize=1)
def _tasks() -> dict[str, Any]:
    tasks: dict[str, Any] = json.loads(Path(__file__).with_name("tasks.json").read_text(encoding="utf-8"))
    return tasks


def _task(row: Mapping[str, Any], audio: AudioPart, text: str) -> BareRow:
    if "prompt" in row:
        raise UsageError('the "task" says what the prompt is; leave out "prompt", or name the answer to it "gt"')
    tasks = _tasks()
    task = row.get("task", "asr")
    if task not in tasks["prompts"]:
        raise UsageError(f"unknown task {task!r}; known are {', '.join(tasks['prompts'])}")
    tag = ""
    if task in tasks["tagged"]:
        tag = f"<|{_language(row, 'language' if 'language' in row else 'lang')}|>"
    names = {"target_language": tasks["languages"][_language(row, "target_language")]} if task == "translate" else {}
    spoken = text if task == "asr" else _text(row, "spoken", "")
    return BareRow((audio,), tasks["prompts"][task].format(**names), tag + text, spoken, _weight(row))


def _language(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value not in _tasks()["languages"]:
        raise UsageError(f'"{key}" must be one of {", ".join(_tasks()["languages"])}, got {value!r}')
    return str(value)


def _weight(row: Mapping[str, Any]) -> float:
    value = row.get("loss_weight", 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f'"loss_weight" must be a number above 0, got {value!r:.80}')
    return float(value)


def _text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str):
        raise UsageError(f'"{key}" must be a text, got {value!r:.80}')
    return value
