"""Secrets never reach the log, wherever they are, and however they are cut."""

from __future__ import annotations

import asyncio
import json
import tempfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atlas import Atlas, Event, ReplayDiverged, effect, message
from atlas.core.effects import REDACTED
from atlas.core.log.controller import LOGS
from atlas.core.message_pages import PAGE
from atlas.core.page_words import WORDS
from atlas.errors import ConfigurationError, ConnectionFailedError
from atlas.providers.base import (
    Capabilities,
    ChatRequest,
    Delta,
    Finished,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)
from atlas.providers.profile import ChatProfile

KEY = "sk-live-0123456789abcdef"


@message("secrets.said")
class Said(Event):
    text: str


class Cutter:
    """A provider that says the key in its thoughts, its text and two tool calls, cut at places."""

    name = "cutter"
    capabilities = Capabilities()

    def __init__(self, places: list[int], *, fails: bool = False) -> None:
        self.places = places
        self.fails = fails

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        for piece in self.cut(f"I think of {KEY}."):
            yield ThinkingDelta(piece)
        for piece in self.cut(f"The key is {KEY}, keep it. It begins sk-li"):
            yield TextDelta(piece)
        if self.fails:
            raise ConnectionFailedError("The line is dead.", provider=self.name)
        for piece in self.cut(f'{{"where":"at {KEY}"}}'):
            yield ToolCallDelta(0, "c0", "look", piece)
            yield ToolCallDelta(1, "c1", "look", piece)
        yield Finished("tool_calls")

    def cut(self, text: str) -> list[str]:
        ends = sorted({place % len(text) for place in self.places} | {len(text)})
        return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    async def aclose(self) -> None:
        pass


async def everywhere(app: Atlas, provider: Cutter, key: str) -> str:
    """Ask for, get, publish and pass on the key in every way; return all that was seen of it."""

    @effect("words", pure=True)
    async def words() -> AsyncIterator[str]:
        for piece in provider.cut(f"a key: {key}!"):
            yield piece

    @effect("progress", pure=True)
    async def progress() -> AsyncIterator[dict[str, list[str]]]:
        for done, piece in enumerate(provider.cut(f"{key}\n{key}")):
            yield {"done": [str(done)], "output": [piece]}

    @effect("login", pure=True)
    async def login(token: str) -> list[str]:
        return ["welcome", f"Bearer {token}"]

    reply = app.chat(f"Use {key}.", provider=provider)
    tokens = [token async for token in reply]
    heard = [piece async for piece in words()]
    lines = [piece async for piece in progress()]
    for piece in heard:
        app.bus.publish(Said(piece))
    app.bus.publish(Said(f"whole: {key}"))
    calls = [call.arguments for call in reply.tool_calls]
    seen = ["".join(tokens), reply.thinking, calls, "".join(heard), await login(key)]
    return json.dumps([seen, "".join(text for line in lines for text in line["output"])])


def written_in(log: str) -> str:
    """Return all that is in a log: its pages as they are inside, and as messages."""
    engine = LOGS.open_log(log)
    try:
        pages = [record for record in engine.read_all() if record.name == PAGE]
    finally:
        LOGS.close_log(engine)
    assert pages
    return "\n".join(_inside(record.payload) for record in pages)


def _inside(page: bytes) -> str:
    return (page[1:] if page[:1] == b"j" else _expanded(page[1:])).decode("utf-8")


def _expanded(data: bytes) -> bytes:
    return zlib.decompressobj(-15, zdict=WORDS).decompress(data)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 80), max_size=12))
@example(list(range(80)))
def test_a_secret_that_is_cut_anywhere_is_nowhere_in_the_log(places: list[int]) -> None:
    async def main(folder: Path) -> None:
        db = folder / "runs.db"
        provider = Cutter(places)
        async with Atlas(str(db), provider=provider, secrets=[KEY]) as app:
            async with app.recording("cut") as run:
                lived = await everywhere(app, provider, KEY)
            await app.chat(f"outside of runs, {KEY}")
            for piece in provider.cut(f"a key: {KEY}!"):
                app.bus.publish(Said(piece))
            async with app.replaying(run.id) as again:
                replayed = await everywhere(app, provider, KEY)
            lines = app.runs[run.id].lines
            while_open = b"".join(path.read_bytes() for path in folder.iterdir())

        assert KEY not in lived
        assert "The key is" in lived
        assert lived.count(REDACTED) == 8
        assert replayed == lived
        assert again.lines == lines
        assert KEY.encode() not in while_open + db.read_bytes()
        assert KEY not in written_in(str(db))
        assert REDACTED in written_in(str(db))

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))


