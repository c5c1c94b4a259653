"""A judge: a chat model that marks answers. What it is asked, how its reply is read, and the asking of many at once.

Two questions are put. In a comparison, as in AIR-Bench, reference and answer stand beside each other and get a mark each;
it is asked in both orders, since judges favour a place. Alone, as for open questions that VoiceBench asks, an answer gets a
mark from 1 to 5. The structure and the markers of the comparison are those of AIR-Bench's score_chat.py; the sentences are
ours.

Modes:

- "official": AIR-Bench's. Temperature 1.0, for a random half of the requests 2.0; at most 1024 tokens; a reply counts if it
  is two whole numbers up to 10 with one space between, line breaks left out. The coin that AIR-Bench tosses anew each time
  is here drawn from the seed and the request, so that neither order nor a resumed run changes it.
- "deterministic": temperature 0; a reply counts if one line of it is a pair of marks from 0 to 10, however it is adorned, or
  if it names each assistant with its mark, and if there is no other pair.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.chat_client import ChatClient, Reply
from qwen2_audio.evaluation.judge_cache import ReplyFile, read_replies
from qwen2_audio.evaluation.profiles import check_known
from qwen2_audio.remote.address import check_url

MODES = ("official", "deterministic")
ORDERS = ("reference_first", "model_first")
"""The places of reference and answer in a comparison."""
ALONE = "alone"

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many replies are there, and how many there will be."""

_NAME = "the judge"
_MAX_TOKENS = 1024
_HIGHEST = 10
_GIVE_UP = 20
"""Requests in a row without a reply, after which no more are made."""

_COMPARE = """\
You are a helpful and careful assistant who checks how good answers are.
[Detailed Audio Description]
{description}
[Question]
{question}
[The Start of Assistant 1s Answer]
{first}
[The End of Assistant 1s Answer]
[The Start of Assistant 2s Answer]
{second}
[The End of Assistant 2s Answer]
[System]
Two AI assistants answered the question above about a recording, of which you see a detailed description. Judge how helpful, \
relevant, accurate and comprehensive each answer is, and give each assistant one overall mark from 1 to 10; higher is better. \
Reply with a single line that holds only two values, the marks of Assistant 1 and of Assistant 2, separated by a space."""

_MARK = """\
You are a helpful and careful assistant who checks how good an answer is.
{sections}
[The Start of the Answer]
{answer}
[The End of the Answer]
[System]
A voice assistant heard the question above and gave this answer. Give it one mark from 1 to 5: 1 it does not answer the \
question or is wrong; 2 it touches the question but is mostly wrong or of little use; 3 it answers in part, or with errors or \
much that does not belong there; 4 it answers well, with small gaps; 5 it answers correctly, fully and to the point. \
Where a reference answer or a description stands above, judge by it. Reply with a single line that holds only the mark."""

