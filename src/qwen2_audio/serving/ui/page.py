"""The page: its parts laid out, its events tied to what they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from qwen2_audio.serving.backend import Backend
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.ui.asking import Asking
from qwen2_audio.serving.ui.hearing import Hearing
from qwen2_audio.serving.ui.labels import Labels
from qwen2_audio.serving.ui.parts import (
    ChatParts,
    SettingParts,
    TranscribeParts,
    chat_parts,
    header,
    setting_parts,
    transcribe_parts,
)
from qwen2_audio.serving.ui.sessions import Sessions
from qwen2_audio.serving.ui.texts import Language, texts
from qwen2_audio.serving.ui.transcribing import Transcribing

_SWEEP = (60, 900)
"""Every minute, uploads that were never sent and are older than a quarter of an hour are removed."""


def create_page(
    backend: Backend, media: Media, hearing: Hearing, sessions: Sessions, language: Language, voices: Sequence[str]
) -> gr.Blocks:
    """The page as Gradio's blocks, without the addresses that its pictures and scripts come from (see `mount`)."""
    labels = Labels(texts(language))
    asking = Asking(backend, hearing, sessions)
    with gr.Blocks(title=labels.say("title"), analytics_enabled=False, fill_height=True, delete_cache=_SWEEP) as blocks:
        top = header()
        with gr.Tabs(elem_id="qa-tabs"):
            tab = gr.Tab(labels.say("tab.chat"), id="chat", elem_id="qa-tab-chat")
            labels.keep(tab, label="tab.chat")
            with tab:
                chat = chat_parts(labels)
            long = gr.Tab(labels.say("tab.transcribe"), id="transcribe", elem_id="qa-tab-transcribe")
            labels.keep(long, label="tab.transcribe")
            with long:
                transcribe = transcribe_parts(labels)
        with gr.Sidebar(label=labels.say("settings.title"), position="right", open=False, elem_id="qa-settings"):
            settings = setting_parts(labels, voices)
        _tie_chat(asking, chat, settings)
        _tie_transcribe(Transcribing(backend, media, sessions), transcribe, settings.model)
        _tell_scripts(settings)
        _tie_language(asking, top, chat, labels)
        blocks.load(
            asking.arrive,
            None,
            [settings.model, *settings.sampling[:-1]],
            show_progress="hidden",
            api_visibility="private",
        )
        blocks.unload(_forgetting(sessions))
    blocks.queue(default_concurrency_limit=None, api_open=False, max_size=None)
    return blocks


def _tie_chat(asking: Asking, chat: ChatParts, settings: SettingParts) -> None:
    view = [chat.welcome, chat.chatbot, chat.composer, chat.speed, chat.aloud]
    wishes = settings.wishes
    _tie(chat.composer.submit, asking.send, [chat.composer, *wishes], view)
    _tie(chat.composer.stop, asking.stop, [], [], queue=False)
    _tie(chat.welcome.example, asking.example, wishes, view)
    _tie(chat.talk.spoken, asking.spoken, wishes, view, while_busy=True)
    _tie(chat.talk.heard, asking.heard, [], view, while_busy=True)
    _tie(chat.chatbot.retry, asking.retry, wishes, view)
    _tie(chat.chatbot.edit, asking.edit, wishes, view)
    _tie(settings.clear.click, asking.clear, [], view, queue=False)
    _tie(settings.save.click, asking.save, [], [chat.saved], queue=False)
    _tie(settings.load.upload, asking.load, [settings.load], view)


def _tie_transcribe(transcribing: Transcribing, parts: TranscribeParts, model: gr.Dropdown) -> None:
    view = [parts.file, parts.start, parts.stop, parts.progress, parts.transcript]
    _tie(parts.start.click, transcribing.start, [parts.file, parts.task, model], view)
    _tie(parts.stop.click, transcribing.stop, [], [], queue=False)
    _tie(parts.transcript.download, transcribing.download, [], [parts.saved], queue=False)


def _tie(
    event: Any,
    function: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    *,
    queue: bool = True,
    while_busy: bool = False,
) -> None:
    """Let an event call a function; unless `while_busy`, one that comes while its last call still runs is dropped."""
    event(
        function,
        inputs,
        outputs,
        show_progress="hidden",
        api_visibility="private",
        queue=queue,
        trigger_mode="multiple" if while_busy else None,
        concurrency_limit=None,
    )


def _tell_scripts(settings: SettingParts) -> None:
    """Hands-free talk goes round Gradio: its script is told what the side panel says."""
    told = {
        "wishes.model": settings.model,
        "wishes.system": settings.system,
        "wishes.temperature": settings.sampling[0],
        "wishes.length": settings.sampling[4],
        "voice": settings.voice,
    }
    for name, part in told.items():
        part.change(None, part, None, js=f"value => {{ window.qwenAudio.{name} = value ?? ''; }}", queue=False)


def _tie_language(asking: Asking, top: gr.HTML, chat: ChatParts, labels: Labels) -> None:
    def change(event: gr.EventData, request: gr.Request) -> list[Any]:
        said = asking.speak(event._data.get("language"), request)
        return [*labels.updates(said), gr.update(value=asking.chatbot(request))]

    top.language(
        change, None, [*labels.parts, chat.chatbot], show_progress="hidden", api_visibility="private", queue=False
    )


def _forgetting(sessions: Sessions) -> Callable[[gr.Request], None]:
    def forget(request: gr.Request) -> None:
        sessions.forget(str(request.session_hash))

    return forget