async def test_what_is_no_known_secret_is_found_in_the_log_as_it_was_cut(tmp_path: Path) -> None:
    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:
        for piece in KEY:
            app.bus.publish(Said(piece))

    assert KEY in written_in(str(tmp_path / "runs.db"))


async def test_each_piece_of_a_stream_is_still_one() -> None:
    provider = Cutter(list(range(80)))
    async with Atlas(provider=provider, secrets=[KEY]) as app:
        async with app.recording("one by one") as run:
            await everywhere(app, provider, KEY)
        chunks = [
            event for event in app.runs[run.id].events if event.meta.name == "effect.delivered"
        ]
        # the last piece is one with the end, if both came at once
        pieces = [json.loads(each.value) for each in chunks if each.effect == "0:1" and each.value]

    assert "".join(pieces) == f"a key: {REDACTED}!"
    assert len(pieces) == len(provider.cut(f"a key: {KEY}!"))


async def test_what_had_arrived_when_an_answer_failed_is_told_without_the_secret() -> None:
    provider = Cutter([3, 14, 17, 40], fails=True)
    async with Atlas(provider=provider, secrets=[KEY]) as app:
        reply = app.chat("?")
        with pytest.raises(ConnectionFailedError):
            await reply

    assert reply.text == f"The key is {REDACTED}, keep it. It begins sk-li"


async def test_keys_of_the_profile_the_fallback_and_the_environment_are_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOMEBODYS_API_KEY", "environment-0123456789")
    monkeypatch.setenv("DB_PASSWORD", "postgres")
    monkeypatch.setenv("SSH_KEY", "/home/somebody/.ssh/key")
    profile = ChatProfile(provider="scripted", api_key="profile-key")
    fallback = {"openai": {"api_key": "fallback-key", "base_url": "http://localhost"}}
    async with Atlas(profile=profile, fallback=fallback) as app:
        app.secrets.add("added later")
        text = (
            "environment-0123456789 profile-key fallback-key added later "
            "postgres http://localhost /home/somebody/.ssh/key"
        )

        assert app.secrets.redacted(text) == (
            f"{REDACTED} {REDACTED} {REDACTED} {REDACTED} "
            "postgres http://localhost /home/somebody/.ssh/key"
        )


async def test_arguments_of_a_program_are_replayed_without_the_secret(tmp_path: Path) -> None:
    async with Atlas(str(tmp_path / "runs.db"), provider="scripted", secrets=[KEY]) as app:
        run, lived = await app.record(asks_with, key=KEY)
        _, replayed = await app.replay(run.id)

    assert lived == replayed == f"{REDACTED} is fine"
    assert KEY not in written_in(str(tmp_path / "runs.db"))


async def asks_with(app: Atlas, key: str) -> str:
    @effect("checked", pure=True)
    async def checked(key: str) -> str:
        return f"{key} is fine"

    app.bus.publish(Said(f"asked with {key}"))
    return await checked(key)


async def test_a_run_is_replayed_where_its_secrets_are_not_known(tmp_path: Path) -> None:
    db = str(tmp_path / "runs.db")
    async with Atlas(db, provider="scripted", secrets=[KEY]) as app:
        async with app.recording("known") as run:
            app.bus.publish(Said(f"with {KEY}."))
    async with Atlas(db, provider="scripted") as app:
        async with app.replaying(run.id):
            app.bus.publish(Said("with another one."))
        with pytest.raises(ReplayDiverged):
            async with app.replaying(run.id):
                app.bus.publish(Said("without."))


async def test_a_secret_too_short_to_be_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 4 characters"):
        Atlas(secrets=["abc"])
