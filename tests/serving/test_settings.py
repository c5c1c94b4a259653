"""Settings: safe as they come, read from the environment, and every mistake is named."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from qwen2_audio.errors import UsageError
from qwen2_audio.serving.settings import PREFIX, Settings


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWEN2_AUDIO_MODEL", raising=False)


def refused(given: dict[str, object] | None, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings.read(given)
    message = str(caught.value)
    assert "\n" not in message and ";" in message
    assert all(word in message for word in words), message


def test_defaults_are_safe() -> None:
    settings = Settings.read()
    assert settings.at_loopback
    assert settings.hosts == ("localhost", "127.0.0.1", "::1", "127.0.0.1")
    assert settings.allowed_origins == ()
    assert settings.log_text is False
    assert settings.clip_limits.seconds == settings.max_clip_seconds
    assert settings.upload_limits.seconds == settings.max_upload_seconds


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description[0].isupper() and field.description.endswith("."), name


def test_they_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings.read().port = 1  # type: ignore[misc]


def test_environment_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN2_AUDIO_API_KEYS", "first-key, second-key")
    monkeypatch.setenv("QWEN2_AUDIO_MAX_CLIPS", "3")
    monkeypatch.setenv("QWEN2_AUDIO_PORT", "8001")
    monkeypatch.setenv("QWEN2_AUDIO_CACHE", "somewhere")  # another part's
    settings = Settings.read({"port": 8002})
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key", "second-key"]
    assert (settings.max_clips, settings.port) == (3, 8002)
    assert "first-key" not in repr(settings) + str(settings.model_dump())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_clips", 0),
        ("max_clips", "many"),
        ("port", 65536),
        ("request_timeout", "nan"),
        ("request_timeout", -1),
        ("decoder_memory_mib", 1),
        ("api_keys", "short"),
        ("api_keys", "with a space in it"),
        ("allowed_origins", "page.example.org"),
        ("allowed_origins", "https://page.example.org/"),
        ("allowed_media_hosts", "https://media.example.org"),
        ("allowed_media_hosts", "*.example.org"),
        ("allowed_hosts", "user@host"),
        ("fetch_urls", "perhaps"),
    ],
)
def test_values_that_make_no_sense(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    refused({name: value}, f"setting {name}:", PREFIX + name.upper())
    monkeypatch.setenv(PREFIX + name.upper(), str(value))
    refused(None, f"setting {name}:")


def test_a_bad_key_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        Settings.read({"api_keys": "my secret passphrase"})
    assert "passphrase" not in str(caught.value)


def test_unknown_names_are_told_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    refused({"max_clip": 3}, "no setting max_clip", "did you mean max_clips?")
    refused({"colour": 3}, "no setting colour", "known are host, port")
    monkeypatch.setenv("QWEN2_AUDIO_API_KEY", "sesame-open")
    refused(None, "no setting QWEN2_AUDIO_API_KEY", "did you mean QWEN2_AUDIO_API_KEYS?")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_hosts_to_answer_to(host: str, loopback: bool) -> None:
    settings = Settings(host=host)
    assert settings.at_loopback is loopback
    assert bool(settings.hosts) is loopback
    assert Settings(host=host, allowed_hosts=("A.example.org",)).hosts == ("a.example.org",)
    assert Settings(host=host, allowed_hosts=("*",)).hosts == ()
