"""Letters between agents: delivered at least once, handled once, confirmed or dead."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from atlas import Atlas, EventBus
from atlas.agents import AgentMessage, PostOffice
from atlas.agents.messages import MessageDead, MessageReceived, MessageRetried
from atlas.core.effects import current_run
from atlas.errors import (
    ConfigurationError,
    UndeliverableError,
    ValidationError,
    WaitTimeoutError,
)


def letter(letter_id: str, to: str = "fx", **fields: Any) -> AgentMessage:
    return AgentMessage(**{"id": letter_id, "sender": "me", "to": to, "kind": "query", **fields})


class Desk:
    """Notes what it gets; fails as often as it is told."""

    def __init__(self, fails: int = 0, answer: Any = None) -> None:
        self.got: list[str] = []
        self.fails = fails
        self.answer = answer

    async def __call__(self, given: AgentMessage) -> Any:
        self.got.append(given.id)
        if given.attempt <= self.fails:
            raise ValueError(f"attempt {given.attempt}")
        return self.answer


async def test_letters_go_to_a_name_a_role_a_capability_and_to_all() -> None:
    a, b, c = Desk(), Desk(), Desk()
    async with PostOffice(EventBus()) as post:
        post.open("a", a, role="clerk", capabilities={"fx"})
        post.open("b", b, role="clerk")
        post.open("me", c)

        assert await post.send(letter("1", "a")) == ("a",)
        assert await post.send(letter("2", "role:clerk")) == ("a", "b")
        assert await post.send(letter("3", "capability:fx")) == ("a",)
        assert await post.send(letter("4", "*")) == ("a", "b")
        with pytest.raises(ConfigurationError, match="already"):
            post.open("a", a)

    assert (a.got, b.got, c.got) == (["1", "2", "3", "4"], ["2", "4"], [])


async def test_a_letter_that_comes_twice_is_handled_once() -> None:
    desk, bus = Desk(), EventBus()
    async with PostOffice(bus) as post:
        post.open("fx", desk)
        await asyncio.gather(*(post.send(letter("same")) for _ in range(5)))
        bus.publish(letter("same"))  # as a wire would that repeats
        bus.publish(letter("other"))
        await bus.wait_for(MessageReceived, where=lambda e: e.id == "other", timeout=5)

    assert desk.got == ["same", "other"]


async def test_a_letter_is_tried_again_and_a_poisoned_one_is_dead() -> None:
    bus, seen = EventBus(), []
    bus.subscribe((MessageRetried, MessageReceived, MessageDead), seen.append)
    async with PostOffice(bus, attempts=3, wait=0.0) as post:
        post.open("fx", Desk(fails=2))
        post.open("poor", Desk(fails=9))

        assert await post.send(letter("1")) == ("fx",)
        assert await post.send(letter("2", "poor")) == ()
        assert await post.send(letter("3")) == ("fx",)

    assert [type(each) for each in seen] == [
        *[MessageRetried] * 2,
        MessageReceived,
        *[MessageRetried] * 2,
        MessageDead,
        *[MessageRetried] * 2,
        MessageReceived,
    ]


async def test_a_letter_to_nobody_is_refused_and_dead() -> None:
    bus, dead = EventBus(), []
    bus.subscribe(MessageDead, dead.append)
    async with PostOffice(bus) as post:
        post.open("clerk", Desk())
        with pytest.raises(UndeliverableError, match="nearest is 'clerk'"):
            await post.send(letter("1", "clark"))

    assert [each.letter.id for each in dead] == ["1"]


async def test_urgent_letters_are_handled_first_and_late_ones_not_at_all() -> None:
    go, got = asyncio.Event(), []

    async def slow(given: AgentMessage) -> None:
        got.append(given.id)
        await go.wait()

    bus = EventBus()
    async with PostOffice(bus) as post:
        post.open("fx", slow)
        sent = [asyncio.create_task(post.send(letter("first")))]
        await asyncio.sleep(0)
        for number in (1, 3, 2):
            sent.append(asyncio.create_task(post.send(letter(f"p{number}", priority=number))))
        late = asyncio.create_task(post.send(letter("late", deadline=0.01)))
        assert await late == ()
        go.set()
        await asyncio.gather(*sent)

    assert got == ["first", "p3", "p2", "p1"]


async def test_a_letter_is_not_tried_again_when_it_would_be_too_late() -> None:
    desk, bus, dead = Desk(fails=9), EventBus(), []
    bus.subscribe(MessageDead, dead.append)
    async with PostOffice(bus, wait=3600) as post:
        post.open("fx", desk)
        assert await post.send(letter("1", deadline=60)) == ()

    assert desk.got == ["1"]
    assert "too late for another attempt after ValueError: attempt 1" in dead[0].reason


async def test_an_answer_goes_to_who_asked_and_is_not_answered() -> None:
    asked: list[str] = []

    async def front(given: AgentMessage) -> Any:
        asked.append(given.kind)
        return (await post.ask("front", "back", "x")).body

    async with PostOffice(EventBus()) as post:
        post.open("front", front)
        post.open("back", lambda given: "done")
        assert (await post.ask("me", "front")).body == "done"
        assert await post.send(letter("1", "back", sender="front")) == ("back",)
        assert (await post.ask("me", "back")).body == "done"  # what came before is handled by now

    assert asked == ["query", "response"]


async def test_a_filter_that_fails_makes_a_dead_letter() -> None:
    bus, dead = EventBus(), []
    bus.subscribe(MessageDead, dead.append)
    async with PostOffice(bus) as post:
        post.open("fx", Desk(), where=lambda given: given.body["amount"] > 0)
        assert await post.send(letter("1", body={"amount": 1})) == ("fx",)
        assert await post.send(letter("2", body=None)) == ()
        bus.publish(letter("3", body=None))
        await bus.wait_for(MessageDead, where=lambda e: e.letter.id == "3", timeout=5)

    assert "the filter of fx failed: TypeError" in dead[0].reason


async def test_a_handler_that_waits_for_what_is_cancelled_has_failed_and_its_box_goes_on() -> None:
    async def give_up(given: AgentMessage) -> str:
        if given.body == "fine":
            return "fine"
        waiting = asyncio.create_task(asyncio.Event().wait())
        waiting.cancel()
        await waiting
        return ""

    async with PostOffice(EventBus(), attempts=2, wait=0) as post:
        post.open("fx", give_up)
        with pytest.raises(UndeliverableError, match="failed 2 times.*CancelledError"):
            await post.ask("me", "fx", "odd")
        assert (await post.ask("me", "fx", "fine")).body == "fine"


async def test_how_far_a_letter_is_can_be_asked() -> None:
    go = asyncio.Event()

    async def slow(given: AgentMessage) -> None:
        await go.wait()

    async with PostOffice(EventBus(), attempts=1) as post:
        post.open("slow", slow)
        post.open("poor", Desk(fails=9))
        sent = [asyncio.create_task(post.send(letter(each, "*"))) for each in ("1", "2")]
        while "in_hand" not in post.status("1").values():
            await asyncio.sleep(0)
        underway = post.status("2")
        go.set()
        await asyncio.gather(*sent)

        assert underway["slow"] == "waiting"
        assert post.status("1") == post.status("2") == {"slow": "handled", "poor": "dead"}
        assert post.status("3") == {}


async def test_letters_in_any_order_and_twice_end_the_same() -> None:
    randomness = random.Random(3)
    letters = [letter(f"l{n}", randomness.choice(["a", "b", "*"])) for n in range(50)]
    seen: list[set[str]] = []
    for _ in range(5):
        a, b, bus = Desk(), Desk(), EventBus()
        wire = letters * 3
        randomness.shuffle(wire)
        async with PostOffice(bus) as post:
            post.open("a", a)
            post.open("b", b)
            for each in wire:
                bus.publish(each)
            await asyncio.gather(*(post.send(each) for each in letters))

        assert len(a.got) == len(set(a.got))
        seen += [{*a.got}, {*b.got}]

    assert seen[::2] == [seen[0]] * 5
    assert seen[1::2] == [seen[1]] * 5


async def test_an_answer_that_no_letter_can_say_is_a_failure_and_the_box_goes_on() -> None:
    async with PostOffice(EventBus(), attempts=1) as post:
        post.open("odd", lambda given: object() if given.body == "odd" else "fine")
        with pytest.raises(UndeliverableError, match="odd failed once.*JSON value"):
            await post.ask("me", "odd", "odd")

        assert (await post.ask("me", "odd", "even")).body == "fine"


async def test_who_asks_is_told_why_nobody_handled_it_or_that_it_took_too_long() -> None:
    never = asyncio.Event()

    async def mute(given: AgentMessage) -> None:
        await never.wait()

    async with PostOffice(EventBus(), attempts=2, wait=0) as post:
        post.open("poor", Desk(fails=9))
        post.open("mute", mute)
        with pytest.raises(UndeliverableError, match="poor failed 2 times.*ValueError: attempt 2"):
            await post.ask("me", "poor")
        with pytest.raises(WaitTimeoutError, match="'mute' did not answer within 0.01 s"):
            await post.ask("me", "mute", timeout=0.01)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"letter_id": ""}, "id"),
        ({"to": ""}, "to"),
        ({"deadline": 0.0}, "deadline"),
        ({"attempt": 0}, "attempt"),
        ({"kind": "shout"}, "kind"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_what_is_no_letter_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=rf"agent\.message\.{named}"):
        letter(**{"letter_id": "1", **fields})


async def test_what_is_no_box_is_refused() -> None:
    async with PostOffice(EventBus()) as post:
        for name in ("", "*", "role:x"):
            with pytest.raises(ConfigurationError, match="Give a plain name"):
                post.open(name, print)
        with pytest.raises(ConfigurationError, match="Give a function"):
            post.open("a", 5)  # type: ignore[arg-type]
        for option, wrong in (
            ("capabilities", "fx"),
            ("where", 5),
            ("at_once", 0),
            ("role", 5),
        ):
            with pytest.raises(ConfigurationError, match=f"{option} of 'a' is "):
                post.open("a", print, **{option: wrong})  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="letter is 'hello'"):
            await post.send("hello")  # type: ignore[arg-type]
        await post.close("nobody")
    for option, wrong in (("attempts", "3"), ("wait", float("nan")), ("remembered", 0), ("bus", 5)):
        with pytest.raises(ConfigurationError, match=f"{option} is "):
            PostOffice(**{"bus": EventBus(), option: wrong})  # type: ignore[arg-type]


def test_a_box_is_opened_where_a_loop_runs() -> None:
    with pytest.raises(ConfigurationError, match="no event loop runs"):
        PostOffice(EventBus()).open("a", print)


async def test_what_a_box_does_not_take_is_dead() -> None:
    bus, dead = EventBus(), []
    bus.subscribe(MessageDead, dead.append)
    async with PostOffice(bus) as post:
        post.open("fx", Desk(), where=lambda given: given.body == "yes")

        assert await post.send(letter("1", body="no")) == ()
        assert await post.send(letter("2", body="yes")) == ("fx",)

    assert len(dead) == 1


async def test_a_question_gets_its_own_answer() -> None:
    turn = [asyncio.Event() for _ in range(6)]
    turn[5].set()

    async def double(given: AgentMessage) -> Any:
        number = int(str(given.body))
        await turn[number + 1].wait()  # the last one answers first
        turn[number].set()
        return 2 * number

    async with PostOffice(EventBus()) as post:
        post.open("fx", double, at_once=5)
        answers = await asyncio.gather(*(post.ask("me", "fx", n) for n in range(5)))
        post.open("mute", Desk())
        with pytest.raises(UndeliverableError, match="did not answer"):
            await post.ask("me", "mute")

    assert [each.body for each in answers] == [0, 2, 4, 6, 8]
    assert {(each.kind, each.direction) for each in answers} == {("response", "answer")}
    assert letter("1").direction == "request"


async def test_letters_are_part_of_a_recorded_run() -> None:
    async def talk() -> list[Any]:
        async def answer(given: AgentMessage) -> Any:
            assert current_run() is not None
            return f"{given.body}!"

        async with PostOffice(app.bus) as post:
            post.open("a", answer)
            post.open("b", answer)
            both = await asyncio.gather(post.ask("me", "a", "x"), post.ask("me", "b", "y"))
            return [each.body for each in both]

    async with Atlas(provider="scripted") as app:
        async with app.recording("letters", strict=True) as run:
            first = await talk()
        async with app.replaying(run.id):
            assert await talk() == first == ["x!", "y!"]
