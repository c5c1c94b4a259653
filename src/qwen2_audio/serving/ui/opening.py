"""The session that an event of Gradio's belongs to."""

from __future__ import annotations

import gradio as gr

from qwen2_audio.errors import ConversationError
from qwen2_audio.serving.ui.sessions import Session, Sessions


def open_session(sessions: Sessions, request: gr.Request) -> Session:
    """The session of the page that a request comes from.

    Raises:
        gr.Error: it was forgotten, though the page is still there; the visitor is told so.
    """
    try:
        return sessions.of(str(request.session_hash))
    except ConversationError as error:
        raise gr.Error(str(error), print_exception=False) from error