_MARKER = re.compile(
    r"\[\s*(Detailed Audio Description|Question|Reference Answer|System|The (?:Start|End) of "
    r"(?:Assistant \d'?s|the) Answer)\s*\]",
    re.IGNORECASE,
)
_EDGE = r"[\s*_`\"'().:\[\]]*"
_NUMBER = r"(\d+(?:\.\d+)?)"
_PAIR = re.compile(
    rf"(?:scores?|marks?|ratings?)?{_EDGE}{_NUMBER}(?:/10)?[\s,;|*]+{_NUMBER}(?:/10)?{_EDGE}", re.IGNORECASE
)
_NAMED = re.compile(
    rf"{_EDGE}assistant\s*([12])(?:'?s answer)?{_EDGE}[:=]{_EDGE}{_NUMBER}(?:\s*/\s*10)?{_EDGE}", re.IGNORECASE
)
_PHRASES = re.compile(r"[,;|]|\band\b|(?=\bassistant\s*[12]\b)", re.IGNORECASE)
"""Where the other assistant may follow in a line."""
_SINGLE = re.compile(
    rf"{_EDGE}(?:the |overall )*(?:score|mark|rating)?(?:\s*(?:is|=))?{_EDGE}{_NUMBER}(?:\s*/\s*5)?{_EDGE}",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the judge.

    Attributes:
        sample: id of the sample it is about.
        position: one of `ORDERS`, or `ALONE`.
    """

    sample: str
    position: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Judge:
    """Which judge is asked, how, and where its replies are kept. A value: connections last for one `ask`.

    Attributes:
        model: its name at the server; the published judge is "gpt-4-0125-preview".
        url: of any OpenAI-compatible server, with or without `/chat/completions`.
        mode: one of `MODES`, see above.
        seed: of the temperatures in the official mode.
        key_variable: the environment variable that holds the key; None: OPENAI_API_KEY, over https or on this machine.
        cache: a file of replies, which are read from it and added to it as they come; None keeps none.
        recorded: such a file of an earlier run: nothing is asked over the network.
        timeout: seconds without a sign of life before a request counts as failed.
        attempts: how often a request is made before it has failed.
        pause: seconds before the second attempt; twice as long before each further one, or what the server asks for.
        concurrency: requests at a time.
        say: told before anything is asked how many replies are known and how many are asked for.
    """

    model: str
    url: str = "https://api.openai.com/v1"
    mode: str = "deterministic"
    seed: int = 0
    key_variable: str | None = None
    cache: Path | None = None
    recorded: Path | None = None
    timeout: float = 120.0
    attempts: int = 5
    pause: float = 1.0
    concurrency: int = 8
    say: Callable[[str], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("a judge needs a model's name, such as gpt-4-0125-preview")
        check_known("mode of the judge", self.mode, MODES)
        check_url(self.url, _NAME)
        if self.cache is not None and self.recorded is not None:
            raise UsageError("a judge has a cache to add replies to or recorded replies to make do with; give one")
        for name, least in (("attempts", 1), ("concurrency", 1), ("timeout", 0.001), ("pause", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"the judge's {name} must be at least {least}, got {getattr(self, name)}")

    def key(self, request: Request) -> str:
        """What a reply is kept under: a hash of judge, mode, prompt and position; not of the address, so that recorded replies
        need none."""
        mode = f"{self.mode} {self.seed}" if self.mode == "official" else self.mode
        whole = json.dumps([self.model, mode, request.prompt, request.position])
        return hashlib.sha256(whole.encode("ascii")).hexdigest()

    def temperature(self, request: Request) -> float:
        """0 in the deterministic mode; in the official one 1.0 or 2.0 by the toss of a coin, the same each time."""
        if self.mode == "deterministic":
            return 0.0
        return 2.0 if int(self.key(request)[-1], 16) % 2 else 1.0

    def ask(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Reply]:
        """The replies, in the order of the requests; equal ones are asked once, known ones not at all.

        A request that got no reply, whatever was tried, has a `Reply` with an error; it is not kept, so that a later run
        asks again.

        Raises:
            UsageError: the server cannot be reached, refuses the key or the model, or gives no reply many times in a row;
                a recorded reply is missing; a file cannot be read or written.
        """
        wanted: dict[str, Request] = {}
        for request in requests:  # of equal ones the first
            wanted.setdefault(self.key(request), request)
        with ExitStack() as stack:
            file = stack.enter_context(ReplyFile(self.cache)) if self.cache is not None else None
            known = read_replies(self.recorded) if self.recorded is not None else file.replies if file else {}
            missing = {key: request for key, request in wanted.items() if key not in known}
            kept = {key: known[key] for key in wanted if key in known}
            replies = {key: Reply(text, address=address) for key, (text, address) in kept.items()}
            if self.recorded is not None and missing:
                raise self._not_recorded(missing)
            if self.say:
                self.say(f"{_NAME} {self.model}: {len(replies)} replies are known, {len(missing)} are asked for")
            if progress:
                progress(len(replies), len(wanted))
            for key, reply in stack.enter_context(closing(self._asked(missing, file))):
                replies[key] = reply
                if progress:
                    progress(len(replies), len(wanted))
        return [replies[self.key(request)] for request in requests]

    def _asked(self, missing: Mapping[str, Request], file: ReplyFile | None) -> Generator[tuple[str, Reply]]:
        """Replies as they come; each is in the file before it is handed on."""
        if not missing:
            return
        client = ChatClient(
            self.url, self.model, name=_NAME, key_variable=self.key_variable, timeout=self.timeout,
            attempts=self.attempts, pause=self.pause, connections=self.concurrency,
        )  # fmt: skip
        stopped = threading.Event()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            futures = {
                pool.submit(self._one, client, stopped, key, request, file): key for key, request in missing.items()
            }
            failed = 0
            for future in as_completed(futures):
                reply = future.result()
                failed = failed + 1 if reply.error else 0
                if failed == _GIVE_UP:
                    raise UsageError(
                        f"the judge gave no reply {failed} times in a row, last: {reply.error}; replies so far are kept: "
                        "run the same command again when it is well"
                    )
                yield futures[future], reply
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            client.close()

    def _one(
        self, client: ChatClient, stopped: threading.Event, key: str, request: Request, file: ReplyFile | None
    ) -> Reply:
        temperature = self.temperature(request)
        reply = client.ask(request.prompt, temperature=temperature, max_tokens=_MAX_TOKENS, stopped=stopped)
        if reply.error:
            return reply
        if file is not None:
            about: dict[str, Any] = {"sample": request.sample, "position": request.position, "judge": self.model}
            about |= {"address": client.address, "mode": self.mode, "temperature": temperature}
            file.add(key, reply.text, about)
        return replace(reply, address=client.address)

    def _not_recorded(self, missing: Mapping[str, Request]) -> UsageError:
        first = next(iter(missing.values()))
        return UsageError(
            f"{self.recorded} has no reply of {self.model} ({self.mode}) about sample {first.sample!r} "
            f"({first.position}), and {len(missing)} replies are missing in all; record them in a run with a server, "
            "with the same judge, mode and answers"
        )


def comparison(description: str, question: str, reference: str, answer: str, order: str) -> str:
    """The message that lets reference and answer be compared, in one of `ORDERS`."""
    first, second = (reference, answer) if order == ORDERS[0] else (answer, reference)
    fields = {"description": description, "question": question, "first": first, "second": second}
    return _COMPARE.format_map({name: _field(text) for name, text in fields.items()})


def single(question: str, reference: str, description: str, answer: str) -> str:
    """The message that asks for a mark from 1 to 5; what is "" is left out."""
    known = {"Detailed Audio Description": description, "Question": question, "Reference Answer": reference}
    sections = "\n".join(f"[{name}]\n{_field(text)}" for name, text in known.items() if text.strip())
    return _MARK.format(sections=sections, answer=_field(answer))


def read_pair(reply: str, mode: str) -> tuple[float, float] | None:
    """The marks of Assistant 1 and 2, or None where the reply does not name exactly two that make sense."""
    pairs = _official_pairs(reply) if mode == "official" else _pairs(reply)
    if len(pairs) != 1:
        return None
    pair = pairs.pop()
    return pair if max(pair) <= _HIGHEST else None


def read_mark(reply: str) -> float | None:
    """The mark from 1 to 5, or None where the reply does not name exactly one."""
    lines = [line.strip() for line in reply.splitlines()]
    found = {float(match[1]) for line in lines if (match := _SINGLE.fullmatch(line))}
    mark = found.pop() if len(found) == 1 else 0.0
    return mark if 1 <= mark <= 5 else None


def _official_pairs(reply: str) -> set[tuple[float, float]]:
    words = reply.strip().replace("\n", "").split(" ")
    try:
        first, second = (int(word) for word in words)
    except ValueError:  # not two of them, or no whole numbers
        return set()
    return {(first, second)}


def _pairs(reply: str) -> set[tuple[float, float]]:
    """Every pair of marks that the reply names."""
    lines = [line.strip() for line in reply.splitlines()]
    pairs = {(float(match[1]), float(match[2])) for line in lines if (match := _PAIR.fullmatch(line))}
    phrases = [phrase for line in lines for phrase in _PHRASES.split(line)]
    named = {(match[1], float(match[2])) for phrase in phrases if (match := _NAMED.fullmatch(phrase))}
    first, second = ([mark for who, mark in named if who == which] for which in "12")
    if named and not (first and second):
        return set()  # one of the two has no mark
    return pairs | {(one, other) for one in first for other in second}


def _field(text: str) -> str:
    """A text that can stand in a message without ending its own section: markers in it lose their square brackets."""
    return _MARKER.sub(r"(\1)", text)
