"""Profiles: files, extends, environment, types, origins and masked secrets."""

from __future__ import annotations

import builtins
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from atlas.core.profiles import Origin, load_profile
from atlas.core.schedules import Constant, Linear, Schedule
from atlas.errors import ConfigurationError, MissingDependencyError, ProfileError
from atlas.typing import JSON, SECRET


@dataclass(frozen=True)
class Model:
    name: str
    temperature: float = 1.0
    api_key: Annotated[str, SECRET] | None = None


@dataclass(frozen=True)
class Settings:
    model: Model
    retries: int = 2
    verbose: bool = False


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def problems(path: Path, into: type, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ProfileError) as raised:
        load_profile(path, into, environ=environ)
    for problem in raised.value.problems:
        assert problem in str(raised.value)
    return tuple(each.replace(f"{path.parent}/", "") for each in raised.value.problems)


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "retries = 5\n[model]\nname = 'm'\n"),
        ("a.yaml", "retries: 5\nmodel:\n  name: m\n"),
        ("a.yml", "\ufeffretries: 5\nmodel: {name: m}\n"),
    ],
)
def test_a_file_becomes_a_typed_value(write, name, text):
    profile = load_profile(write(name, text), Settings)

    assert profile.value == Settings(model=Model(name="m"), retries=5)
    assert [file.name for file in profile.files] == [name]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", "a = ", "is not valid TOML"),
        ("a.toml", "a = 1\na = 2", "is not valid TOML"),
        ("a.yaml", "a: [", "is not valid YAML"),
        ("a.yaml", "a: 1\na: 2", "the key 'a' is given twice"),
        ("a.yaml", "- 1", "write a mapping"),
        ("a.yaml", "1: x", "the key 1 is no text"),
        ("a.yaml", "a: &a\n  b: *a", "holds itself"),
        ("a.yaml", "a: !!python/object:os.system {}", "is not valid YAML"),
        ("a.ini", "a=1", "Name it .toml"),
        ("a.toml", "extends = 5", "extends is 5"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(write, name, text, told):
    with pytest.raises(ProfileError, match=told):
        load_profile(write(name, text), Settings)


def test_a_file_that_is_not_there_is_told_with_the_one_that_extends_it(write, tmp_path):
    with pytest.raises(ProfileError, match=r"none\.toml' cannot be read"):
        load_profile(tmp_path / "none.toml", Settings)
    with pytest.raises(ProfileError, match=r"none.toml', which .*top.toml extends, cannot be read"):
        load_profile(write("top.toml", "extends = 'none.toml'"), Settings)


def test_an_empty_yaml_file_is_an_empty_profile(write):
    @dataclass(frozen=True)
    class Empty:
        a: int = 1

    assert load_profile(write("a.yaml", "# nothing"), Empty).value == Empty()


def test_merge_keys_of_yaml_work(write):
    path = write("a.yaml", "model: &m {name: m}\nretries: 1\n")
    write("b.yaml", "extends: a.yaml\nmodel: {<<: {name: x, temperature: 0.5}, name: y}\n")

    assert load_profile(path.with_name("b.yaml"), Settings).value.model == Model("y", 0.5)


def test_without_pyyaml_the_error_says_what_to_install(write, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "yaml":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)

    with pytest.raises(MissingDependencyError, match=r"atlas\[yaml\]") as raised:
        load_profile(write("a.yaml", "a: 1"), Settings)
    assert raised.value.extra == "yaml"


# -- extends --------------------------------------------------------------------------------------


def test_tables_are_merged_and_all_else_is_replaced(write):
    @dataclass(frozen=True)
    class Lists:
        model: Model
        tags: tuple[str, ...] = ()

    write("base.toml", "tags = ['a', 'b']\n[model]\nname = 'base'\ntemperature = 0.1\n")
    path = write("top.yaml", "extends: base.toml\ntags: [c]\nmodel: {name: top}\n")

    assert load_profile(path, Lists).value == Lists(Model("top", 0.1), ("c",))


def test_later_bases_win_over_earlier_ones_and_the_file_over_all(write):
    write("base/a.toml", "retries = 1\n[model]\nname = 'a'\ntemperature = 1\n")
    write("base/b.toml", "extends = 'a.toml'\nretries = 2\n[model]\ntemperature = 2\n")
    path = write("top.toml", "extends = ['base/a.toml', 'base/b.toml']\n[model]\nname = 'top'\n")

    profile = load_profile(path, Settings)

    assert profile.value == Settings(Model("top", 2.0), retries=2)
    assert [file.name for file in profile.files] == ["a.toml", "b.toml", "top.toml"]


def test_a_circle_is_told_with_its_chain(write):
    write("b.toml", "extends = 'c.toml'")
    write("c.toml", "extends = 'a.toml'")

    [told] = problems(write("a.toml", "extends = 'b.toml'"), Settings)

    assert "a.toml -> b.toml -> c.toml -> a.toml" in told


# -- environment ----------------------------------------------------------------------------------


def test_variables_are_filled_in_with_defaults_and_escapes(write):
    path = write(
        "a.toml",
        """
        [model]
        name = "${MAKER}/${SIZE:-small}-${EMPTY:-x}${BLANK}-$${MAKER}"
        """,
    )

    profile = load_profile(path, Settings, environ={"MAKER": "acme", "EMPTY": "", "BLANK": ""})

    assert profile.value.model.name == "acme/small-x-${MAKER}"
    assert profile.origin("model.name") == Origin("environment", path, ("MAKER", "BLANK"))


def test_text_of_the_environment_may_stand_for_a_number_or_a_truth_value(write):
    path = write(
        "a.toml",
        """
        retries = "${R}"
        verbose = "${V}"
        [model]
        name = "${N}"
        temperature = "${T:-0.5}"
        """,
    )

    value = load_profile(path, Settings, environ={"R": "7", "V": "Yes", "N": "8"}).value

    assert value == Settings(Model("8", 0.5), 7, verbose=True)


def test_text_of_a_file_may_not_stand_for_a_number(write):
    path = write("a.toml", "retries = '7'\n[model]\nname = 'm'\n")

    assert problems(path, Settings) == ("a.toml: 'retries' is '7' where int is expected.",)


def test_a_missing_variable_is_told_with_file_key_and_name(write):
    path = write("a.toml", "[model]\nname = 'x-${MODEL}'\n")

    [told] = problems(path, Settings)

    assert told == (
        "a.toml: 'model.name' needs the environment variable MODEL, which is not set; "
        "set it, or write ${MODEL:-default}."
    )


def test_a_value_that_is_replaced_needs_no_variable(write):
    write("base.toml", "[model]\nname = '${MODEL}'\n")
    path = write("top.toml", "extends = 'base.toml'\n[model]\nname = 'mine'\n")

    assert load_profile(path, Settings, environ={}).value.model.name == "mine"


@pytest.mark.parametrize("wrong", ["${A B}", "${}", "${A", "${:-x}", "${A-x}"])
def test_a_broken_reference_is_told(write, wrong):
    path = write("a.toml", f"[model]\nname = '{wrong}'\n")

    [told] = problems(path, Settings, A="a")

    assert f"'model.name' has '{wrong}', which is no reference" in told


def test_the_environment_of_the_process_is_the_default(write, monkeypatch):
    monkeypatch.setenv("ATLAS_TEST_NAME", "m")

    assert load_profile(
        write("a.toml", "[model]\nname = '${ATLAS_TEST_NAME}'\n"), Settings
    ).value.model == Model("m")


# -- types ----------------------------------------------------------------------------------------


class Mode(Enum):
    FAST = "fast"
    GOOD = 2


@dataclass(frozen=True)
class Everything:
    path: Path = Path("x")
    mode: Mode = Mode.FAST
    word: Literal["a", "b", 3] = "a"
    maybe: int | str | None = None
    day: date = date(2026, 1, 1)
    names: list[str] = field(default_factory=list)
    pair: tuple[int, str] = (0, "")
    kinds: frozenset[int] = frozenset()
    limits: Mapping[str, float] = field(default_factory=dict)
    models: tuple[Model, ...] = ()
    by_name: dict[str, Model] = field(default_factory=dict)
    share: Schedule = field(default_factory=lambda: Constant(1))
    extra: dict[str, JSON] = field(default_factory=dict)
    anything: Any = None


def test_every_type_of_field_is_read(write, tmp_path):
    path = write(
        "a.toml",
        """
        path = "data/x.db"
        mode = 2
        word = 3
        maybe = "text"
        day = 2026-11-23
        names = ["a", "${B}"]
        pair = [1, "x"]
        kinds = [1, 2, 2]
        limits = {low = 1, high = 2.5}
        models = [{name = "one"}, {name = "two", temperature = 0}]
        by_name = {x = {name = "three"}}
        share = {kind = "linear", start = "${START}", end = 1, steps = 10}
        extra = {deep = [{a = 1}, []], none = {}}
        anything = {x = [1]}
        """,
    )

    value = load_profile(path, Everything, environ={"B": "b", "START": "0"}).value

    assert value == Everything(
        path=tmp_path / "data/x.db",
        mode=Mode.GOOD,
        word=3,
        maybe="text",
        day=date(2026, 11, 23),
        names=("a", "b"),
        pair=(1, "x"),
        kinds=frozenset({1, 2}),
        limits={"low": 1.0, "high": 2.5},
        models=(Model("one"), Model("two", 0.0)),
        by_name={"x": Model("three")},
        share=Linear(0, 1, 10),
        extra={"deep": ({"a": 1}, ()), "none": {}},
        anything={"x": (1,)},
    )
    assert type(value.limits["low"]) is float
    with pytest.raises(TypeError):
        value.limits["low"] = 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("path = 5", "'path' is 5 where Path is expected"),
        ("mode = 'slow'", "'mode' is 'slow' where one of 'fast', 2 is expected"),
        ("word = 'c'", "'word' is 'c' where one of 'a', 'b', 3 is expected"),
        ("maybe = 1.5", "'maybe' is 1.5 where int or str or nothing is expected"),
        ("maybe = true", "'maybe' is True where"),
        ("day = 2026-01-01T00:00:00", "where date is expected"),
        ("names = 'a'", "'names' is 'a' where list[str] is expected"),
        ("names = ['a', 5]", "'names.1' is 5 where str is expected"),
        ("pair = [1]", "'pair' is a list of 1 where a list of 2 is expected"),
        ("limits = [1]", "'limits' is a list where Mapping[str, float] is expected"),
        ("limits = {a = 'b'}", "'limits.a' is 'b' where float is expected"),
        ("models = [{nme = 'x'}]", "'models.0.nme' is unknown; the nearest is 'name'"),
        ("by_name = {x = {}}", "'by_name.x.name' is missing, str is needed"),
        ("share = {kind = 'liner'}", "'share' is refused: No schedule is of kind 'liner'"),
        ("share = 5", "'share' is 5 where Schedule is expected"),
        ("names = {a = 1}", "'names' is a table where list[str] is expected"),
    ],
)
def test_a_wrong_value_is_told_with_file_key_value_and_type(write, line, told):
    found = problems(write("a.toml", line), Everything)

    assert any(told in each and each.startswith("a.toml: ") for each in found)


