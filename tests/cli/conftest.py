"""How the tests of the command call it."""

from collections.abc import Callable

import pytest

from atlas.cli.__main__ import main

SETTINGS = ["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OLLAMA_HOST", "ATLAS_PROVIDER", "ATLAS_MODEL"]


class Ran:
    """What became of a call: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def atlas(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Return a function that runs the command with these arguments."""

    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capfd.readouterr()
        return Ran(ended.value.code, out, err)

    return run
