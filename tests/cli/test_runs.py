"""The commands about runs: what is in a log, at any moment, and what is asked for wrongly."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atlas import Atlas
from atlas.core.programs import load_program


async def asks_nothing(app: Atlas) -> str:
    """A program that never asks what to say."""
    return (await app.chat("Hello")).text


@pytest.fixture
def talk(atlas, tmp_path: Path) -> str:
    db = str(tmp_path / "talk.db")
    assert atlas("chat", "--provider", "scripted", "--db", db, "Hello 😀").code == 0
    return db


def the_run(atlas, db: str) -> str:
    (run,) = json.loads(atlas("runs", "--db", db, "--json").out)
    return str(run["run"])


@pytest.mark.parametrize(
    "command", ["runs", "show", "verify", "replay", "fork x --at 1", "resume x"]
)
def test_a_log_that_is_not_there_is_not_made(command: str, atlas, tmp_path: Path) -> None:
    db = tmp_path / "typo.db"
    ran = atlas(*command.split(), "--db", str(db))
    assert ran.code == 1
    assert "There is no log at" in ran.err
    assert not db.exists()


@pytest.mark.parametrize(
    "moment", ["", "now", "+nan", "+inf", "+1e300", "+-1", "2026", "0001-01-01T00:00:00"]
)
def test_a_time_that_is_none_is_told_in_a_sentence(moment: str, atlas, talk: str) -> None:
    ran = atlas("show", "--db", talk, f"--time={moment}")
    assert (ran.code, ran.out) in [(2, ""), (0, ran.out)]
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", ["show", "replay"])
def test_an_empty_name_is_not_taken_for_the_latest_run(command: str, atlas, talk: str) -> None:
    told = atlas(command, "", "--db", talk)

    assert (told.code, "There is no run ''" in told.err) == (1, True)


@pytest.fixture
def without_rights() -> list[str]:
    """Return what to begin a command with, so that it may not write where rights forbid it."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv to change that")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


