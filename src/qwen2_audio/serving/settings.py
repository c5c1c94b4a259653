"""`Settings`: every limit and choice of the server, with a default that is safe, read from QWEN2_AUDIO_... variables.

Sizes are in MiB where the name says so, times in seconds. Lists are given with commas: QWEN2_AUDIO_API_KEYS=one,two.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from qwen2_audio.errors import UsageError
from qwen2_audio.processing.limits import DecodeLimits

PREFIX = "QWEN2_AUDIO_"
_OTHERS = ("CACHE", "DATA", "MODEL")
"""Variables with our prefix that other parts of the package read."""
MIB = 1 << 20

Texts = Annotated[tuple[str, ...], NoDecode]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """What the server allows, how long it waits, and to whom it listens. Frozen; made by `Settings.read`.

    Limits that the request's schema applies (the routes read them from here) stand under "Requests"; the others are applied
    by `guard.py`, `connections.py`, `fetch.py` and `media.py`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    # Who may come
    host: str = Field(
        "127.0.0.1", description="Address to listen at; anything else than loopback is open to the network."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen at; 0 takes a free one.")
    api_keys: Secrets = Field((), description="Keys of which a request must carry one; without any, all may come.")
    allowed_origins: Texts = Field((), description="Web pages (https://host) that may call from a browser; * is all.")
    allowed_hosts: Texts = Field((), description="Host names to answer to; default: at loopback its names, else any.")
    ssl_certfile: str = Field(
        "", description="Certificate (chain) as a PEM file: then https is spoken; wants ssl_keyfile."
    )
    ssl_keyfile: str = Field("", description="Its key as a PEM file, without a password.")
    docs: bool = Field(True, description="Serve /docs and /openapi.json.")
    metrics: bool = Field(True, description="Serve /metrics.")

    # Addresses of recordings
    fetch_urls: bool = Field(True, description="Fetch recordings from http(s) addresses, of the public internet only.")
    allowed_media_hosts: Texts = Field((), description="Fetch from these hosts only; default: from any public one.")
    max_redirects: int = Field(3, ge=0, description="How often an address may lead to another; each is checked.")
    connect_timeout: Seconds = Field(5.0, description="To reach the host of an address.")
    fetch_timeout: Seconds = Field(20.0, description="For an address altogether, redirects included.")

    # Recordings
    max_clips: Count = Field(16, description="Recordings in one request.")
    max_clip_mib: Count = Field(25, description="Size of one recording as it comes (in base64: before encoding).")
    max_clip_seconds: Seconds = Field(600.0, description="Length of one recording in a chat.")
    max_request_seconds: Seconds = Field(1200.0, description="Length of all recordings of a request together.")
    max_upload_mib: Count = Field(256, description="Size of a file to transcribe.")
    max_upload_seconds: Seconds = Field(4 * 3600.0, description="Length of a file to transcribe.")
    max_pcm_mib: Count = Field(512, description="Decoded sound of a clip, all channels at its own rate, as float32.")
    max_upload_pcm_mib: Count = Field(
        12 * 1024, description="The same of a file to transcribe; it is never held whole."
    )
    max_channels: Count = Field(8, description="Channels of a recording.")
    max_sample_rate: Count = Field(192_000, description="Sampling rate of a recording.")
    decoders: Count = Field(2, description="Clips decoded at a time, each in a process; more wait.")
    uploads: Count = Field(8, description="Files decoded at a time, each in a process; more wait.")
    decode_timeout: Seconds = Field(30.0, description="To decode a clip, or the next stretch of a long file.")
    decoder_memory_mib: Annotated[int, Field(ge=256)] = Field(1024, description="Memory that a decoder may take.")

    # Requests: what the schema allows
    max_messages: Count = Field(512, description="Messages (turns) of a conversation.")
    max_parts: Count = Field(64, description="Pieces of text and audio in a message.")
    max_text_chars: Count = Field(1_000_000, description="Characters of text in a request.")
    max_choices: Count = Field(8, description="Answers to one request (n).")
    max_stop: Count = Field(4, description="Stop strings.")
    max_stop_chars: Count = Field(256, description="Characters of a stop string.")
    max_top_logprobs: Count = Field(20, description="Alternatives a token.")
    max_logit_bias: Count = Field(300, description="Entries of logit_bias.")
    max_json_depth: Count = Field(32, description="Nesting of the JSON schema that an answer must follow.")
    max_schema_chars: Count = Field(65_536, description="Characters of a JSON schema.")

    # How much at a time
    max_body_mib: Count = Field(64, description="Body of a request that is no upload.")
    max_buffered_mib: Count = Field(1024, description="Bodies of all requests in progress together.")
    max_requests: Count = Field(256, description="Requests in progress; more get 429.")
    max_websockets: Count = Field(32, description="Open /v1/realtime connections; more get 429.")
    max_queue: Count = Field(256, description="Answers that may wait for this machine's engine; more get 503.")
    max_running: Count = Field(
        32,
        description="Answers that this machine's engine writes at a time with the model, and with each adapter; more wait.",
    )
    cache_tokens: Count = Field(
        32_768,
        description="Tokens of prompts and answers that its key-value caches (the model's, each adapter's) have room for; "
        "fewer where a GPU has no memory for them.",
    )
    max_connections: Count = Field(1024, description="Open connections; more get 503.")

    # How long
    header_timeout: Seconds = Field(
        10.0, description="For a connection to bring a request's head, and between requests."
    )
    receive_timeout: Seconds = Field(30.0, description="For a body, before min_receive_rate counts.")
    min_receive_rate: Count = Field(16 * 1024, description="Bytes a second that a body must bring beyond that.")
    send_timeout: Seconds = Field(30.0, description="For a client that reads nothing of its answer.")
    request_timeout: Seconds = Field(
        600.0, description="For a request altogether, until its last byte; uploads: 6 times."
    )
    queue_timeout: Seconds = Field(120.0, description="For an answer of this machine's engine to begin; then 503.")
    engine_timeout: Seconds = Field(
        300.0, description="For this machine's engine to do anything while answers wait; then it is started anew."
    )
    drain_timeout: Seconds = Field(30.0, description="For requests in progress when the server is told to end.")
    keep_alive_interval: Seconds = Field(15.0, description="Between comments on a stream that has nothing to say.")

    # /v1/realtime
    max_event_kib: Count = Field(1024, description="One message of a client.")
    realtime_idle_timeout: Seconds = Field(300.0, description="For a client that sends nothing.")
    realtime_max_seconds: Seconds = Field(3600.0, description="For a connection altogether.")
    realtime_max_turns: Count = Field(200, description="Turns that a connection remembers at most.")

    # Logs
    access_log: bool = Field(True, description="A line of JSON a request, without what was said.")
    log_text: bool = Field(False, description="Also log texts of chats and completions; never audio, never keys.")

    @field_validator("api_keys", "allowed_origins", "allowed_hosts", "allowed_media_hosts", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _keys_that_cannot_be_guessed(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if len(text) < 8 or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError("a key has at least 8 printable ASCII characters and no space")
        return keys

    @field_validator("allowed_media_hosts", "allowed_hosts")
    @classmethod
    def _bare_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not host or "/" in host or "@" in host or (host.startswith("*") and host != "*"):
                raise ValueError(f"{host!r} is no host name; give it bare, as in media.example.org")
        return tuple(host.lower().strip("[]") for host in hosts)

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and (not origin.startswith(("http://", "https://")) or origin.count("/") != 2):
                raise ValueError(f"{origin!r} is no origin; give scheme and host, as in https://page.example.org")
        return origins

    @classmethod
    def read(cls, given: Mapping[str, object] | None = None) -> Self:
        """Settings of the environment, with what is `given` laid over them.

        Raises:
            UsageError: a variable or name that does not exist (the nearest one is named), or a value that makes no sense.
        """
        known = tuple(cls.model_fields)
        for name in os.environ:
            if name.upper().startswith(PREFIX) and name.upper() not in (PREFIX + other for other in _OTHERS):
                _refuse_unknown(name, name.upper().removeprefix(PREFIX).lower(), known, PREFIX)
        for name in given or {}:
            _refuse_unknown(name, name, known, "")
        try:
            return cls.model_validate({**cls().model_dump(exclude_unset=True), **(given or {})})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = str(first["loc"][0]) if first["loc"] else "settings"
            reason = first["msg"].removeprefix("Value error, ")
            field = cls.model_fields.get(name)
            meaning = f" ({field.description})" if field is not None else ""
            raise UsageError(
                f"setting {name}: {reason}{meaning}; set {PREFIX}{name.upper()} or the option to such a value"
            ) from None

    @property
    def at_loopback(self) -> bool:
        """Whether only this machine can come."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names to answer to, in lower case without ports; () is any.

        At loopback that protects from web pages whose name was made to point here (DNS rebinding).
        """
        if self.allowed_hosts:
            return () if "*" in self.allowed_hosts else self.allowed_hosts
        return ("localhost", "127.0.0.1", "::1", self.host.lower().strip("[]")) if self.at_loopback else ()

    @property
    def clip_limits(self) -> DecodeLimits:
        """What one recording in a chat may hold."""
        return DecodeLimits(self.max_clip_seconds, self.max_pcm_mib * MIB, self.max_channels, self.max_sample_rate)

    @property
    def upload_limits(self) -> DecodeLimits:
        """What a file to transcribe may hold."""
        return DecodeLimits(
            self.max_upload_seconds, self.max_upload_pcm_mib * MIB, self.max_channels, self.max_sample_rate
        )


def _refuse_unknown(name: str, key: str, known: tuple[str, ...], prefix: str) -> None:
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1)
    hint = (
        f"did you mean {prefix + (near[0].upper() if prefix else near[0])}?"
        if near
        else f"known are {', '.join(known)}"
    )
    raise UsageError(f"there is no setting {name}; {hint}")
