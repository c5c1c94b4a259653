"""OpenAI's client on a live server, whatever engine answers behind it: each check by name, and whether it holds."""

from __future__ import annotations

import base64
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import srt
import webvtt

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


class Checks:
    """What must hold of a server that hears the recordings in examples/."""

    def __init__(self, url: str, model: str, examples: Path) -> None:
        self.url, self.model = url, model
        self.client = openai.OpenAI(base_url=url, api_key="any", timeout=600, max_retries=0)
        self.files = {name: examples / f"{name}.flac" for name in ("question", "sentence")}

    def hear(self, name: str, *text: str) -> list[Any]:
        """A message with a recording, and perhaps text behind it."""
        data = base64.b64encode(self.files[name].read_bytes()).decode()
        audio = {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}
        return [{"role": "user", "content": [audio, *({"type": "text", "text": line} for line in text)]}]

    def ask(self, messages: list[Any], **options: Any) -> Any:
        """One answer, greedy."""
        given = {"temperature": 0, "max_tokens": 24, **options}
        return self.client.chat.completions.create(model=self.model, messages=messages, **given)

    def models_are_listed(self) -> None:
        assert self.model in [model.id for model in self.client.models.list()]

    def a_spoken_question_is_answered(self) -> None:
        reply = self.ask(self.hear("question"))
        assert "Paris" in reply.choices[0].message.content, reply
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 30

    def a_stream_is_the_whole_in_pieces(self) -> None:
        whole = self.ask(self.hear("sentence", "What is said?"))
        stream = self.ask(self.hear("sentence", "What is said?"), stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
        told, usage = chunks[-1].usage, whole.usage
        assert (told.prompt_tokens, told.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)

    def limits_and_stops_hold(self) -> None:
        cut = self.ask(self.hear("question"), max_tokens=3)
        assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3), cut
        stopped = self.ask(self.hear("question"), stop=["France"])
        assert stopped.choices[0].message.content.endswith("of "), stopped

    def drawing_repeats_with_a_seed(self) -> None:
        drawn = [self.ask([{"role": "user", "content": "Say something."}], temperature=1, seed=7) for _ in range(2)]
        assert len({reply.choices[0].message.content for reply in drawn}) == 1, drawn

    def several_answers_at_once(self) -> None:
        assert len(self.ask(self.hear("question"), n=2).choices) == 2

    def log_probabilities_are_told(self) -> None:
        reply = self.ask(self.hear("question"), logprobs=True, top_logprobs=2)
        tokens = reply.choices[0].logprobs.content
        assert len(tokens) in (reply.usage.completion_tokens, reply.usage.completion_tokens - 1)
        assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
        assert "".join(token.token for token in tokens).startswith(reply.choices[0].message.content)

    def json_obeys_its_schema(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        reply = self.ask(self.hear("question"), response_format=form, max_tokens=64)
        found = json.loads(reply.choices[0].message.content)
        assert list(found) == ["city"] and isinstance(found["city"], str), found

    def transcription_in_all_formats(self) -> None:
        for form in FORMATS:
            with self.files["sentence"].open("rb") as file:
                reply: Any = self.client.audio.transcriptions.create(model=self.model, file=file, response_format=form)
            text = reply if isinstance(reply, str) else reply.text
            assert "brown fox" in text, (form, reply)
            if form == "srt":
                assert "brown fox" in " ".join(cue.content for cue in srt.parse(text)), reply
            if form == "vtt":
                assert "brown fox" in " ".join(cue.text for cue in webvtt.from_string(text)), reply

    def a_transcription_streams(self) -> None:
        with self.files["sentence"].open("rb") as file:
            stream = self.client.audio.transcriptions.create(model=self.model, file=file, stream=True)
            events = list(stream)
        assert events[-1].type == "transcript.text.done" and "brown fox" in events[-1].text, events
        assert "".join(event.delta for event in events[:-1]) == events[-1].text

    def translation_answers(self) -> None:
        with self.files["sentence"].open("rb") as file:
            assert self.client.audio.translations.create(model=self.model, file=file).text

    def nonsense_is_refused(self) -> None:
        self._refused(400, temperature=-1)
        self._refused(400, extra_body={"tempo": 1})
        self._refused(404, model="no-such-model")
        broken = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
        self._refused(400, messages=[{"role": "user", "content": broken}])

    def _refused(self, status: int, **options: Any) -> None:
        given: Any = {"model": self.model, "messages": [{"role": "user", "content": "Hello"}], **options}
        try:
            self.client.chat.completions.create(**given)
        except openai.APIStatusError as error:
            assert error.status_code == status and error.message, error
        else:
            raise AssertionError(f"{options} was not refused")

    def hanging_up_frees_the_engine(self) -> None:
        stream = self.ask([{"role": "user", "content": "Count to a thousand."}], stream=True, max_tokens=900,
                          extra_body={"ignore_eos": True})  # fmt: skip
        next(iter(stream))
        stream.close()
        for _ in range(200):
            if self._running() == 0:
                return
            time.sleep(0.1)
        raise AssertionError(f"{self._running()} answers are still being given")

    def _running(self) -> float:
        text = httpx.get(self.url.removesuffix("/v1") + "/metrics", timeout=10).text
        lines = [line for line in text.splitlines() if "num_requests_running" in line and not line.startswith("#")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


def check_front(url: str, model: str, examples: Path) -> int:
    """Go through all checks; the number of those that do not hold."""
    checks, failures = Checks(url, model, examples), 0
    for name in [name for name, value in vars(Checks).items() if isinstance(value, Callable) and name[0] != "_"]:
        if name in ("hear", "ask"):
            continue
        started = time.monotonic()
        try:
            getattr(checks, name)()
            outcome = "ok"
        except Exception:
            failures += 1
            outcome = f"FAILED\n{traceback.format_exc(limit=-2)}"
        print(f"{name.replace('_', ' ')}: {outcome} ({time.monotonic() - started:.1f} s)", flush=True)
    return failures
