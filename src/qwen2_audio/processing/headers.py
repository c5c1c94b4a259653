"""What the headers of sound files promise, read from their bytes: enough to notice a file that was cut short."""

from __future__ import annotations

import mmap
import re
from math import prod
from typing import TypeAlias

_NEAR = 0x1000
_UNKNOWN_AU = 0xFFFF_FFFF
_NIST_HEAD = 0x1000
_NIST_SIZES = (b"sample_count", b"sample_n_bytes", b"channel_count")

Data: TypeAlias = bytes | mmap.mmap


def wav_data(data: Data) -> tuple[int, int, int]:
    """What a wav file says of its sound: bytes promised by the header, bytes there, bytes a second."""
    at, bytes_a_second = 12, 0
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"fmt ":
            bytes_a_second = int.from_bytes(data[at + 16 : at + 20], "little")
        if kind == b"data":
            return size, len(data) - at - 8, bytes_a_second
        at += 8 + size + size % 2
    return 0, 0, bytes_a_second


def is_known(size: int) -> bool:
    """Whether the data size of a wav file is one. Writers that cannot seek back leave 0, or what is about the largest there is,
    with a sign or without."""
    return size > 0 and not any(largest - _NEAR <= size <= largest for largest in (0x8000_0000, 0xFFFF_FFFF))


def promised_bytes(data: Data) -> int:
    """Size of the whole file according to its header, for AIFF, RF64, Wave64, AU, CAF, AVI and NIST SPHERE; 0 where it does
    not say."""
    kind = data[:4]
    if kind == b"RIFF" and data[8:12] == b"AVI ":  # a long one goes on in more such chunks, which is not looked into
        size = int.from_bytes(data[4:8], "little")
        return 8 + size if is_known(size) else 0
    if data[:7] == b"NIST_1A":
        return _promised_by_nist(data)
    if kind == b"FORM":
        return 8 + int.from_bytes(data[4:8], "big")
    if kind == b"RF64":
        return 8 + int.from_bytes(data[20:28], "little")
    if kind == b"riff":
        return int.from_bytes(data[16:24], "little")
    if kind == b".snd":
        size = int.from_bytes(data[8:12], "big")
        return 0 if size == _UNKNOWN_AU else int.from_bytes(data[4:8], "big") + size
    if kind == b"caff":
        at = 8
        while at + 12 <= len(data):
            size = int.from_bytes(data[at + 4 : at + 12], "big", signed=True)
            if size < 0:
                return 0
            at += 12 + size
        return at
    return 0


def _promised_by_nist(data: Data) -> int:
    """Of a NIST SPHERE file; 0 where the number of samples is missing, or they are compressed."""
    start = int(data[8:16].strip()) if data[8:16].strip().isdigit() else 0
    head = data[: min(start, _NIST_HEAD)]
    count, *sizes = (re.search(rb"\n" + name + rb" -i (\d+)\s", head) for name in _NIST_SIZES)
    if count is None or b"embedded" in head:
        return 0
    return start + int(count[1]) * prod(int(size[1]) for size in sizes if size)  # each is at least 1


def ogg_state(data: Data) -> tuple[bool, bool, bool]:
    """Of an ogg file: whether it is several recordings joined, ends inside a page, and lacks the mark of its end."""
    at, started, joined, ended = 0, False, False, False
    while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        flags, segments = data[at + 5], data[at + 26]
        first = bool(flags & 2)
        joined |= first and started
        started |= not first
        ended = bool(flags & 4)
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
    return joined, at > len(data) or (0 < len(data) - at < 27), not ended


def mp3_end(data: Data) -> tuple[bool, int]:
    """Whether the first mp3 frame, behind an ID3 tag if there is one, tells the number of frames; where they end, or 0."""
    start = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        start = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    head = data[start : start + 512]
    if b"VBRI" in head:
        return True, 0
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0:
        return False, 0
    flags = int.from_bytes(head[at + 4 : at + 8], "big")
    place = at + 8 + 4 * (flags & 1)
    return True, start + int.from_bytes(head[place : place + 4], "big") if flags & 2 else 0
