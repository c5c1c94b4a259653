"""What the server knows of each open page: forgotten the moment the page is closed."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen2_audio.errors import ConversationError
from qwen2_audio.serving.ui.chat import Chat
from qwen2_audio.serving.ui.texts import Language, texts
from qwen2_audio.serving.ui.transcript import Transcript

MOST = 1000
"""Open pages; when there are more, the one that was longest without a question is forgotten."""
_REMEMBERED = 10
"""As many times `MOST` names of forgotten pages are kept, so that none of them begins anew unnoticed."""


@dataclass(eq=False)
class Session:
    """One open page."""

    language: Language
    chat: Chat = field(default_factory=Chat)
    transcript: Transcript = field(default_factory=lambda: Transcript(""))

    def close(self) -> None:
        """Stop what the visitor still waits for, and drop all that was said."""
        self.chat.clear()
        self.transcript.stop()


class Sessions:
    """All open pages, by the name that Gradio gives them."""

    def __init__(self, language: Language, most: int = MOST) -> None:
        self._language = language
        self._most = most
        self._open: dict[str, Session] = {}
        self._closed: dict[str, Language] = {}

    def __len__(self) -> int:
        return len(self._open)

    def of(self, name: str) -> Session:
        """The session of a page; a new one where there was none.

        Raises:
            ConversationError: it was forgotten, though the page is still there: the connection was lost in between.
        """
        if name in self._closed:
            raise ConversationError(texts(self._closed[name]).say("session.lost"))
        session = self._open.pop(name, None) or Session(self._language)
        self._open[name] = session  # the one asked last stands last
        while len(self._open) > self._most:
            self.forget(next(iter(self._open)))
        return session

    def forget(self, name: str) -> None:
        """Stop what the page's visitor still waits for, and drop all that was said."""
        session = self._open.pop(name, None)
        self._closed[name] = session.language if session else self._closed.get(name, self._language)
        if len(self._closed) > _REMEMBERED * self._most:
            del self._closed[next(iter(self._closed))]
        if session is not None:
            session.close()
