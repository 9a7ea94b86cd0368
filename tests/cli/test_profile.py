"""`atlas profile`, and `atlas chat --profile`."""

import json
import tomllib
from datetime import timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.cli.toml import toml_text
from atlas.errors import ConfigurationError

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


# -- merging --------------------------------------------------------------------------------------

BASE = """
provider = "openai"
model = "old"
temperature = 0.2
[deadlines]
gap = 30
"""
MINE = """
provider = "openai"
model = "old"
temperature = 0.7
api_key = "${MY_KEY}"
extends = "team.toml"
[deadlines]
gap = 30
total = 120
"""
THEIRS = """
provider = "openai"
model = "new"
temperature = 0.2
fallback = ["local"]
[deadlines]
gap = 20
"""


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name, text in (("base", BASE), ("mine", MINE), ("theirs", THEIRS)):
        Path(f"{name}.toml").write_text(text)
    return ["base.toml", "mine.toml", "theirs.toml"]


def test_an_edited_profile_takes_over_what_is_new_in_its_template(atlas, templates) -> None:
    ran = atlas("profile", "merge", *templates)

    assert ran.code == 0
    assert tomllib.loads(ran.out) == {
        "provider": "openai",
        "model": "new",
        "temperature": 0.7,
        "api_key": "${MY_KEY}",
        "extends": "team.toml",
        "fallback": ["local"],
        "deadlines": {"gap": 20, "total": 120},
    }


def test_a_value_that_both_changed_is_a_conflict_until_somebody_decides(atlas, templates) -> None:
    Path("theirs.toml").write_text(THEIRS.replace("0.2", "0.9"))
    output = ("--output", "merged.toml")
    ran = atlas("profile", "merge", *templates, *output)
    listed = atlas("profile", "merge", *templates, *output, "--json")

    assert ran.code == listed.code == 1
    assert "/temperature: 0.2 became 0.7 in mine and 0.9 in theirs" in ran.err
    conflict = {"path": "/temperature", "base": 0.2, "mine": 0.7, "theirs": 0.9}
    assert json.loads(listed.out) == {"conflicts": [conflict]}
    assert not Path("merged.toml").exists()
    for side, temperature in (("mine", 0.7), ("theirs", 0.9)):
        atlas("profile", "merge", *templates, *output, "--prefer", side)
        assert tomllib.loads(Path("merged.toml").read_text())["temperature"] == temperature


def test_a_merge_as_json_tells_what_was_taken_over(atlas, templates) -> None:
    told = json.loads(atlas("profile", "merge", *templates, "--json").out)

    assert told["merged"]["model"] == "new"
    assert any("/model" in step and "'new'" in step for step in told["taken"])
    assert Path("mine.toml").read_text() == MINE


def test_a_template_that_is_not_there_is_told(atlas, templates) -> None:
    ran = atlas("profile", "merge", "no.toml", *templates[1:])

    assert ran.code == 1
    assert "'no.toml' cannot be read" in ran.err


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
offsets = st.timedeltas(timedelta(hours=-12), timedelta(hours=12)).map(
    lambda offset: timezone(timedelta(minutes=offset // timedelta(minutes=1)))
)
singles = (
    texts
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.dates()
    | st.datetimes(timezones=st.none() | offsets)
)
values = st.recursive(
    singles, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


@given(st.dictionaries(texts, values, max_size=4))
def test_written_toml_reads_back_equal(table) -> None:
    assert tomllib.loads(toml_text(table)) == table


def test_what_toml_cannot_say_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no way to write None"):
        toml_text({"a": None})


def test_a_merge_that_cannot_be_written_says_so(atlas, templates, tmp_path: Path) -> None:
    written = atlas(
        "profile", "merge", *templates, "--prefer", "mine", "-o", str(tmp_path / "to.toml")
    )
    refused = atlas("profile", "merge", *templates, "--prefer", "mine", "-o", str(tmp_path))

    assert written.out.startswith(f"{tmp_path / 'to.toml'} is written, with ")
    assert refused.code == 1
    assert "Is a directory" in refused.err
    assert "Traceback" not in refused.err
