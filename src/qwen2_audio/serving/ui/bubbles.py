"""Turns as messages of Gradio's chat."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from qwen2_audio.serving.ui.chat import Turn
from qwen2_audio.serving.ui.clips import Clip
from qwen2_audio.serving.ui.texts import Texts


def messages(turns: Sequence[Turn], texts: Texts) -> list[dict[str, Any]]:
    """All turns, oldest first; every question has at most one message of recordings and one of text."""
    shown: list[dict[str, Any]] = []
    for turn in turns:
        if turn.clips or turn.gone:
            cards = "".join(clip_card(clip, texts) for clip in turn.clips) or _gone_card(texts)
            shown.append({"role": "user", "content": [_html(cards)]})
        if turn.text:
            shown.append({"role": "user", "content": [{"type": "text", "text": plain(turn.text)}]})
        shown.append({"role": "assistant", "content": _answer(turn, texts)})
    return shown


def turn_at(turns: Sequence[Turn], index: int) -> Turn | None:
    """The turn that the message at `index` belongs to."""
    for turn in turns:
        index -= (bool(turn.clips) or turn.gone) + bool(turn.text) + 1
        if index < 0:
            return turn
    return None


def clip_card(clip: Clip, texts: Texts) -> str:
    """A recording: what the model hears of it as a picture, a player, its length and in how many parts it is heard."""
    said = texts.say("clip.length", seconds=f"{clip.seconds:.1f}")
    if clip.windows > 1:
        said += " · " + texts.say("clip.windows", count=str(clip.windows))
    remark = f'<p class="qa-remark">{escape(clip.remark)}</p>' if clip.remark else ""
    name = escape(clip.name, quote=True)
    picture = escape(texts.say("clip.picture", name=clip.name), quote=True)
    return (
        f'<figure class="qa-clip"><img src="page/clips/{clip.token}.png" alt="{picture}" width="640" height="128">'
        f'<audio controls preload="metadata" src="page/clips/{clip.token}.wav" aria-label="{name}"></audio>'
        f"<figcaption><b>{name}</b> <span>{escape(said)}</span></figcaption>{remark}</figure>"
    )


def _gone_card(texts: Texts) -> str:
    return f'<figure class="qa-clip"><p class="qa-remark">{escape(texts.say("clip.gone"))}</p></figure>'


def plain(text: str) -> str:
    """Text in which nothing looks like a tag, which the page would hide or obey."""
    return text.replace("<", "&lt;")


def unescaped(text: str) -> str:
    """The inverse of `plain`, for text that was edited on the page."""
    return text.replace("&lt;", "<")


def _answer(turn: Turn, texts: Texts) -> list[dict[str, Any]]:
    if turn.state == "writing" and not turn.answer:
        waiting = escape(texts.say("answer.thinking"))
        return [_html(f'<span class="qa-thinking" role="status"><i></i><i></i><i></i><b>{waiting}</b></span>')]
    parts = [{"type": "text", "text": plain(turn.answer)}] if turn.answer else []
    note = _note(turn, texts)
    return [*parts, _html(note)] if note else parts or [{"type": "text", "text": "…"}]


def _note(turn: Turn, texts: Texts) -> str:
    if turn.state == "failed":
        return f'<p class="qa-problem" role="alert">{escape(texts.say("answer.failed", problem=turn.problem))}</p>'
    if turn.state == "stopped":
        return f'<p class="qa-note">{escape(texts.say("answer.stopped"))}</p>'
    if turn.cut:
        return f'<p class="qa-note">{escape(texts.say("answer.cut"))}</p>'
    return ""


def _html(value: str) -> dict[str, Any]:
    """Our own markup, which is not run through the sanitizer: everything foreign in it is escaped."""
    settings = {"padding": False, "apply_default_css": False, "js_on_load": None}
    return {"type": "component", "component": "html", "value": value, "constructor_args": settings, "props": settings}
