"""`atlas schema`: the contract of all messages from the command line."""

import importlib
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
    # a change within the second that keeps the size would go unnoticed in compiled code
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
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


OWN = ("--package", "shop_of_test")


def change(shop: Path, old: str, new: str) -> None:
    """Change the message of the shop, as if edited between two runs of the command."""
    module = shop / "happenings.py"
    text = module.read_text()
    assert old in text
    module.write_text(text.replace(old, new))
    for name in [name for name in sys.modules if name.startswith("shop_of_test")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_release_marks_what_is_in_the_folder_once(atlas, shop) -> None:
    atlas("schema", "export", *OWN)
    first = atlas("schema", "release", "1.0", *OWN)
    again = json.loads(atlas("schema", "release", "1.1", "--json", *OWN).out)
    (entry,) = json.loads(Path("schemas/index.json").read_text())["messages"]

    assert (first.code, first.out) == (0, "shop_of_test.sold 1\n")
    assert again == {"path": "schemas", "label": "1.1", "released": []}
    assert entry["released"] == "1.0"
    assert atlas("schema", "export", "--check", *OWN).code == 0


def test_release_refuses_a_folder_that_differs_from_the_code(atlas, shop) -> None:
    ran = atlas("schema", "release", "1.0", *OWN)

    assert ran.code == 1
    assert "shop_of_test.sold/1.json is missing" in ran.err
    assert "`atlas schema export`" in ran.err
    assert not Path("schemas").exists()


def test_release_refuses_a_breaking_change_and_names_field_and_mend(atlas, shop) -> None:
    atlas("schema", "export", *OWN)
    atlas("schema", "release", "1.0", *OWN)
    before = Path("schemas/index.json").read_text()
    change(shop, "what: str", "what: int")
    refused = atlas("schema", "release", "2.0", *OWN)

    assert refused.code == 1
    assert "'2.0' would break" in refused.err
    assert "shop_of_test.sold version 1 (released in 1.0): what no longer takes string" in (
        refused.err
    )
    assert "Raise the version of the message, and register an upcaster" in refused.err
    assert Path("schemas/index.json").read_text() == before


def test_check_names_what_a_change_breaks_and_what_to_do(atlas, shop) -> None:
    atlas("schema", "export", *OWN)
    atlas("schema", "release", "1.0", *OWN)
    kept = atlas("schema", "check", *OWN)
    change(shop, "what: str", "who: str")
    broken = atlas("schema", "check", *OWN)
    told = json.loads(atlas("schema", "check", "--json", *OWN).out)

    assert (kept.code, kept.out) == (0, "schemas keeps every released version.\n")
    assert broken.code == 1
    assert broken.out.splitlines() == [
        "shop_of_test.sold version 1 (released in 1.0): who is now required",
        "shop_of_test.sold version 1 (released in 1.0): what is gone",
        "Raise the version of the message, and register an upcaster from the old one.",
    ]
    assert told["differences"] == broken.out.splitlines()[:2]


def test_check_allows_what_old_payloads_survive_and_what_is_not_released(atlas, shop) -> None:
    atlas("schema", "export", *OWN)
    change(shop, "what: str", "what: int")
    unreleased = atlas("schema", "check", *OWN)
    atlas("schema", "export", *OWN)
    atlas("schema", "release", "1.0", *OWN)
    change(shop, "what: int", "what: int\n    note: str | None = None")
    grown = atlas("schema", "check", *OWN)

    assert unreleased.code == grown.code == 0
    assert atlas("schema", "export", "--check", *OWN).code == 1  # there is something to write
