"""Reading what a client sends, field by field: what is not known or not followed is refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qwen2_audio.errors import Qwen2AudioError, advice


class EventError(Qwen2AudioError):
    """An event that makes no sense; the connection goes on.

    Attributes:
        code: for programs.
        param: the field at fault.
    """

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class Fields:
    """An object of an event, and where in the event it stands."""

    def __init__(self, given: Any, where: str = "") -> None:
        if not isinstance(given, Mapping):
            raise EventError(
                f"{where or 'the event'} must be an object, got {given!r:.80}", "invalid_type", where or None
            )
        self.given = given
        self.where = where

    def path(self, name: str) -> str:
        """A field as messages name it."""
        return f"{self.where}.{name}" if self.where else name

    def only(self, known: Collection[str], neutral: Mapping[str, tuple[Any, ...]] | None = None) -> None:
        """Refuse fields that are not `known`, unless their value is one that changes nothing (null always is one)."""
        for name, value in self.given.items():
            if name in known or value is None:
                continue
            if neutral is not None and name in neutral:
                if value in neutral[name]:
                    continue
                raise EventError(
                    f"{self.path(name)} is not supported here; leave it out", "unsupported", self.path(name)
                )
            raise EventError(
                f"unknown field {self.path(str(name)):.100}; {advice(str(name), known)}",
                "unknown_field",
                self.path(str(name)),
            )

    def text(self, name: str, default: str | None = None, *, longest: int = 1_000_000) -> str:
        """A string; without a default it must be there."""
        value = self.given.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a text", value)
        if len(value) > longest:
            raise EventError(
                f"{self.path(name)} has {len(value)} characters; {longest} are allowed", "too_long", self.path(name)
            )
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A number between two others."""
        value = self.given.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(name, f"a number from {least:g} to {most:g}", value)
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number, at least 0; without a default it must be there."""
        value = self.given.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(name, "a whole number, at least 0", value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.given.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def one_of(self, name: str, allowed: Collection[str], default: str | None = None) -> str:
        """One of some words; without a default it must be there."""
        value = self.given.get(name)
        if value is None and default is not None:
            return default
        if value not in allowed:
            raise self.wrong(name, " or ".join(repr(word) for word in allowed), value)
        return str(value)

    def inside(self, name: str) -> Fields:
        """An object in this one; an absent one is empty."""
        value = self.given.get(name)
        return Fields({} if value is None else value, self.path(name))

    def wrong(self, name: str, rule: str, value: Any) -> EventError:
        """The error of a field."""
        return EventError(f"{self.path(name)} must be {rule}, got {value!r:.80}", "invalid_value", self.path(name))
