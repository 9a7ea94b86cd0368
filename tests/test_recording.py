"""Runs of an application: recorded, replayed, forked, resumed, as its users see it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest.mock import ANY

import pytest

from atlas import Atlas, Event, ReplayDiverged, effect, message
from atlas.core.effect_layers import Retry
from atlas.core.effects import Skip, now, uuid
from atlas.core.effects import random as chance
from atlas.core.message_pages import OUTSIDE
from atlas.core.messages import Message
from atlas.core.run_session import RunSession
from atlas.errors import (
    AppNotRunningError,
    ConfigurationError,
    EffectError,
    LogUnavailableError,
    ServerError,
    UndeclaredEffectError,
    UnknownNameError,
    UnknownRunError,
    UnknownVersionError,
)
from atlas.providers.messages import StreamRetried, StreamStarted, StreamToken
from atlas.providers.resilience import RetryPolicy

from support import crashing
from support.providers import ListProvider

WORDS = [["It ", "is ", "blue."], ["So ", "it ", "is."], ["Go ", "on."], ["Yes."]]
performed: list[str] = []


@effect("weather", external=True)
async def weather(city: str) -> dict[str, object]:
    performed.append(city)
    await asyncio.sleep(0)
    return {"city": city, "degrees": 20 + len(performed)}


@message("recording.said")
class Said(Event):
    text: str


async def support(app: Atlas, city: str = "Rome") -> str:
    talk = app.conversation()
    first = await talk.chat("What colour is the sky?")
    found, second = await asyncio.gather(weather(city), talk.chat("Really?"))
    app.bus.publish(Said(second.text))
    await asyncio.sleep(chance().random() / 1000)
    return f"{first.text} {second.text} {found} {uuid()} {now()}"


@pytest.fixture(autouse=True)
def nothing_performed() -> None:
    performed.clear()


@pytest.fixture
async def recorded(tmp_path: Path) -> tuple[str, str, str]:
    db = str(tmp_path / "runs.db")
    async with Atlas(db, provider=ListProvider(WORDS)) as app:
        async with app.recording("support", strict=True) as run:
            result = await support(app)
        assert run.is_exact
    return db, run.id, result


async def test_a_run_is_replayed_to_the_byte_with_its_provider_unplugged(
    recorded: tuple[str, str, str],
) -> None:
    db, run, result = recorded
    provider = ListProvider([])
    async with Atlas(db, provider=provider) as app:
        async with app.replaying(run) as session:
            again = await support(app)
        lines = app.runs[run].lines

    assert again == result
    assert session.lines == lines
    assert provider.requests == []
    assert performed == ["Rome"]


async def test_who_watches_sees_a_replay_as_it_saw_the_run(
    recorded: tuple[str, str, str],
) -> None:
    db, run, _ = recorded
    seen: list[Message] = []
    async with Atlas(db, provider="scripted") as app:
        app.bus.subscribe("stream.*", seen.append)
        async with app.replaying(run):
            await support(app)
        recorded_ones = [e for e in app.runs[run].events if e.message_name.startswith("stream.")]

    assert seen == recorded_ones
    assert "".join(event.text for event in seen if isinstance(event, StreamToken)) == (
        "It is blue.So it is."
    )


async def test_watchers_of_any_kind_change_nothing_about_a_run(
    recorded: tuple[str, str, str],
) -> None:
    db, run, result = recorded
    async with Atlas(db, provider="scripted") as app:
        bus = app.bus

        @bus.on("stream.**")
        async def slow(event: Message) -> None:
            await asyncio.sleep(0.001)
            bus.publish(Said("by a watcher"))

        async with bus.stream("**", overflow="drop_oldest", capacity=4) as events:
            async with app.replaying(run):
                assert await support(app) == result
            assert (await anext(aiter(events))) is not None
        await bus.drain(5)


async def test_what_watchers_publish_is_kept_with_the_run_but_is_no_part_of_it(
    tmp_path: Path,
) -> None:
    async with Atlas(str(tmp_path / "runs.db"), provider=ListProvider(WORDS * 2)) as app:
        bus = app.bus

        @bus.on(Said, where=lambda event: not event.text.startswith("heard"))
        async def hear(event: Said) -> None:
            bus.publish(Said(f"heard {event.text}"))

        async with app.recording("heard", strict=True) as run:
            await support(app)
        heard = [
            e for e in app.runs[run.id].events if isinstance(e, Said) and OUTSIDE in e.meta.headers
        ]
        async with app.replaying(run.id):
            await support(app)

    assert [event.text for event in heard] in ([], ["heard So it is."])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda app: support(app, "Oslo"), "weather"),
        (lambda app: app.conversation().chat("Something else"), "model"),
        (lambda app: asyncio.sleep(0), "recorded next"),
    ],
    ids=["another argument", "another prompt", "less"],
)
async def test_a_program_that_does_something_else_is_found_out(
    recorded: tuple[str, str, str], change, named: str
) -> None:
    db, run, _ = recorded
    async with Atlas(db, provider="scripted") as app:
        with pytest.raises(ReplayDiverged, match=named) as raised:
            async with app.replaying(run):
                await change(app)

    assert raised.value.effect or named == "recorded next"
    assert performed == ["Rome"]


async def test_one_call_more_than_recorded_is_never_performed(
    recorded: tuple[str, str, str],
) -> None:
    db, run, _ = recorded
    async with Atlas(db, provider="scripted") as app:
        with pytest.raises(ReplayDiverged, match="weather"):
            async with app.replaying(run):
                await support(app)
                await weather("Paris")

    assert performed == ["Rome"]


async def test_other_events_with_the_same_effects_are_found_out_too(
    recorded: tuple[str, str, str],
) -> None:
    db, run, _ = recorded

    async def changed(app: Atlas) -> None:
        app.bus.publish(Said("something new"))
        await support(app)

    async with Atlas(db, provider="scripted") as app:
        with pytest.raises(ReplayDiverged, match="something new"):
            async with app.replaying(run):
                await changed(app)


async def test_a_replay_makes_no_connection_and_writes_no_file(
    recorded: tuple[str, str, str], tmp_path: Path
) -> None:
    db, run, _ = recorded

    async def leaks(app: Atlas) -> None:
        (tmp_path / "leak").write_text("x")

    async with Atlas(db, provider="scripted") as app:
        with pytest.raises(UndeclaredEffectError):
            async with app.replaying(run):
                await leaks(app)
    assert not (tmp_path / "leak").exists()


async def test_a_fork_repeats_up_to_an_event_and_then_goes_on_live(
    recorded: tuple[str, str, str],
) -> None:
    db, run, result = recorded
    provider = ListProvider([["No, ", "grey."]])
    async with Atlas(db, provider=provider) as app:
        events = app.runs[run].events
        second = [n for n, event in enumerate(events, 1) if isinstance(event, StreamStarted)][1]
        async with app.forking(run, at=second) as fork:
            forked = await support(app)
        stored, comparison = app.runs[fork.id], app.compare(run, fork.id)
        assert stored.parent == run
        assert stored.events[: stored.forked_at] == events[: stored.forked_at]
        async with app.replaying(fork.id):
            assert await support(app) == forked

    assert forked.startswith("It is blue. No, grey.")
    assert result.startswith("It is blue. So it is.")
    assert len(provider.requests) == 1
    assert not comparison.same
    assert comparison.shared > 5


async def test_a_run_that_another_goes_on_with_ends_where_it_would_go_on_too(
    tmp_path: Path,
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @effect
    async def slow() -> None:
        begun.set()
        await go_on.wait()

    async def program(app: Atlas) -> None:
        await slow()
        await weather("Rome")

    first, second = (Atlas(str(tmp_path / "runs.db"), provider="scripted") for _ in range(2))

    async def record() -> None:
        async with first:
            async with first.recording("r"):
                await program(first)

    recording = asyncio.create_task(record())
    await begun.wait()
    async with second:
        (run,) = second.runs
        async with second.resume(run, in_doubt=Skip()):
            await program(second)
        go_on.set()
        with pytest.raises(
            LogUnavailableError, match=f"Another process has gone on with run {run}"
        ):
            await recording
        async with second.replaying(run):
            await program(second)

    assert performed == ["Rome"]


async def test_what_was_published_is_stored_when_it_was_flushed(tmp_path: Path) -> None:
    db = str(tmp_path / "runs.db")

    async def program(app: Atlas) -> list[str]:
        app.bus.publish(Said("first"))
        await app.flush()
        return [
            event.text for event in app.runs[app.runs.latest().id].events if type(event) is Said
        ]

    async with Atlas(db, provider="scripted") as app:
        async with app.recording("r", strict=True, is_durable=False) as run:
            assert await program(app) == ["first"]
        async with app.replaying(run.id):
            assert await program(app) == ["first"]
    with pytest.raises(AppNotRunningError):
        await app.flush()


async def test_two_runs_part_where_something_else_was_asked_or_given() -> None:
    async def shop(app: Atlas, city: str) -> None:
        reply = await app.chat("What colour is the sky?")
        app.bus.publish(Said(f"{now()}: {reply.text}"[-9:]))
        await weather(city)

    async with Atlas(provider=ListProvider([["It is blue."]] * 3)) as app:
        runs = []
        for city in ("Rome", "Rome", "Oslo"):
            performed.clear()
            async with app.recording("shop", strict=True) as run:
                await shop(app, city)
            runs.append(run.id)
        again, elsewhere = app.compare(*runs[:2]), app.compare(*runs[1:])

    assert again.lines != again.other_lines
    assert again.same
    assert not elsewhere.same
    assert "Rome" in elsewhere.lines[elsewhere.shared]
    assert "Oslo" in elsewhere.other_lines[elsewhere.shared]


async def test_a_fork_at_any_event_can_be_replayed(recorded: tuple[str, str, str]) -> None:
    db, run, _ = recorded
    async with Atlas(db, provider=ListProvider([["No, ", "grey."]] * 200)) as app:
        stored = app.runs[run]
        for at in range(len(stored) + 1):
            async with app.forking(run, at=at) as fork:
                forked = await support(app)
            async with app.replaying(fork.id):
                assert await support(app) == forked, at
            assert (app.runs[fork.id].forked_at or 0) <= at


async def test_a_fork_in_the_middle_of_an_answer_has_another_model_give_it(
    recorded: tuple[str, str, str],
) -> None:
    db, run, _ = recorded
    provider = ListProvider([["No, ", "grey."]])
    async with Atlas(db, provider=provider) as app:
        events = app.runs[run].events
        tokens = [n for n, event in enumerate(events, 1) if isinstance(event, StreamToken)]
        async with app.forking(run, at=tokens[-1], model="bigger") as fork:
            forked = await support(app)
        started = [e.model for e in app.runs[fork.id].events if isinstance(e, StreamStarted)]
        async with app.replaying(fork.id):
            assert await support(app) == forked

    assert forked.startswith("It is blue. No, grey.")
    assert started[-1] == "bigger"
    assert started[0] != "bigger"


async def test_a_fork_to_an_unknown_provider_is_refused_before_it_begins(
    recorded: tuple[str, str, str],
) -> None:
    db, run, _ = recorded
    async with Atlas(db, provider=ListProvider(WORDS)) as app:
        with pytest.raises(UnknownNameError, match="scripted"):
            app.forking(run, at=3, provider="scriptd")
        async with app.forking(run, at=3, provider=ListProvider.name) as fork:
            await support(app)
        assert app.runs[fork.id].status == "completed"


async def test_a_fork_may_ask_another_model_from_there_on(recorded: tuple[str, str, str]) -> None:
    db, run, _ = recorded
    provider = ListProvider(WORDS)
    async with Atlas(db, provider=provider) as app:
        async with app.forking(run, at=0, model="bigger") as fork:
            await support(app)
        started = [e for e in app.runs[fork.id].events if isinstance(e, StreamStarted)]

    assert {request.model for request in provider.requests} == {"bigger"}
    assert {event.model for event in started} == {"bigger"}
    assert app.bus.is_closed


async def test_a_fork_of_a_fork_shares_the_events_of_both(recorded: tuple[str, str, str]) -> None:
    db, run, _ = recorded
    async with Atlas(db, provider=ListProvider([["One."], ["Two."]])) as app:
        async with app.forking(run, at=len(app.runs[run]) // 2) as fork:
            first = await support(app)
        async with app.forking(fork.id, at=len(app.runs[fork.id]) - 3) as again:
            second = await support(app)
        async with app.replaying(again.id):
            assert await support(app) == second

    assert first.split()[:3] == second.split()[:3]


async def test_retries_and_failures_of_a_vendor_are_replayed_without_waiting(
    tmp_path: Path,
) -> None:
    failure = ServerError("broken", status=500, provider="list")
    provider = ListProvider([[failure], ["Fine."], [failure], [failure]])
    options = RetryPolicy(attempts=2, base_delay=0.01)

    async def ask(app: Atlas) -> list[str]:
        said = [(await app.chat("one")).text]
        try:
            await app.chat("two")
        except ServerError as error:
            said.append(f"{error} {error.status}")
        return said

    async with Atlas(str(tmp_path / "runs.db"), provider=provider, retries=options) as app:
        async with app.recording("failing", strict=True) as run:
            said = await ask(app)
        retried = [e for e in app.runs[run.id].events if isinstance(e, StreamRetried)]
        async with app.replaying(run.id):
            assert await ask(app) == said

    assert said == ["Fine.", "broken 500"]
    assert retried[0].kind == "server_error"


async def test_a_run_that_failed_is_kept_and_goes_on_where_it_failed(tmp_path: Path) -> None:
    db = str(tmp_path / "runs.db")

    async def ask(app: Atlas) -> list[str]:
        return [(await app.chat(f"question {number}")).text for number in range(3)]

    down = ListProvider([["One."], [ServerError("down")]])
    async with Atlas(db, provider=down, retries=RetryPolicy(attempts=1)) as app:
        with pytest.raises(ServerError):
            async with app.recording("failing") as run:
                await ask(app)
        assert app.runs[run.id].status == "failed"
        assert "down" in str(app.runs[run.id].ended)
    up = ListProvider([["Two."], ["Three."]])
    async with Atlas(db, provider=up) as app:
        first = next(
            n for n, e in enumerate(app.runs[run.id].events, 1) if "stream.completed" in e.meta.name
        )
        async with app.forking(run.id, at=first + 1) as fork:
            assert await ask(app) == ["One.", "Two.", "Three."]
    assert len(up.requests) == 2
    assert fork.id != run.id


async def test_a_completed_run_is_not_resumed(recorded: tuple[str, str, str]) -> None:
    db, run, _ = recorded
    async with Atlas(db, provider="scripted") as app:
        with pytest.raises(ConfigurationError, match="completed"):
            app.resume(run)


async def test_secrets_never_reach_the_file(tmp_path: Path) -> None:
    @effect("bank", external=True, redact=("pin",))
    async def bank(account: str, pin: str) -> str:
        if account == "bad":
            raise PermissionError(f"pin {pin} is wrong")
        return "100 EUR"

    db = tmp_path / "runs.db"
    async with Atlas(str(db), provider="scripted") as app:
        async with app.recording("bank") as run:
            assert await bank("A1", "swordfish-4711") == "100 EUR"
            with pytest.raises(PermissionError):
                await bank("bad", "swordfish-4711")
        text = "".join(app.runs[run.id].lines)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert "A1" in text
    assert "swordfish" not in text
    assert b"swordfish" not in written


async def test_what_is_asked_for_wrongly_is_told_in_a_sentence(
    recorded: tuple[str, str, str],
) -> None:
    db, run, _ = recorded
    app = Atlas(db, provider="scripted")
    with pytest.raises(AppNotRunningError):
        app.recording()
    async with app:
        with pytest.raises(UnknownRunError, match="nearest"):
            app.replaying(run[:-1])
        with pytest.raises(UnknownVersionError, match="no event"):
            app.forking(run, at=10_000)
        with pytest.raises(EffectError, match="inside run"):
            async with app.recording("outer"), app.recording("inner"):
                pass


async def test_runs_are_recorded_in_memory_too() -> None:
    async with Atlas(provider=ListProvider(WORDS)) as app:
        async with app.recording("support", strict=True) as run:
            result = await support(app)
        async with app.replaying(run.id):
            assert await support(app) == result
        assert list(app.runs) == [run.id]


async def test_a_recorded_program_is_found_again_by_its_name(tmp_path: Path) -> None:
    db = str(tmp_path / "runs.db")
    async with Atlas(db, provider=ListProvider(WORDS)) as app:
        run, result = await app.record(support, city="Bonn")
        assert app.runs[run.id].started.arguments == {"city": "Bonn"}
    async with Atlas(db, provider="scripted") as app:
        _, again = await app.replay(run.id)
        _, by_name = await app.replay(run.id, program="tests.test_recording:support"
                                      if __name__.startswith("tests.") else f"{__name__}:support")  # fmt: skip
        with pytest.raises(ConfigurationError, match="cannot be found"):
            await app.replay(run.id, program="no.such:thing")
    assert again == by_name == result


async def shopping(app: Atlas, items: list[object], style: str = "plain") -> str:
    items = [*items, "and nothing else"]
    reply = await app.chat(f"Pack {items!r}.", system=style)
    return f"{type(items[0]).__name__} {items!r} {reply.text}"


async def test_a_program_gets_the_same_arguments_when_it_is_recorded_and_replayed() -> None:
    async with Atlas(provider=ListProvider(WORDS)) as app:
        run, result = await app.record(shopping, items=[{"tea": ["green", "black"]}, 2])
        assert await app.replay(run.id) == (ANY, result)


async def test_a_fork_with_other_arguments_is_replayed_with_these() -> None:
    async with Atlas(provider=ListProvider(WORDS)) as app:
        run, _ = await app.record(shopping, items=[1])
        fork, other = await app.fork(run.id, at=0, style="pirate")
        again, third = await app.fork(fork.id, at=0, items=[2])
        assert await app.replay(fork.id) == (ANY, other)
        assert await app.replay(again.id) == (ANY, third)
        assert app.runs[again.id].origin.arguments == {"items": (2,), "style": "pirate"}


async def test_what_makes_no_sense_is_refused_before_anything_happens() -> None:
    async with Atlas(provider=ListProvider(WORDS)) as app:
        async with app.recording("done") as run:
            pass
        with pytest.raises(LookupError):
            async with app.recording("failed") as failed:
                raise LookupError
        for pace in (0, -1, float("nan"), float("inf"), "fast"):
            with pytest.raises(ConfigurationError, match="pace is"):
                app.replaying(run.id, pace=pace)  # type: ignore[arg-type]
        for at in ("3", None, 1.5):
            with pytest.raises(ConfigurationError, match="number of an event"):
                app.forking(run.id, at=at)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="layers has 5"):
            app.recording("x", layers=[5])  # type: ignore[list-item]
        with pytest.raises(ConfigurationError, match="in_doubt is 'again'"):
            app.resume(failed.id, in_doubt="again")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="name of the run is 5"):
            app.recording(5)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="time is 'noon'"):
            app.runs[run.id].at(time="noon")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="The program is 5"):
            await app.record(5)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"shopping\("):
            await app.record(shopping, things=[1])
        assert len(app.runs) == 2


async def test_arguments_that_the_program_does_not_have_are_refused() -> None:
    async with Atlas(provider=ListProvider(WORDS)) as app:
        run, _ = await app.record(shopping, items=[1])
        with pytest.raises(ConfigurationError, match=r"shopping\(app.*'color'"):
            await app.fork(run.id, at=0, color="red")
        assert len(app.runs) == 1


async def test_a_run_happens_once_and_only_what_was_entered_goes_on() -> None:
    async with Atlas(provider=ListProvider(WORDS)) as app:
        session = app.recording("broken")
        with pytest.raises(ValueError, match="no"):
            async with session:
                raise ValueError("no")
        with pytest.raises(ConfigurationError, match="entered before"):
            await session.__aenter__()
        app.resume(session.id)  # and never entered

        async def go_on(resumed: RunSession) -> None:
            async with resumed:
                await app.chat("Where were we?")

        both = [go_on(app.resume(session.id)) for _ in range(2)]
        first, second = await asyncio.gather(*both, return_exceptions=True)
        assert first is None
        assert isinstance(second, ConfigurationError)
        assert "still going on" in str(second)
        assert app.runs[session.id].status == "completed"


async def test_a_run_that_is_refused_inside_another_leaves_nothing_behind() -> None:
    async with Atlas(provider=ListProvider(WORDS)) as app:
        async with app.recording("outer") as outer:
            with pytest.raises(EffectError, match="inside run"):
                async with app.recording("inner"):
                    pytest.fail("was entered")
            await app.chat("Hello?")
        assert list(app.runs) == [outer.id]
        assert app.runs[outer.id].status == "completed"


async def test_a_run_that_was_interrupted_goes_on_when_it_is_resumed() -> None:
    waiting = asyncio.Event()
    provider = ListProvider([["Never."]])
    async with Atlas(provider=provider) as app:
        session = app.recording("long")

        async def whole(run: RunSession) -> str:
            async with run:
                found = await weather("Rome")
                waiting.set()
                await asyncio.sleep(3600 if run is session else 0)
                return f"{found} {(await app.chat('Go on.')).text}"

        task = asyncio.create_task(whole(session))
        await waiting.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert app.runs[session.id].status == "cancelled"

        resumed = app.resume(session.id)
        said = await whole(resumed)
        assert said.endswith("Never.")
        assert app.runs[session.id].status == "completed"
        async with app.replaying(session.id) as again:
            found = await weather("Rome")
            await asyncio.sleep(0)
            assert f"{found} {(await app.chat('Go on.')).text}" == said
        assert again.lines == app.runs[session.id].lines
    assert performed == ["Rome"]


async def test_a_run_has_ended_whatever_a_late_handler_tells_of_it(tmp_path: Path) -> None:
    @message("test.late")
    class Late(Event):
        word: str = ""

    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:
        async with app.recording("short") as run:
            await weather("Rome")
        for word in "ab":
            app.bus.publish(Late(word), run=run.id)
            await app.flush()
    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:
        assert app.runs[run.id].status == "completed"
        async with app.replaying(run.id):
            await weather("Rome")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_a_run_ends_with_the_error_it_failed_with_whatever_its_text_is() -> None:
    async with Atlas(provider=ListProvider(WORDS)) as app:
        with pytest.raises(Unspeakable):
            async with app.recording("broken") as run:
                raise Unspeakable
        ended = app.runs[run.id].ended
    assert ended is not None
    assert ended.error == "Unspeakable, whose text cannot be made (RuntimeError)"


async def test_the_state_at_the_time_of_an_event_has_that_event(
    recorded: tuple[str, str, str],
) -> None:
    async with Atlas(recorded[0], provider="scripted") as app:
        run = app.runs[recorded[1]]
        for number, event in enumerate(run.events, 1):
            assert event.meta.time is not None
            assert run.number_at(event.meta.time) >= number
        assert run.time is not None
        assert run.number_at(run.time - timedelta(seconds=1)) == 0
        east = timezone(timedelta(hours=14))
        assert run.number_at(datetime.min.replace(tzinfo=east)) == 0
        with pytest.raises(ConfigurationError, match="Give one of them"):
            run.at(3, time=run.time)


async def test_two_runs_at_once_on_one_loop_do_not_mix(tmp_path: Path) -> None:
    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:

        async def one(name: str) -> tuple[str, str]:
            async with app.recording(name, strict=True) as run:
                for number in range(5):
                    await app.chat(f"{name} {number}")
            return run.id, name

        runs = await asyncio.gather(*(asyncio.create_task(one(f"r{n}")) for n in range(4)))
        for run, name in runs:
            started = [e for e in app.runs[run].events if isinstance(e, StreamStarted)]
            assert [event.prompt for event in started] == [f"{name} {n}" for n in range(5)]

            async def again(name: str = name) -> None:
                for number in range(5):
                    await app.chat(f"{name} {number}")

            async with app.replaying(run):
                await again()


# -- crashes --------------------------------------------------------------------------------------

CRASHES = int(os.environ.get("ATLAS_CRASHES", "4"))


def crash(db: Path, world: Path, after: float, *arguments: str) -> tuple[str, bool]:
    """Run the crashing program and kill it; return its output, and whether it was killed."""
    with subprocess.Popen(
        [sys.executable, crashing.__file__, str(db), str(world), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # the run has begun
        time.sleep(after)  # not to synchronise: the kill is to come at any moment
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        return first + rest, process.wait() == -signal.SIGKILL


@pytest.mark.timeout(600)
def test_a_killed_run_is_resumed_and_nothing_finished_runs_twice(tmp_path: Path) -> None:
    randomness = random.Random(os.environ.get("ATLAS_CRASH_SEED", "4"))
    killed = 0
    for number in range(CRASHES):
        db, world = tmp_path / f"{number}.db", tmp_path / f"{number}.txt"
        output, was_killed = crash(db, world, randomness.random() * 0.25)
        run = output.split()[1]
        if not was_killed:
            continue
        killed += 1
        before = Counter(world.read_text().split() if world.exists() else [])
        resumed = subprocess.run(
            [sys.executable, crashing.__file__, str(db), str(world), run],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if "is completed" in resumed.stderr:
            continue  # it was killed on its way out
        assert resumed.returncode == 0, resumed.stderr[-3000:]
        marks = Counter(world.read_text().split())
        assert max(marks.values()) == 1, "a tool ran twice"
        doubted = int(resumed.stdout.split("DOUBTED ")[1].split()[0])
        wanted = crashing.AGENTS * crashing.STEPS
        assert wanted - doubted <= len(marks) <= wanted
        assert before <= marks
        assert resumed.stdout.count("done") + resumed.stdout.count("in doubt") == wanted
    assert killed or CRASHES < 4


@effect("lamp", pure=True, retry=Retry(2, wait=0.0))
async def lamp() -> str:
    performed.append("lamp")
    if len(performed) == 1:
        raise LookupError("dark")
    return "light"


async def publishing_meanwhile(app: Atlas) -> str:
    task = asyncio.create_task(lamp())
    await asyncio.sleep(0)
    app.bus.publish(Said("while the lamp is being tried"))
    return await task


async def test_what_is_published_before_an_attempt_fails_comes_before_it_in_a_replay_too(
    tmp_path: Path,
) -> None:
    performed.clear()
    async with Atlas(tmp_path / "runs.db") as app:
        async with app.recording("lamp") as run:
            await publishing_meanwhile(app)
        async with app.replaying(run.id):
            assert await publishing_meanwhile(app) == "light"

    assert performed == ["lamp", "lamp"]


async def test_a_fork_repeats_what_was_read_after_the_last_delivery(tmp_path: Path) -> None:
    @effect(pure=True)
    def reading() -> int:
        performed.append("read")
        return len(performed)

    async def read() -> list[object]:
        return [reading(), reading(), now(), reading()]

    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:
        async with app.recording("reads", strict=True) as run:
            recorded_ones = await read()
        events = app.runs[run.id].events
        third = [n for n, e in enumerate(events, 1) if e.message_name == "effect.read"][2]
        performed.clear()
        async with app.forking(run.id, at=third) as fork:
            forked = await read()
        async with app.replaying(fork.id):
            assert await read() == forked

    assert forked[:3] == recorded_ones[:3]
    assert performed == ["read"]


@pytest.mark.parametrize(
    "kind", [GeneratorExit, asyncio.CancelledError], ids=lambda kind: kind.__name__
)
async def test_an_effect_that_ends_in_an_odd_way_ends_all_the_same(
    kind: type[BaseException], tmp_path: Path
) -> None:
    @effect(pure=True)
    def plain() -> None:
        raise kind("odd")

    async def ask() -> str:
        try:
            plain()
        except kind as error:
            return repr(error)
        return "nothing"

    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:
        async with app.recording("odd", strict=True) as run:
            said = await ask()
        async with app.replaying(run.id):
            assert await ask() == said
    assert said == f"{kind.__name__}('odd')"


async def test_errors_that_hold_errors_are_kept_as_far_as_that_helps(tmp_path: Path) -> None:
    @effect(pure=True)
    def failing() -> None:
        error = RuntimeError("first")
        for number in range(40):
            outer = RuntimeError(number)
            outer.held = error  # type: ignore[attr-defined]
            error = outer
        error.myself = error  # type: ignore[attr-defined]
        raise error

    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:
        async with app.recording("failing") as run:
            with pytest.raises(RuntimeError, match="39"):
                failing()
        assert len("".join(app.runs[run.id].lines)) < 10_000


SHOP = """
import asyncio, os
from atlas import Atlas, effect

