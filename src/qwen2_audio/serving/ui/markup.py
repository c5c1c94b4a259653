"""The page's own pieces of HTML, and the lines that tie them to the scripts in `static/`.

Texts are not written here: the script `page.js` puts those of the page's language where `data-t` (text) and `data-t-label`
(name for screen readers, and tooltip) say so.
"""

from __future__ import annotations

from html import escape

from qwen2_audio.serving.ui.examples import EXAMPLES

_MICROPHONE = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><rect x="9" y="3" width="6" height="11" rx="3"/>'
    '<path d="M5.5 11.5a6.5 6.5 0 0 0 13 0M12 18v3" fill="none" stroke="currentColor" stroke-width="2" '
    'stroke-linecap="round"/></svg>'
)
_WAVES = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 10v4M8 7v10M12 4v16M16 8v8M20 10.5v3" fill="none" '
    'stroke="currentColor" stroke-width="2.2" stroke-linecap="round"/></svg>'
)
_PEN = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M20 12v7H5V5h8M10.5 13.5 20 4" fill="none" '
    'stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"/></svg>'
)
_SLIDERS = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 7h9m5 0h2M4 17h2m5 0h9" stroke="currentColor" '
    'stroke-width="2" stroke-linecap="round"/><circle cx="15.5" cy="7" r="2.5" fill="none" stroke="currentColor" '
    'stroke-width="2"/><circle cx="8.5" cy="17" r="2.5" fill="none" stroke="currentColor" stroke-width="2"/></svg>'
)

HEADER = f"""
<header class="qa-header">
  <h1>{_WAVES}<span data-t="title">Qwen2-Audio</span></h1>
  <p data-t="header.tagline"></p>
  <nav>
    <button type="button" class="qa-new" data-t-label="chat.clear">{_PEN}</button>
    <button type="button" class="qa-language" data-t="header.language" data-t-label="header.language.label"></button>
    <button type="button" class="qa-dark" data-t-label="header.dark"><svg viewBox="0 0 24 24" aria-hidden="true">
      <circle cx="12" cy="12" r="8" fill="none" stroke="currentColor" stroke-width="2"/>
      <path d="M12 4a8 8 0 0 1 0 16z"/></svg></button>
    <button type="button" class="qa-gear" data-t-label="header.settings" aria-controls="qa-settings">{_SLIDERS}</button>
  </nav>
</header>
"""

TALK = f"""
<section class="qa-talk" data-state="idle">
  <button type="button" class="qa-press" data-t-label="talk.button">{_MICROPHONE}<span class="qa-level"></span></button>
  <p class="qa-state" role="status" aria-live="polite" data-t="talk.hint"></p>
  <button type="button" class="qa-discard" data-t="talk.cancel" hidden></button>
  <label class="qa-switch"><input type="checkbox" role="switch" class="qa-handsfree"><i></i>
    <span data-t="talk.handsfree"></span></label>
  <p class="qa-live" aria-live="polite" tabindex="0" hidden></p>
</section>
"""

TRANSCRIBE_INTRO = """
<section class="qa-intro"><h2 data-t="transcribe.title"></h2><p data-t="transcribe.text"></p></section>
"""
_FORMATS = "".join(
    f'<button type="button" data-format="{name}">{name}</button>' for name in ("txt", "srt", "vtt", "json")
)
TRANSCRIPT = f"""
<section class="qa-transcript" hidden>
  <div class="qa-downloads" role="group" data-t-label="transcribe.download">
    <span data-t="transcribe.download"></span>{_FORMATS}
  </div>
  <ol class="qa-segments" data-t-label="transcribe.segments"></ol>
</section>
"""


def progress(note: str, share: float | None, *, problem: bool = False) -> str:
    """How far the transcription is: `share` from 0 to 1, None where nobody knows, below 0 where nothing is going on."""
    bar = (
        "" if share is not None and share < 0 else f"<progress {_value(share)} aria-label='{escape(note)}'></progress>"
    )
    kind = ' class="qa-problem" role="alert"' if problem else ""
    return f'<div class="qa-progress" role="status">{bar}<span{kind}>{escape(note)}</span></div>' if note else ""


def _value(share: float | None) -> str:
    return "" if share is None else f"value='{share:.3f}'"


def welcome() -> str:
    """What an empty page shows."""
    cards = "".join(
        f'<button type="button" class="qa-example" data-example="{example.name}">'
        f'{_icon(example.icon)}<span data-t="example.{example.name}"></span></button>'
        for example in EXAMPLES
    )
    return (
        '<section class="qa-welcome"><h2 data-t="welcome.title"></h2><p data-t="welcome.text"></p>'
        f'<div class="qa-examples" role="group" data-t-label="welcome.examples">{cards}</div></section>'
    )


def _icon(strokes: str) -> str:
    return (
        f'<svg viewBox="0 0 24 24" aria-hidden="true"><path d="{strokes}" fill="none" stroke="currentColor" '
        'stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"/></svg>'
    )


def _load(script: str, wiring: str) -> str:
    """`js_on_load` of a part: its module, given the element, then lines that turn its events into Gradio's."""
    return (
        f"import(new URL('page/static/{script}', document.baseURI)).then(m => m.mount(element, props, watch));{wiring}"
    )


def _forward(*events: str) -> str:
    return "".join(f"element.addEventListener('{event}', e => trigger('{event}', e.detail));" for event in events)


HEADER_SCRIPT = _load("header.js", _forward("language"))
TALK_SCRIPT = _load("talk.js", _forward("spoken", "heard"))
ALOUD_SCRIPT = _load("aloud.js", "")
TRANSCRIPT_SCRIPT = _load("transcript.js", _forward("download"))
SAVE_SCRIPT = _load("save.js", "")
WELCOME_SCRIPT = (
    "element.addEventListener('click', e => { const card = e.target.closest('.qa-example');"
    " if (card) trigger('example', {name: card.dataset.example}); });"
)