def test_a_log_where_nothing_may_be_written_is_read_and_replayed(
    without_rights: list[str], talk: str, tmp_path: Path
) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    db = shutil.copy(talk, folder / "talk.db")
    folder.chmod(0o555)
    for command in ("runs", "show", "verify", "replay", "repair"):
        ran = subprocess.run(
            [*without_rights, sys.executable, "-m", "atlas.cli", command, "--db", db],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    folder.chmod(0o755)

    assert [each.name for each in folder.iterdir()] == ["talk.db"]


def test_events_counted_from_the_end_are_named_by_their_number(atlas, talk: str) -> None:
    last = json.loads(atlas("show", "--db", talk, "--at", "-1", "--json").out)
    assert last == json.loads(atlas("show", "--db", talk, "--time", "9999-01-01", "--json").out)
    assert last["at"] == json.loads(atlas("runs", "--db", talk, "--json").out)[0]["events"]


def test_a_prompt_that_a_forked_program_does_not_ask_for_is_an_error(atlas, tmp_path: Path) -> None:
    db = str(tmp_path / "runs.db")

    async def record() -> str:
        async with Atlas(db, provider="scripted") as app:
            run, _ = await app.record(asks_nothing)
        return run.id

    fork = ("fork", asyncio.run(record()), "--at", "0", "-p", "scripted", "--db", db)
    told = atlas(*fork, "--prompt", "Bye", "--prompt", "Now")
    as_json = atlas(*fork, "--prompt", "Bye", "--json")
    without = atlas(*fork)

    assert (told.code, as_json.code, without.code) == (1, 1, 0)
    assert "Error: The program asked no question for --prompt 'Bye'." in told.err
    assert "--prompt 'Now'" in told.err
    assert json.loads(as_json.out)["unasked"] == ["Bye"]
    assert len(json.loads(atlas("runs", "--db", db, "--json").out)) >= 4  # all are kept


def test_a_run_is_replayed_and_forked_by_its_id(atlas, talk: str) -> None:
    run = the_run(atlas, talk)
    assert json.loads(atlas("replay", "--db", talk, "--json").out)["run"].startswith(f"{run}~")
    forked = atlas(
        "fork", run, "--at", "0", "-p", "scripted", "--prompt", "Bye", "--db", talk, "--json"
    )
    fork = json.loads(forked.out)["run"]
    assert atlas("replay", fork, "--db", talk).code == 0
    compared = atlas("diff", run, fork, "--db", talk, "--json")
    assert compared.code == 1
    assert not json.loads(compared.out)["same"]


def the_runs(atlas, db: str) -> list[str]:
    return [run["run"] for run in json.loads(atlas("runs", "--db", db, "--json").out)]


def test_two_recordings_of_the_same_are_the_same_though_ids_and_moments_differ(
    atlas, talk: str
) -> None:
    assert atlas("chat", "--provider", "scripted", "--db", talk, "Hello 😀").code == 0
    ran = atlas("diff", *the_runs(atlas, talk), "--db", talk)

    assert ran.code == 0, ran.out
    assert "did the same" in ran.out


def test_what_differs_is_shown_where_it_does_also_far_into_an_event(atlas, talk: str) -> None:
    for end in ("left", "right"):
        question = f"{'word ' * 60}to the {end}"
        assert atlas("chat", "--provider", "scripted", "--db", talk, question).code == 0
    ran = atlas("diff", *the_runs(atlas, talk)[1:], "--db", talk)

    shown = next(line for line in ran.out.splitlines() if "…" in line)
    assert ran.code == 1
    assert "to the left" in shown
    assert "to the right" in shown


@pytest.mark.parametrize("last", ["raise SystemExit(3)", "1 / 0", "import asyncio; x = ("])
def test_a_program_that_fails_when_it_is_loaded_is_told_in_a_sentence(
    last: str, atlas, talk: str, tmp_path: Path
) -> None:
    script = tmp_path / "failing_when_loaded.py"
    script.write_text(f"async def shop(app): ...\n{last}\n")
    ran = atlas("replay", "--db", talk, "--program", f"{script}:shop")

    assert ran.code == 1
    assert "cannot be loaded" in ran.err
    assert "__name__ == '__main__'" in ran.err
    assert "failing_when_loaded" not in sys.modules


PROGRAM = """
async def shop(app, item):
    await app.chat(f"Sell me a {item}.")
    raise LookupError(f"There is no {item}.")
"""


def test_a_run_that_failed_is_replayed_to_the_same_failure(atlas, tmp_path: Path) -> None:
    script, db = tmp_path / "shop.py", str(tmp_path / "shop.db")
    script.write_text(PROGRAM)
    run, error = asyncio.run(failing(f"{script}:shop", db))
    assert error == "There is no kettle."
    told = atlas("replay", run, "--db", db)
    assert (told.code, "it ends with LookupError: There is no kettle." in told.err) == (0, True)
    assert json.loads(atlas("replay", "--db", db, "--json").out)["error"] == f"LookupError: {error}"
    script.write_text(PROGRAM.replace("There is", "We have"))
    with pytest.raises(LookupError, match="We have no kettle"):
        asyncio.run(replayed(f"{script}:shop", run, db))


async def failing(program: str, db: str) -> tuple[str, str]:
    function = load_program(program)
    async with Atlas(db, provider="scripted") as app:
        run = app.recording("shop", program=program, arguments={"item": "kettle"})
        with pytest.raises(LookupError) as raised:
            async with run:
                await function(app, "kettle")
        return run.id, str(raised.value)


async def replayed(program: str, run: str, db: str) -> None:
    async with Atlas(db, provider="scripted") as app:
        await app.replay(run, program=program)


@pytest.mark.parametrize("moment", ["while it is made", "before anybody waits for it"])
def test_an_interrupt_stops_the_answer_and_not_the_conversation(
    moment: str, tmp_path: Path
) -> None:
    is_early = moment.startswith("before")
    program = CHAT.replace("# first", INTERRUPT) if is_early else CHAT
    command = [sys.executable, "-c", program, str(tmp_path / "talk.db")]
    main, other = pty.openpty()
    with subprocess.Popen(
        command, stdin=other, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as chat:
        os.close(other)
        assert chat.stdout is not None

        def until(sign: str) -> None:
            said = ""
            while sign not in said:
                piece = os.read(chat.stdout.fileno(), 1000).decode()  # type: ignore[union-attr]
                assert piece, said
                said += piece

        until("› ")
        os.write(main, b"Begin.\n")
        if not is_early:
            until("endless")
            chat.send_signal(signal.SIGINT)
        until("› ")  # the conversation goes on
        os.write(main, b"\n")
        until("recorded as chat-")
        assert chat.wait(30) == 0
    os.close(main)


CHAT = """
import asyncio, sys
from atlas.cli import chat, conversation
from atlas.providers.scripted import ScriptedProvider
from atlas.app import Atlas
app = Atlas(sys.argv[1], provider=ScriptedProvider([["endless", asyncio.Event()]]))
# first
asked = conversation.Questions(None, read=chat.read_questions, echo=False)
conversation.hold(lambda: chat.record(app, {}, verbose=False), asked)
"""


INTERRUPT = """
import os, signal
app.bus.subscribe("stream.started", lambda _: os.kill(os.getpid(), signal.SIGINT))
"""


def test_a_run_is_exported_and_imported_and_trouble_is_told(
    atlas, talk: str, tmp_path: Path
) -> None:
    run, file, other = the_run(atlas, talk), tmp_path / "talk.run", str(tmp_path / "other.db")
    assert atlas("export", run, str(file), "--db", talk).code == 0
    assert atlas("import", str(file), "--db", other).code == 0
    assert atlas("replay", run, "--db", other).code == 0
    twice = atlas("import", str(file), "--db", other)
    assert (twice.code, f"has a run {run} already" in twice.err) == (1, True)
    nowhere = atlas("export", run, str(tmp_path / "no" / "talk.run"), "--db", talk)
    assert (nowhere.code, "No such file or directory" in nowhere.err) == (1, True)
    for header in ('{"atlas":"run","format":1}', '{"atlas":"run","format":1,"run":5,"sha256":""}'):
        file.write_text(header + "\n")
        told = atlas("import", str(file), "--db", other)
        assert (told.code, "no texts `run` and `sha256`" in told.err) == (1, True)


def test_a_run_goes_from_log_to_log_through_a_pipe_whatever_the_terminal_speaks(
    atlas, talk: str, tmp_path: Path
) -> None:
    run, file, other = the_run(atlas, talk), tmp_path / "talk.run", str(tmp_path / "other.db")
    atlas("export", run, str(file), "--db", talk)
    command = [sys.executable, "-m", "atlas.cli"]
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    exported = subprocess.run(
        [*command, "export", run, "-", "--db", talk], capture_output=True, check=True, env=latin
    )
    imported = subprocess.run(
        [*command, "import", "-", "--db", other], input=exported.stdout, check=False, env=latin
    )

    assert exported.stdout == file.read_bytes()
    assert exported.stderr.endswith(f" events of {run}.\n".encode())
    assert imported.returncode == 0
    assert atlas("replay", run, "--db", other).code == 0


def test_what_cannot_be_imported_makes_no_log(atlas, tmp_path: Path) -> None:
    file, db = tmp_path / "notes.txt", tmp_path / "new.db"
    file.write_text("Buy milk.\n")
    told = atlas("import", str(file), "--db", str(db))

    assert (told.code, "is no run: its first line is 'Buy milk" in told.err) == (1, True)
    assert not db.exists()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_what_a_terminal_cannot_show_is_escaped(encoding: str, tmp_path: Path) -> None:
    db = str(tmp_path / "odd.db")
    odd = "😀 \ud800 \x1b[31mred \u202etxt \u00e4"
    asyncio.run(asked(odd, db))
    for command in (["show"], ["show", "--at", "-1"], ["show", "--json", "--at", "-1"]):
        shown = subprocess.run(
            [sys.executable, "-m", "atlas.cli", *command, "--db", db],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert (shown.returncode, shown.stderr) == (0, b"")
        assert b"\x1b" not in shown.stdout
        text = shown.stdout.decode(encoding)
        if "--at" in command:
            state = json.loads(text[text.index("{") :])
            (reply,) = state.get("state", state)["replies"].values()
            assert reply["prompt"] == odd
        else:
            assert "\\x1b[31mred" in text


async def asked(prompt: str, db: str) -> None:
    async with Atlas(db, provider="scripted") as app, app.recording("odd"):
        await app.chat(prompt)