def test_everything_wrong_is_told_at_once_each_with_its_own_file(write):
    write("base.toml", "retries = 1.5\n")
    path = write("top.toml", "extends = 'base.toml'\nverbos = true\n[model]\ntemperature = 'hot'\n")

    assert problems(path, Settings) == (
        "top.toml: the key 'verbos' is unknown; the nearest is 'verbose'; known are model, retries, verbose.",
        "top.toml: 'model.name' is missing, str is needed.",
        "top.toml: 'model.temperature' is 'hot' where float is expected.",
        "base.toml: 'retries' is 1.5 where int is expected.",
    )


def test_what_the_class_itself_refuses_is_a_problem_too(write):
    @dataclass(frozen=True)
    class Positive:
        size: int

        def __post_init__(self) -> None:
            if self.size < 0:
                raise ValueError("size is negative")

    assert problems(write("a.toml", "size = -1"), Positive) == (
        "a.toml: the profile is refused: size is negative",
    )


@pytest.mark.parametrize("into", [dict, type("Plain", (), {}), dataclass(type("Soft", (), {}))])
def test_only_a_frozen_dataclass_is_loaded_into(write, into):
    with pytest.raises(ConfigurationError, match="frozen dataclass"):
        load_profile(write("a.toml", ""), into)


# -- origins and secrets --------------------------------------------------------------------------


