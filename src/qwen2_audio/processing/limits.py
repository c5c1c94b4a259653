"""`DecodeLimits`: how much sound may come out of a file, whatever its header says. A small file can hold hours of it."""

from __future__ import annotations

from dataclasses import dataclass

from qwen2_audio.errors import AudioError, TooLargeError, TooLongError, UsageError


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Upper bounds, applied while decoding; None is none.

    Attributes:
        seconds: length of the recording.
        pcm_bytes: decoded sound, all channels at the file's own rate, as float32: also bounds the work.
        channels, rate: of the recording.
    """

    seconds: float | None = None
    pcm_bytes: int | None = None
    channels: int | None = None
    rate: int | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "pcm_bytes", "channels", "rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"the limit {name} must be positive or None, got {value!r}; leave it out for no limit")

    def refuse_format(self, name: str, channels: int, rate: int) -> None:
        """Raises:
        AudioError: more channels or a higher rate than allowed.
        """
        if self.channels is not None and channels > self.channels:
            raise AudioError(f"{name} has {channels} channels; at most {self.channels} are taken, mix it down")
        if self.rate is not None and rate > self.rate:
            raise AudioError(f"{name} has a sampling rate of {rate} Hz; at most {self.rate} Hz are taken, resample it")

    def refuse_amount(self, name: str, samples: int, channels: int, rate: int) -> None:
        """Raises:
        TooLongError, TooLargeError: this much sound, or more, is more than allowed.
        """
        if self.seconds is not None and samples > self.seconds * rate:
            raise TooLongError(f"{name} is longer than {self.seconds:g} s; cut it, or give a part of it")
        if self.pcm_bytes is not None and samples * channels * 4 > self.pcm_bytes:
            raise TooLargeError(
                f"{name} decodes to more than {self.pcm_bytes >> 20} MiB of sound; cut it, mix it down or resample it"
            )
