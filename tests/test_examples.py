"""Every example runs as its first lines say: no argument, no key, no network, under a minute."""

import asyncio
import contextlib
import importlib.util
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from atlas import Atlas
from atlas.providers.messages import StreamCancelled

from support.providers import GatedProvider, ListProvider

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROGRAMS = sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))


PATIENCE = 240
"""Seconds for an example; the longest asks the local model and its embeddings for a quarter of a minute."""


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not re.search("API_KEY|TOKEN|OLLAMA|ATLAS", k)}
    return kept | {"HOME": str(home)}


def run(program: Path, home: Path, *arguments: str, text: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), *arguments],
        input=text,
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.timeout(PATIENCE + 30)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_an_example_runs_without_arguments(program: Path, tmp_path: Path) -> None:
    code, out, err = run(program, tmp_path)

    assert (code, err) == (0, "")
    assert len(out.splitlines()) > 5


def test_the_web_example_says_in_a_sentence_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'uvicorn'\", name='uvicorn')"
    )
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "03_host_app.py")],
        env=environment(tmp_path) | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr == "This example needs uvicorn: run `pip install fastapi uvicorn`.\n"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_an_example_is_short_and_says_what_it_is(program: Path, tmp_path: Path) -> None:
    code, out, _ = run(program, tmp_path, "--help")
    text = program.read_text(encoding="utf-8")

    assert code == 0
    assert text.startswith('"""')
    assert "usage" in out
    assert len(text.splitlines()) <= 140


# -- 02 -------------------------------------------------------------------------------------------

CHAT = EXAMPLES / "02_streaming_chat.py"


def test_the_chat_streams_answers_of_the_local_model_and_shows_what_its_handlers_saw(
    tmp_path: Path,
) -> None:
    code, out, err = run(CHAT, tmp_path, "--max-tokens", "12", text="Say hello.\nAnd again.\n")

    assert (code, err) == (0, "")
    assert out.count("[started: local, smollm2-135m-instruct]") == 2
    assert len(re.findall(r"tokens so far, the longest '[^']+'; first after \d", out)) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--provider", "nope"], "No provider is registered as 'nope'"),
        (["--provider", "openai"], "OPENAI_API_KEY"),
        (["--provider", "anthropic"], "ANTHROPIC_API_KEY"),
        (["--provider", "local", "--model", "no.gguf"], "'no.gguf'"),
        (["--provider", "local", "--model", __file__], "not a GGUF file"),
        (["--max-tokens", "0"], "max_tokens"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_mend(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    code, _, err = run(CHAT, tmp_path, *arguments)

    assert code != 0
    assert says in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_the_chat_is_a_conversation_in_a_terminal(tmp_path: Path) -> None:
    with in_terminal(CHAT, ["--provider", "scripted"], tmp_path) as (process, master):
        seen = read_until(master, "you ›")
        os.write(master, b"Hello?\n")
        seen += read_until(master, "you ›", after="per second]")
        os.write(master, b"\n")

        assert process.wait(20) == 0
    assert "[started: scripted" in seen


@pytest.mark.parametrize(
    ("example", "arguments", "wait_for", "says"),
    [
        ("02_streaming_chat", ["--provider", "scripted"], "you ›", "atlas chat --db FILE"),
        (
            "08_agent_delegation",
            ["--db", "x.db"],
            "calls",
            "Go on with: --db x.db --resume morning-",
        ),
        (
            "08_agent_delegation",
            ["--db", "x.db"],
            "[Y/n]",
            "Go on with: --db x.db --resume morning-",
        ),
    ],
)
def test_control_c_ends_an_example_in_a_sentence_that_says_how_to_go_on(
    example: str, arguments: list[str], wait_for: str, says: str, tmp_path: Path
) -> None:
    program = EXAMPLES / f"{example}.py"
    with in_terminal(program, arguments, tmp_path) as (process, master):
        seen = read_until(master, wait_for)
        process.send_signal(signal.SIGINT)
        seen += read_until(master, says)

        assert process.wait(20) == 130
    assert "Traceback" not in seen


@contextlib.contextmanager
def in_terminal(
    program: Path, arguments: list[str], home: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run an example in a terminal; give its process, and the other end of the terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(program), *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=home,
        env=environment(home) | {"TERM": "dumb"},
    ) as process:
        os.close(slave)
        yield process, master
    os.close(master)


def read_until(terminal: int, text: str, *, after: str = "") -> str:
    """Read what a program prints until ``text`` shows up, behind ``after``."""
    seen = ""
    while text not in seen.partition(after)[2] if after else text not in seen:
        seen += os.read(terminal, 4096).decode()
    return seen


# -- 03 -------------------------------------------------------------------------------------------


def example_module(name: str) -> object:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Served:
    """The host application of example 03, in a thread and on a port of its own."""

    def __init__(self, atlas: Atlas) -> None:
        web = example_module("03_host_app").make_web(atlas)
        config = uvicorn.Config(web, port=0, log_level="error", timeout_graceful_shutdown=1)
        self._atlas = atlas
        self._server = uvicorn.Server(config)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        startup = self._server.startup

        async def announced(*arguments: object, **options: object) -> None:
            await startup(*arguments, **options)
            self._ready.set()

        self._server.startup = announced
        async with self._atlas:
            await self._server.serve()

    def __enter__(self) -> str:
        self._thread.start()
        assert self._ready.wait(20)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_the_host_application_streams_an_answer_as_server_sent_events() -> None:
    with Served(Atlas(provider=ListProvider([["One\n", "two ", "é"]]))) as url:
        answer = httpx.get(f"{url}/chat", params={"question": "Count?"}, timeout=20)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == (
        'data: "One\\n"\n\ndata: "two "\n\ndata: "\\u00e9"\n\nevent: end\ndata: "stop"\n\n'
    )


def test_a_browser_that_goes_away_cancels_its_answer() -> None:
    cancelled = threading.Event()
    provider = GatedProvider(["One ", "two "], gate_after=1)
    atlas = Atlas(provider=provider)
    atlas.bus.subscribe(StreamCancelled, lambda _: cancelled.set())
    with Served(atlas) as url:
        with httpx.stream("GET", f"{url}/chat", params={"question": "?"}, timeout=20) as answer:
            assert next(answer.iter_lines()) == 'data: "One "'

        assert cancelled.wait(20)
    assert provider.closed == 1


def test_the_bus_can_be_watched_from_a_second_page() -> None:
    with Served(Atlas(provider=ListProvider([["x"]]))) as url, httpx.Client(timeout=20) as client:
        with client.stream("GET", f"{url}/bus") as bus:
            httpx.get(f"{url}/chat", params={"question": "?"}, timeout=20)
            events = (line.split() for line in bus.iter_lines() if line)
            names = [next(events)[2] for _ in range(3)]

    assert names == ["stream.started", "stream.token", "conversation.message_added"]


def test_a_question_that_makes_no_sense_is_a_clear_answer() -> None:
    with Served(Atlas(provider=ListProvider([]))) as url:
        answer = httpx.get(f"{url}/chat", params={"question": " "}, timeout=20)

    assert answer.status_code == 400
    assert "prompt is empty" in answer.json()["message"]


def test_the_page_is_served() -> None:
    with Served(Atlas(provider=ListProvider([]))) as url:
        assert "<h1>Ask the model</h1>" in httpx.get(url, timeout=20).text


def test_the_host_application_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    code, _, err = run(EXAMPLES / "03_host_app.py", tmp_path, "--provider", "nope")

    assert code == 1
    assert err.startswith("Error: No provider is registered as 'nope'")
    assert len(err.splitlines()) == 1