def test_every_value_knows_its_origin(write):
    base = write("base.toml", "[model]\nname = 'm'\napi_key = '${KEY}'\n")
    path = write("top.toml", "extends = 'base.toml'\nretries = 3\n")

    profile = load_profile(path, Settings, environ={"KEY": "s3cret"})

    assert profile.origin("model.name") == Origin("file", base)
    assert profile.origin("model.api_key") == Origin("environment", base, ("KEY",))
    assert profile.origin("retries") == Origin("file", path)
    assert profile.origin("verbose") == Origin("default")
    assert profile.show(origin=True).splitlines() == [
        f'model.name = "m"          # {base}',
        f"model.api_key = ********  # $KEY in {base}",
        "model.temperature = 1.0   # default",
        f"retries = 3               # {path}",
        "verbose = false           # default",
    ]


def test_an_unknown_value_has_no_origin(write):
    profile = load_profile(write("a.toml", "[model]\nname = 'm'\n"), Settings)

    with pytest.raises(ConfigurationError, match="nearest is 'retries'"):
        profile.origin("retry")


def test_secrets_are_masked_wherever_a_profile_is_shown(write):
    @dataclass(frozen=True)
    class Secrets:
        pin: Annotated[str, SECRET]
        spare: Annotated[str | None, SECRET] = "s3cret-default"
        pins: list[Annotated[str, SECRET]] = field(default_factory=list)
        headers: dict[str, str] = field(default_factory=dict)
        password: str = ""
        url: str = ""
        max_tokens: int = 5
        first_token: float | None = 60.0
        inner: object = field(default="s3cret-6", compare=False)

    path = write(
        "a.toml",
        """
        pin = "s3cret-1"
        pins = ["s3cret-2"]
        headers = {Authorization = "s3cret-3", "X.api-key" = "s3cret-4", Accept = "all"}
        url = "http://${API_TOKEN}@host"
        """,
    )

    profile = load_profile(path, Secrets, environ={"API_TOKEN": "s3cret-5"})

    told = profile.masked()
    for shown in (profile.show(), profile.show(origin=True), repr(profile), str(told)):
        assert "s3cret" not in shown
    assert (told["pin"], told["password"], told["first_token"]) == ("********", "", 60.0)
    lines = profile.show().splitlines()
    assert 'password = ""' in lines
    assert "max_tokens = 5" in lines
    assert "first_token = 60.0" in lines
    assert "inner" not in told
    assert 'headers.Accept = "all"' in lines
    assert profile.value.pin == "s3cret-1"


