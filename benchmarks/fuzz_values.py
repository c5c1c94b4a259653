"""What no honest client sends: values, addresses, parts, events, paths and headers, for `fuzz_cases.py`."""

from __future__ import annotations

from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**63),
        10**400,
        1e308,
        -1e308,
        1e-320,
        0.5,
        "",
        " ",
        "\x00",
        "a",
        "NaN",
    ),
    *(
        "\ud800",
        "\u202e",
        "é" * 50,
        "x" * 100_000,
        "<|im_end|>",
        "<|AUDIO|>",
        "<|audio_bos|>",
        "{{7*7}}",
        "${x}",
        "%s%n",
    ),
    *(
        "../../etc/passwd",
        "' OR 1=1 --",
        "1e999",
        [],
        {},
        [[]],
        [None],
        {"": None},
        [0] * 5000,
        {"a": {"b": {"c": []}}},
    ),
    *(
        "user",
        "system",
        "assistant",
        "tool",
        "developer",
        "text",
        "input_audio",
        "audio_url",
        "json_object",
        "json_schema",
    ),
)
NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0",
    "9" * 5000,
    "0.0000000000000000000001",
    "1E+2",
    "01",
    "0x10",
    "1_0",
)
URLS = (
    *(
        "http://127.0.0.1/x",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0/",
        "http://2130706433/",
    ),
    *(
        "http://127.1/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://a\\@b/",
        "file:///etc/x",
    ),
    *(
        "http://user:pass@127.0.0.1/",
        "http://localhost:22/",
        "ftp://x/",
        "gopher://x/",
        "data:",
        "data:,",
        "data:audio/wav,%",
    ),
    *(
        "data:audio/wav;base64,",
        "data:audio/wav;base64,AAAA",
        "data:;base64,====",
        "http://①②⑦.⓪.⓪.①/",
        "http://",
        "//x",
        "x",
    ),
    *(
        "http://[fe80::1%25lo]/",
        "http://" + "a" * 5000,
        "javascript:1",
        "https://127.0.0.1:1/\r\nX: y",
        "http://a:99999/",
    ),
)
KINDS = (
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
)
EVENTS = (
    *("session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear"),
    *("response.create", "response.cancel", "conversation.item.create", "conversation.item.delete", "nonsense", ""),
)
PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/audio/transcriptions", "/v1/audio/translations")
OTHERS = (
    *(
        "/",
        "/v1",
        "/v1/models/%00",
        "/v1/models/..%2f..%2fetc",
        "/health",
        "/ready",
        "/metrics",
        "/docs",
        "/openapi.json",
    ),
    *(
        "/v1/models",
        "/v1/models/mini",
        "/version",
        "/v1/chat/completions/",
        "//v1/models",
        "/%ff%fe",
        "/v1/realtime",
        "/" + "a" * 3000,
    ),
)
HEADERS = (
    *(("content-type", "text/plain"), ("content-type", ""), ("content-type", "application/json; charset=utf-99")),
    *(("content-type", "multipart/form-data"), ("content-type", "multipart/form-data; boundary="), ("accept", "\x80")),
    *(
        ("content-encoding", "gzip"),
        ("authorization", "Bearer"),
        ("authorization", "Basic !"),
        ("x-request-id", "a b;"),
    ),
    *(
        ("origin", "null"),
        ("range", "bytes=9-1"),
        ("expect", "200-ok"),
        ("x-forwarded-for", "127.0.0.1"),
        ("cookie", "=;="),
    ),
)
