"""The parts that the page is laid out of and that events read and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qwen2_audio.processing.conversation import AUDIO_SUFFIXES
from qwen2_audio.serving.backend import ModelCard
from qwen2_audio.serving.ui.labels import Labels
from qwen2_audio.serving.ui.markup import (
    ALOUD_SCRIPT,
    HEADER,
    HEADER_SCRIPT,
    SAVE_SCRIPT,
    TALK,
    TALK_SCRIPT,
    TRANSCRIBE_INTRO,
    TRANSCRIPT,
    TRANSCRIPT_SCRIPT,
    WELCOME_SCRIPT,
    welcome,
)
from qwen2_audio.serving.ui.texts import Texts
from qwen2_audio.serving.ui.wishes import LONGEST_ANSWER

FILE_TYPES = ["audio", "video", *sorted(AUDIO_SUFFIXES)]


@dataclass(frozen=True, slots=True)
class ChatParts:
    """The tab in which one talks.

    Attributes:
        talk: microphone and hands-free mode; sends what was spoken.
        aloud: reads answers aloud (nothing to be seen).
        saved: hands a file to the browser (nothing to be seen).
    """

    welcome: gr.HTML
    chatbot: gr.Chatbot
    talk: gr.HTML
    composer: gr.MultimodalTextbox
    speed: gr.HTML
    aloud: gr.HTML
    saved: gr.HTML


@dataclass(frozen=True, slots=True)
class SettingParts:
    """The side panel. `sampling`: temperature, top-p, top-k, repetition penalty, longest answer, seed."""

    model: gr.Dropdown
    system: gr.Textbox
    sampling: list[Any]
    speak: gr.Checkbox
    voice: gr.Dropdown
    clear: gr.Button
    save: gr.Button
    load: gr.UploadButton

    @property
    def wishes(self) -> list[Any]:
        """What an answer depends on, in the order of `Wishes`."""
        return [self.model, self.system, *self.sampling, self.speak, self.voice]


def header() -> gr.HTML:
    """Name, language, light or dark."""
    return _html(HEADER, HEADER_SCRIPT, "qa-header")


def chat_parts(labels: Labels) -> ChatParts:
    """The chat tab, from top to bottom."""
    start = _html(welcome(), WELCOME_SCRIPT, "qa-welcome")
    chatbot = gr.Chatbot(
        label=labels.say("chat.label"),
        show_label=False,
        visible="hidden",  # there, so that the first answer does not wait for its scripts
        container=False,
        elem_id="qa-chat",
        height="100%",
        buttons=["copy"],
        editable="user",
        layout="bubble",
        group_consecutive_messages=False,
        feedback_options=None,
        allow_file_downloads=False,
    )
    talk = _html(TALK, TALK_SCRIPT, "qa-talk")
    composer = gr.MultimodalTextbox(
        label=labels.say("composer.label"),
        placeholder=labels.say("composer.placeholder"),
        show_label=False,
        container=False,
        file_types=FILE_TYPES,
        file_count="multiple",
        max_plain_text_length=20_000,
        max_lines=8,
        elem_id="qa-composer",
    )
    speed = _html("", None, "qa-speed")
    aloud = _html(None, ALOUD_SCRIPT, "qa-aloud", template="")
    saved = _html(None, SAVE_SCRIPT, "qa-saved", template="")
    labels.keep(chatbot, label="chat.label")
    labels.keep(composer, label="composer.label", placeholder="composer.placeholder")
    return ChatParts(start, chatbot, talk, composer, speed, aloud, saved)


@dataclass(frozen=True, slots=True)
class TranscribeParts:
    """The tab in which long recordings are written down."""

    file: gr.File
    task: gr.Radio
    start: gr.Button
    stop: gr.Button
    progress: gr.HTML
    transcript: gr.HTML
    saved: gr.HTML


def transcribe_parts(labels: Labels) -> TranscribeParts:
    """The transcribe tab, from top to bottom."""
    say, keep = labels.say, labels.keep
    _html(TRANSCRIBE_INTRO, None, "qa-intro")
    file = gr.File(label=say("transcribe.file"), file_types=FILE_TYPES, height=150, elem_id="qa-file-long")
    keep(file, label="transcribe.file")
    task = gr.Radio(_tasks(labels.texts), value="transcribe", show_label=False, container=False, elem_id="qa-task")
    labels.keep_by(task, lambda texts: {"label": texts.say("transcribe.language"), "choices": _tasks(texts)})
    with gr.Row():
        start = gr.Button(say("transcribe.start"), variant="primary", elem_id="qa-start")
        keep(start, value="transcribe.start")
        stop = gr.Button(say("transcribe.stop"), visible=False, elem_id="qa-stop")
        keep(stop, value="transcribe.stop")
    progress = _html("", None, "qa-progress")
    transcript = _html(None, TRANSCRIPT_SCRIPT, "qa-transcript", template=TRANSCRIPT)
    return TranscribeParts(
        file, task, start, stop, progress, transcript, _html(None, SAVE_SCRIPT, "qa-saved-long", template="")
    )


def setting_parts(labels: Labels, voices: Sequence[str]) -> SettingParts:
    """The side panel, from top to bottom. What depends on the model is put in by `for_models` when a visitor comes."""
    say, keep = labels.say, labels.keep
    with gr.Row(elem_id="qa-file"):
        clear = keep(gr.Button(say("chat.clear"), variant="primary", size="sm", elem_id="qa-clear"), value="chat.clear")
        save = keep(gr.Button(say("chat.save"), size="sm", elem_id="qa-save"), value="chat.save")
        load = gr.UploadButton(say("chat.load"), size="sm", file_types=[".json"], elem_id="qa-load")
        keep(load, label="chat.load")
    model = keep(gr.Dropdown([], label=say("settings.model"), visible=False), label="settings.model")
    system = gr.Textbox(label=say("settings.system"), placeholder=say("settings.system.placeholder"), lines=3)
    keep(system, label="settings.system")
    speak = keep(gr.Checkbox(label=say("settings.speak"), elem_id="qa-speak"), label="settings.speak")
    voice = gr.Dropdown(_voices(labels.texts, voices), value="", label=say("settings.voice"), visible=bool(voices))
    labels.keep_by(voice, lambda texts: {"label": texts.say("settings.voice"), "choices": _voices(texts, voices)})
    sampling = gr.Accordion(say("settings.sampling"), open=False, elem_id="qa-sampling")
    keep(sampling, label="settings.sampling")
    with sampling:
        controls = _sampling(labels)
    return SettingParts(model, system, controls, speak, voice, clear, save, load)


def for_models(models: Sequence[ModelCard]) -> list[Any]:
    """What changes `model` and `sampling` of the side panel to the models that are served, the first one chosen."""
    card, names = models[0], [card.name for card in models]
    defaults, longest = card.defaults, min(4096, card.context_length)
    values = [defaults.temperature, defaults.top_p, defaults.top_k, defaults.repetition_penalty]
    length = gr.update(value=min(defaults.max_new_tokens or LONGEST_ANSWER, longest), maximum=longest)
    return [
        gr.update(choices=names, value=names[0], visible=len(names) > 1),
        *(gr.update(value=value) for value in values),
        length,
    ]


def _tasks(texts: Texts) -> list[tuple[str, str]]:
    return [
        (texts.say("transcribe.language.spoken"), "transcribe"),
        (texts.say("transcribe.language.english"), "translate"),
    ]


def _voices(texts: Texts, voices: Sequence[str]) -> list[tuple[str, str]]:
    return [(texts.say("settings.voice.browser"), ""), *((name, name) for name in voices)]


def _sampling(labels: Labels) -> list[Any]:
    say, keep = labels.say, labels.keep
    temperature = gr.Slider(
        0, 2, 0, step=0.05, label=say("settings.temperature"), info=say("settings.temperature.info")
    )
    keep(temperature, label="settings.temperature", info="settings.temperature.info")
    top_p = keep(gr.Slider(0.01, 1, 1, step=0.01, label=say("settings.top_p")), label="settings.top_p")
    top_k = gr.Slider(0, 200, 0, step=1, label=say("settings.top_k"), info=say("settings.top_k.info"))
    keep(top_k, label="settings.top_k", info="settings.top_k.info")
    repetition = gr.Slider(1, 2, 1, step=0.05, label=say("settings.repetition"))
    keep(repetition, label="settings.repetition")
    length = keep(gr.Slider(1, 4096, LONGEST_ANSWER, step=1, label=say("settings.length")), label="settings.length")
    seed = gr.Textbox(label=say("settings.seed"), info=say("settings.seed.info"), max_lines=1)
    keep(seed, label="settings.seed", info="settings.seed.info")
    return [temperature, top_p, top_k, repetition, length, seed]


def _html(value: str | None, script: str | None, name: str, template: str = "${value}") -> gr.HTML:
    """A piece of our own; `template` "" shows nothing of the value, which is for the script alone."""
    return gr.HTML(value, html_template=template, js_on_load=script, elem_id=name, apply_default_css=False)
