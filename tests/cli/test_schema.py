"""`atlas schema`: the contract of all messages from the command line."""

import json
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a package with one message in it; the working directory is beside it."""
    package = tmp_path / "shop_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    module = package / "happenings.py"
    module.write_text(
        "from atlas.core.messages import Event, message\n\n\n"
        '@message("shop_of_test.sold")\n'
        'class Sold(Event):\n    """Something was sold."""\n\n    what: str\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.startswith("shop_of_test")]:
        del sys.modules[name]


def test_the_published_contract_and_its_page_agree_with_the_code(atlas, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)

    assert atlas("schema", "export", "--check").code == 0
    assert atlas("schema", "docs", "--check").code == 0


def test_list_names_every_message_of_atlas(atlas) -> None:
    told = json.loads(atlas("schema", "list", "--json").out)
    published = json.loads((ROOT / "schemas" / "index.json").read_text())["messages"]

    assert [each["name"] for each in told] == [each["name"] for each in published]
    assert "A piece of the answer's text" in atlas("schema", "list").out


def test_show_tells_fields_values_and_a_sample(atlas) -> None:
    ran = atlas("schema", "show", "stream.completed")

    assert ran.code == 0
    assert ran.out.startswith("## stream.completed\n")
    assert "| `completion` | `Completion` |" in ran.out
    assert "## timing" in ran.out  # a value that the message holds


def test_show_as_json_is_a_schema_with_samples_that_keep_it(atlas) -> None:
    told = json.loads(atlas("schema", "show", "stream.token", "--version", "1", "--json").out)
    judge = Draft202012Validator(told["schema"])

    assert told["version"] == 1
    assert all(map(judge.is_valid, told["samples"]["valid"]))
    assert not any(judge.is_valid(each["fields"]) for each in told["samples"]["invalid"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stream.tokn"], "the nearest is 'stream.token'"),
        (["stream.token", "--version", "9"], "9"),
        (["stream.token", "--package", "no_such_package"], "no package 'no_such_package'"),
    ],
)
def test_a_message_that_is_not_there_is_told_in_one_sentence(atlas, arguments, says) -> None:
    ran = atlas("schema", "show", *arguments)

    assert ran.code == 1
    assert says in ran.err


def test_a_package_of_ones_own_is_exported_checked_and_documented(atlas, shop) -> None:
    own = ("--package", "shop_of_test")
    missing = atlas("schema", "export", "--check", *own)
    written = json.loads(atlas("schema", "export", "--json", *own).out)
    atlas("schema", "docs", "messages.md", *own)

    assert missing.code == 1
    assert "shop_of_test.sold/1.json is missing" in missing.out
    assert written["changed"] == [
        "shop_of_test.sold/1.json",
        "shop_of_test.sold/1.samples.json",
        "index.json",
    ]
    assert atlas("schema", "export", "--check", *own).out == "schemas agrees with the code.\n"
    assert "Something was sold." in Path("messages.md").read_text()
    assert atlas("schema", "docs", "messages.md", "--check", *own).code == 0


def test_drift_ends_with_1_and_a_list_of_differences(atlas, shop) -> None:
    own = ("--package", "shop_of_test")
    atlas("schema", "export", *own)
    atlas("schema", "docs", "messages.md", *own)
    Path("schemas/shop_of_test.sold/1.json").write_text("{}")
    Path("messages.md").write_text("# Nothing")
    ran = atlas("schema", "export", "--check", "--json", *own)
    page = atlas("schema", "docs", "messages.md", "--check", *own)

    assert ran.code == page.code == 1
    assert json.loads(ran.out) == {
        "path": "schemas",
        "differences": ["shop_of_test.sold/1.json differs from the code: run the export."],
    }
    assert page.out == "messages.md differs from the code: write it anew.\n"