@effect
async def pay(amount: int) -> str:
    with open("paid.txt", "a") as file:
        file.write("x")
    if os.environ.get("DIE"):
        os._exit(9)
    return "paid"

async def shop(app: Atlas) -> str | None:
    return await pay(3)

async def main() -> None:
    async with Atlas("runs.db", provider="scripted") as app:
        await app.record(shop, name="shop")

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize(("answer", "paid"), [([], "xx"), (["--refuse"], "x")])
def test_a_person_is_asked_about_an_effect_in_doubt_and_may_answer_after_a_restart(
    tmp_path: Path, answer: list[str], paid: str
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    at = {"cwd": tmp_path, "text": True, "timeout": 60}
    command = [sys.executable, "-m", "atlas"]
    died = subprocess.run(
        [sys.executable, "shop.py"], check=False, env={**os.environ, "DIE": "1"}, **at
    )
    (run,) = json.loads(
        subprocess.check_output([*command, "runs", "--db", "runs.db", "--json"], **at)
    )
    resume = [*command, "resume", run["run"], "--db", "runs.db", "--in-doubt", "ask"]
    question = f"{run['run']}/0:0"

    with subprocess.Popen(resume, cwd=tmp_path, text=True, stderr=subprocess.PIPE) as waiting:
        assert waiting.stderr is not None
        asked = waiting.stderr.readline()
        listed = ""
        while question not in listed:  # it is stored a moment later
            listed = subprocess.check_output(
                [*command, "agents", "approvals", "--db", "runs.db"], **at
            )
        waiting.kill()
    given = [*command, "agents", "approve", question, "--db", "runs.db", *answer]
    subprocess.run(given, check=True, capture_output=True, **at)
    gone_on = subprocess.run(resume, check=False, capture_output=True, **at)

    assert died.returncode == 9
    assert question in asked
    assert f'{question}  in doubt: pay({{"amount":3}})' in listed
    assert gone_on.returncode == 0, gone_on.stderr
    assert (tmp_path / "paid.txt").read_text() == paid


def test_a_prompt_that_the_forked_program_does_not_ask_for_is_told(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    at = {"cwd": tmp_path, "text": True, "timeout": 60, "capture_output": True}
    command = [sys.executable, "-m", "atlas"]
    subprocess.run([sys.executable, "shop.py"], check=True, **at)
    (run,) = json.loads(
        subprocess.run([*command, "runs", "--db", "runs.db", "--json"], check=True, **at).stdout
    )

    fork = [*command, "fork", run["run"], "--at", "0", "--prompt", "Hm?", "--db", "runs.db"]
    forked = subprocess.run(fork, check=False, **at)

    assert forked.returncode == 1
    assert "The program asked no question for --prompt 'Hm?'." in forked.stderr


async def test_a_run_begun_on_another_loop_is_told_by_the_name_of_what_was_called() -> None:
    async with Atlas(provider="scripted") as app:

        async def elsewhere() -> None:
            app.recording("x")

        with pytest.raises(AppNotRunningError, match=r"recording\(\) was called outside the event"):
            await asyncio.to_thread(asyncio.run, elsewhere())


async def test_what_others_do_late_because_of_a_run_does_not_open_it_again(tmp_path: Path) -> None:
    late = asyncio.Event()
    async with Atlas(tmp_path / "runs.db", provider="scripted") as app:

        @app.bus.on(Said)
        async def fail(event: Said) -> None:
            await late.wait()
            raise ValueError("Too late.")

        failed = asyncio.ensure_future(app.bus.wait_for("bus.handler_failed", timeout=10))
        await asyncio.sleep(0)
        async with app.recording("said") as run:
            app.bus.publish(Said("Hi."))
        await app.flush()
        late.set()
        await failed
    async with Atlas(tmp_path / "runs.db", provider="scripted") as app:
        stored = app.runs[run.id]

        assert stored.events[-1].meta.name == "bus.handler_failed"
        assert stored.status == "completed"
        with pytest.raises(ConfigurationError, match="completed"):
            app.resume(run.id)
        async with app.replaying(run.id):
            app.bus.publish(Said("Hi."))