def test_a_wrong_secret_is_not_shown_by_the_error(write):
    path = write("a.toml", "[model]\nname = 'm'\napi_key = 12345\n")

    assert problems(path, Settings) == (
        "a.toml: 'model.api_key' is ******** where str or nothing is expected.",
    )


def test_every_kind_of_value_can_be_shown(write):
    path = write(
        "a.toml", "kinds = [2, 1]\nmodels = [{name = 'a'}]\nextra = {a = {b = 1}}\nnames = []\n"
    )

    lines = load_profile(path, Everything).show().splitlines()

    assert "kinds = [1, 2]" in lines
    assert 'models.0.name = "a"' in lines
    assert "extra.a.b = 1" in lines
    assert "names = []" in lines
    assert 'share = {"kind": "constant", "value": 1.0}' in lines
    assert 'mode = "fast"' in lines
    assert 'path = "x"' in lines


def test_a_profile_cannot_be_changed(write):
    profile = load_profile(write("a.toml", "[model]\nname = 'm'\n"), Settings)

    with pytest.raises(AttributeError):
        profile.value = None
    with pytest.raises(TypeError):
        profile.origins["x"] = Origin("default")


@pytest.mark.parametrize("name", ["deep.toml", "deep.yaml"])
def test_a_file_nested_without_end_is_refused(write, name):
    deep = "[" * 5_000 + "]" * 5_000
    text = f"n = {deep}" if name == "deep.toml" else f"n: {deep}"

    # how deep Python itself can read depends on its recursion limit, which other tests may raise
    with pytest.raises(ProfileError, match="is nested too deep"):
        load_profile(write(name, text), Settings)


def test_what_is_no_path_or_environment_is_refused(write):
    path = write("a.toml", "[model]\nname = 'm'\n")

    with pytest.raises(ConfigurationError, match="A profile is read from 5"):
        load_profile(5, Settings)
    for environ in (5, {"KEY": 5}, {5: "x"}):
        with pytest.raises(ConfigurationError, match="Give a mapping from names to texts"):
            load_profile(path, Settings, environ=environ)
