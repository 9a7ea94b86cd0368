"""`atlas profile`, and `atlas chat --profile`."""

import json
from pathlib import Path

import pytest

TEXT = """
provider = "scripted"
model = "scripted-2"
api_key = "${CLI_TEST_KEY:-s3cret-default}"
max_tokens = 7
temperature = 0.5
"""


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "assistant.toml"
    path.write_text(TEXT)
    return str(path)


def test_show_masks_secrets_and_names_origins(atlas, monkeypatch, profile) -> None:
    monkeypatch.setenv("CLI_TEST_KEY", "s3cret")
    plain, with_origin = (
        atlas("profile", "show", profile),
        atlas("profile", "show", profile, "--origin"),
    )

    assert plain.code == with_origin.code == 0
    assert "s3cret" not in plain.out + with_origin.out
    assert "api_key = ********\n" in plain.out
    assert f"$CLI_TEST_KEY in {profile}" in with_origin.out
    assert "deadlines.first_token = 60.0 " in with_origin.out
    assert "# default" in with_origin.out


def test_show_as_json(atlas, profile) -> None:
    told = json.loads(atlas("profile", "show", profile, "--json", "--origin").out)

    assert told["values"]["max_tokens"] == 7
    assert told["values"]["api_key"] == "********"
    assert told["origins"]["max_tokens"] == profile
    assert told["files"] == [profile]


def test_a_broken_profile_is_told_in_one_error(atlas, tmp_path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("provder = 'x'\nmax_tokens = 'many'\n")
    shown, asked = atlas("profile", "show", str(path)), atlas("chat", "--profile", str(path), "hi")

    assert shown.code == asked.code == 1
    assert shown.err == asked.err
    assert "the nearest is 'provider'" in shown.err
    assert "'max_tokens' is 'many' where int or nothing is expected" in shown.err


def test_chat_takes_its_settings_from_a_profile(atlas, profile) -> None:
    ran = atlas("chat", "--profile", profile, "-v", "hi")
    over = atlas("chat", "--profile", profile, "-v", "-m", "scripted-3", "hi")

    assert ran.err.startswith("scripted · scripted-2 (the profile asks for it)")
    assert over.err.startswith("scripted · scripted-3 (the profile asks for it)")
