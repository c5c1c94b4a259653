"""What the encoder made of recordings, by content: kept while somebody needs it, then as long as there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from typing import Generic, TypeVar

T = TypeVar("T")


class ClipStore(Generic[T]):
    """Encodings by the content of their recordings, the least recently used first.

    Attributes:
        tokens: audio tokens that are stored.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most = most_tokens
        self._kept: OrderedDict[int, tuple[int, T]] = OrderedDict()
        self.tokens = 0

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def get(self, key: int) -> T:
        self._kept.move_to_end(key)
        return self._kept[key][1]

    def put(self, key: int, tokens: int, encoding: T) -> None:
        self._kept[key] = (tokens, encoding)
        self.tokens += tokens

    @property
    def over(self) -> bool:
        """Whether more is stored than is to be kept."""
        return self.tokens > self._most

    def trim(self, needed: Set[int]) -> None:
        """Forget what is over the limit, but nothing that is `needed`."""
        for key in [key for key in self._kept if key not in needed]:
            if not self.over:
                return
            self.tokens -= self._kept.pop(key)[0]

    def clear(self, needed: Set[int]) -> None:
        """Forget all but what is `needed`."""
        self._kept = OrderedDict((key, kept) for key, kept in self._kept.items() if key in needed)
        self.tokens = sum(tokens for tokens, _ in self._kept.values())
