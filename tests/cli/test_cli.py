"""The ``atlas`` command, as its users call it."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.cli.__main__ import COMMANDS
from atlas.core.schema import decode
from atlas.providers.messages import StreamCompleted, StreamStarted, StreamToken

from support.ollama_server import Model, OllamaServer

SETTINGS = ("_API_KEY", "OLLAMA_", "ATLAS_")


# -- chat -----------------------------------------------------------------------------------------


def test_chat_prints_the_answer_and_nothing_else(atlas) -> None:
    ran = atlas("chat", "-p", "scripted", "Hello", "there")

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("This is the scripted provider")
    assert ran.out.endswith("\n")


def test_chat_answers_with_the_local_model_by_default(atlas) -> None:
    ran = atlas("chat", "--verbose", "--max-tokens", "4", "Say hi.")

    assert ran.code == 0
    assert ran.out.strip()
    assert ran.err.startswith("local · smollm2-135m-instruct (no key is set")
    assert "length · 4 tokens · first after" in ran.err


def test_chat_reads_the_question_from_standard_input(atlas, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello?\n"))
    ran = atlas("chat", "-p", "scripted", "--json")

    assert ran.code == 0
    assert json.loads(ran.out.splitlines()[0])["fields"]["prompt"] == "Hello?"


def test_chat_as_json_is_the_stream_of_events(atlas) -> None:
    ran = atlas("chat", "-p", "scripted", "--json", "Hello")
    events = [decode(line.encode()) for line in ran.out.splitlines()]

    assert isinstance(events[0], StreamStarted)
    assert isinstance(events[-1], StreamCompleted)
    tokens = [event for event in events if isinstance(event, StreamToken)]
    assert "".join(token.text for token in tokens) == events[-1].completion.text
    assert {event.meta.causation for event in events[1:]} == {events[0].meta.id}


def test_the_public_view_hides_what_is_said(atlas) -> None:
    ran = atlas("chat", "-p", "scripted", "--json", "--view", "public", "My secret")
    events = [json.loads(line) for line in ran.out.splitlines()]

    assert (events[0]["name"], events[-1]["name"]) == ("stream.started", "stream.completed")
    assert events[0]["fields"]["prompt"] == events[1]["fields"]["text"] == "[redacted]"
    assert "secret" not in ran.out
    assert "fixed words" not in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-p", "nope", "hi"], 1, "No provider is registered as 'nope'"),
        (["-p", "openai", "hi"], 1, "OPENAI_API_KEY"),
        (["-p", "anthropic", "hi"], 1, "ANTHROPIC_API_KEY"),
        (["-p", "local", "-m", "no.gguf", "hi"], 1, "There is no model file 'no.gguf'"),
        (["-p", "local", "-m", __file__, "hi"], 1, "not a GGUF file"),
        (["--max-tokens", "0", "hi"], 2, "--max-tokens"),
        (["--temperature", "9", "hi"], 2, "--temperature"),
        (["-p", "scripted", " "], 2, "There is no question"),
        (["--nonsense"], 2, "--nonsense"),
        (["--view", "public", "hi"], 2, "add --json"),
        (["--json", "--view", "pubic", "hi"], 2, "'pubic' is not"),
    ],
)
def test_what_is_wrong_is_told_without_a_traceback(atlas, arguments, code, says) -> None:
    ran = atlas("chat", *arguments)

    assert ran.code == code
    assert says in ran.err
    assert "Traceback" not in ran.err


def test_an_unreachable_server_is_told_in_one_sentence(atlas, monkeypatch, unused_port) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-value")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{unused_port}/v1")
    ran = atlas("chat", "-p", "openai", "-m", "m", "hi")

    assert ran.code == 1
    assert "refused the connection" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert "sk-secret" not in ran.err


def test_errors_can_be_read_by_programs(atlas) -> None:
    ran = atlas("chat", "--json", "-p", "nope", "hi")
    error = json.loads(ran.out)["error"]

    assert ran.code == 1
    assert error["type"] == "UnknownProviderError"
    assert error["name"] == "nope"


def test_chat_in_a_terminal_is_a_conversation_that_ctrl_c_and_ctrl_d_steer(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "chat", "--max-tokens", "400", "--temperature", "0")
    terminal.expect("› ")
    terminal.type("Tell me a very long story.\n")
    terminal.expect("story.")
    terminal.expect_more(40)
    terminal.interrupt()
    terminal.expect("cancelled ·")
    terminal.type("\x04")

    assert terminal.wait() == 0
    assert "Traceback" not in terminal.seen


def test_a_conversation_needs_no_character_that_the_terminal_lacks(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "chat", "-p", "scripted", PYTHONIOENCODING="ascii")
    terminal.expect("> ")
    terminal.type("\x04")

    assert terminal.wait() == 0
    assert "Traceback" not in terminal.seen


def test_an_error_does_not_end_a_conversation(tmp_path: Path, unused_port: int) -> None:
    address = f"http://127.0.0.1:{unused_port}/v1"
    terminal = Terminal(
        tmp_path,
        "chat",
        "-p",
        "openai",
        "-m",
        "m",
        OPENAI_API_KEY="k",
        OPENAI_BASE_URL=address,
    )
    terminal.expect("› ")
    terminal.type("Hello?\n")
    terminal.expect("refused the connection")
    terminal.type("\x04")

    assert terminal.wait() == 0


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, home: Path, *arguments: str, **environment: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not any(part in k for part in SETTINGS)}
        self.seen = ""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(home)
            # Where the tests themselves run in the background, interrupts are ignored, and so
            # they would be here.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            command = [sys.executable, "-m", "atlas.cli", *arguments]
            os.execve(sys.executable, command, kept | {"TERM": "dumb"} | environment)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        os.kill(self._pid, signal.SIGINT)

    def expect(self, text: str) -> None:
        start = len(self.seen)
        while text not in self.seen[start:]:
            self.seen += os.read(self._fd, 4096).decode(errors="replace")

    def expect_more(self, characters: int) -> None:
        start = len(self.seen)
        while len(self.seen) < start + characters:
            self.seen += os.read(self._fd, 4096).decode(errors="replace")

    def wait(self) -> int:
        try:
            while chunk := os.read(self._fd, 4096):
                self.seen += chunk.decode(errors="replace")
        except OSError:
            pass  # how Linux says that the other side of a terminal is closed
        _, status = os.waitpid(self._pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    command = f"{sys.executable} -m atlas.cli chat -p scripted --json hi | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True
    )

    assert json.loads(done.stdout)["name"] == "stream.started"
    assert done.stderr == ""


def test_a_closed_standard_output_is_no_traceback() -> None:
    command = f"{sys.executable} -m atlas.cli chat -p scripted hi >&-"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, timeout=60, check=True)

    assert done.stderr == b""


# -- providers ------------------------------------------------------------------------------------


def test_providers_shows_what_is_ready_and_what_stands_in_the_way(
    atlas, monkeypatch, unused_port
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{unused_port}")
    ran = atlas("providers")

    assert ran.code == 0
    assert "● local       ready           smollm2-135m-instruct  ← default" in ran.out
    assert "○ anthropic   not configured" in ran.out
    assert "set ANTHROPIC_API_KEY" in ran.out
    assert "○ ollama      does not answer" in ran.out
    assert "Without --provider, local is used: no key is set" in ran.out


@pytest.mark.parametrize("address", ["foo bar", "http://[::1", "host:99999999"])
def test_an_ollama_address_that_is_none_is_one_sentence(atlas, monkeypatch, address) -> None:
    monkeypatch.setenv("OLLAMA_HOST", address)
    ran = atlas("providers")

    assert ran.code == 1
    assert ran.err.startswith(f"Error: OLLAMA_HOST is {address!r}, which is no address")


def test_a_running_ollama_is_found_and_preferred_to_the_local_model(atlas, monkeypatch) -> None:
    with OllamaServer(Model("tiny")) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        ran = atlas("providers", "--json")
        answered = atlas("chat", "--verbose", "hi")

    told = json.loads(ran.out)
    status = {each["name"]: each for each in told["providers"]}["ollama"]
    assert told["default"]["provider"] == "ollama"
    assert told["default"]["model"] == status["models"][0]
    assert status["reachable"]
    assert answered.code == 0
    assert answered.err.startswith("ollama · ")


@pytest.mark.parametrize(
    ("settings", "provider", "model"),
    [
        ({"ATLAS_PROVIDER": "scripted", "ATLAS_MODEL": "m"}, "scripted", "m"),
        ({"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k"}, "anthropic", ""),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, "openai", ""),
    ],
)
def test_the_environment_decides_who_answers(atlas, monkeypatch, settings, provider, model) -> None:
    for name, setting in {"ANTHROPIC_BASE_URL": "http://127.0.0.1:1", **settings}.items():
        monkeypatch.setenv(name, setting)
    told = json.loads(atlas("providers", "--json").out)

    assert (told["default"]["provider"], told["default"]["model"]) == (provider, model)


# -- the command itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(atlas, command: str) -> None:
    ran = atlas(command, "--help")

    assert ran.code == 0
    assert "--json" in ran.out
    assert command in atlas("--help").out


@pytest.mark.parametrize("group", ["profile", "schema"])
def test_every_command_of_a_group_takes_json(atlas, group: str) -> None:
    listed = atlas(group, "--help").out.partition("Commands:\n")[2]

    assert listed
    for line in listed.splitlines():
        assert "--json" in atlas(group, line.split()[0], "--help").out


def test_help_imports_no_application() -> None:
    statement = (
        "import sys, atlas.cli.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('asyncio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, check=False)

    assert done.returncode == 0


def test_the_package_itself_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "atlas", "--version"], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("atlas, version ")


def test_the_version_is_told(atlas) -> None:
    assert atlas("--version").out.startswith("atlas, version ")
