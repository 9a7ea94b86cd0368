"""Layers around effects, and the modes made of them: dry run, deny, ask."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest

from atlas.core.effect_layers import Ask, Budget, Deny, DryRun, EffectCall, Layer, Retry, Timeout
from atlas.core.effects import (
    Effect,
    EffectNoted,
    MemoryJournal,
    RunContext,
    effect,
    perform,
    stream,
)
from atlas.errors import BudgetExceededError, ConfigurationError, EffectDeniedError, EffectError

attempts: list[str] = []


@pytest.fixture(autouse=True)
def _fresh():
    attempts.clear()


@effect(external=True)
async def send(to: str) -> str:
    attempts.append(to)
    return f"sent {to}"


@effect(pure=True)
async def letters(word: str):
    attempts.append(word)
    for letter in word:
        yield letter


@effect
def touch(name: str) -> str:
    attempts.append(name)
    return name


@effect(pure=True)
def measure(name: str) -> int:
    return len(name)


async def test_an_effect_is_retried_and_its_attempts_are_noted():
    left = 2

    @effect(retry=Retry(3, wait=0), pure=True)
    async def shaky() -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise ConnectionError("again")
        return "done"

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        assert await shaky() == "done"
    noted = [entry.text for entry in journal.entries if isinstance(entry, EffectNoted)]
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await shaky() == "done"

    assert noted == [
        "attempt 1 of 3 failed: ConnectionError('again')",
        "attempt 2 of 3 failed: ConnectionError('again')",
    ]
    assert left == -1


async def test_attempts_come_to_an_end():
    @effect(retry=Retry(2, wait=0, on=ConnectionError))
    async def broken(error: str) -> None:
        attempts.append(error)
        raise ConnectionError if error == "connection" else ValueError

    with pytest.raises(ConnectionError):
        await broken("connection")
    with pytest.raises(ValueError):
        await broken("value")
    assert attempts == ["connection", "connection", "value"]
    with pytest.raises(ConfigurationError, match="at least one"):
        Retry(0)


@pytest.mark.parametrize("refusal", [Deny(["send"]), Budget(calls=0), Ask(lambda _call: False)])
async def test_what_is_refused_is_not_tried_again(refusal: Layer):
    journal = MemoryJournal()
    async with RunContext("r", journal=journal, layers=[Retry(3, wait=60), refusal]):
        with pytest.raises((EffectDeniedError, BudgetExceededError)):
            await send("a")

    assert attempts == []


async def test_a_time_limit_of_the_effects_own_is_not_told_as_that_of_the_layer():
    @effect(timeout=60, pure=True)
    async def impatient() -> None:
        raise TimeoutError("the server said so")

    @effect(timeout=60, pure=True)
    async def impatient_later():
        yield 1
        raise TimeoutError("the server said so")

    async with RunContext("r"):
        with pytest.raises(TimeoutError, match="the server said so"):
            await impatient()
        with pytest.raises(TimeoutError, match="the server said so"):
            async for _ in impatient_later():
                pass


@pytest.mark.parametrize("answer", ["no", None, 0, 1, "yes"])
async def test_only_true_is_a_yes_and_only_false_a_no(answer: object):
    async with RunContext("r", layers=[Ask(lambda _call: answer)]):
        with pytest.raises(EffectDeniedError, match="True or False"):
            await send("a")
        with pytest.raises(EffectDeniedError, match="True or False"):
            touch("a")

    assert attempts == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry("3"),
        lambda: Retry(2.5),
        lambda: Retry(3, wait=-1),
        lambda: Retry(3, wait=math.nan),
        lambda: Timeout(0),
        lambda: Timeout("5"),
        lambda: Timeout(math.nan),
        lambda: Budget(calls=-1),
        lambda: Budget(limits={"tokens": "many"}),
        lambda: Budget(kinds="send"),
        Deny,
        lambda: Deny("send"),
        lambda: Deny([5]),
        lambda: Deny(["send"], allow=["touch"]),
        lambda: Ask("yes"),
        lambda: Ask(lambda _call: True, kinds="send"),
        lambda: effect(redact="api_key"),
        lambda: effect(ignore="app"),
        lambda: effect(layers=Retry(3)),
        lambda: effect(layers=["retry"]),
        lambda: effect(retry="3"),
        lambda: effect(timeout=-1),
        lambda: effect(""),
        lambda: effect(5),
        lambda: Effect(""),
        lambda: Effect("send", declared="sometimes"),
        lambda: Effect("send", redact="api_key"),
        lambda: RunContext("r", layers=Retry(3)),
        lambda: RunContext("r", layers=[Retry]),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_said(make: Callable[[], object]):
    with pytest.raises((ConfigurationError, EffectError)):
        make()


async def test_what_is_no_effect_is_not_performed():
    with pytest.raises(EffectError, match="'send' is no effect"):
        await perform("send", send, "a")
    with pytest.raises(EffectError, match="is no effect"):
        stream(letters, "ab")

    assert attempts == []


async def test_a_stream_is_begun_again_only_before_its_first_piece():
    @effect(retry=Retry(3, wait=0))
    async def shaky(late: bool):
        attempts.append("x")
        if len(attempts) == 1 and not late:
            raise ConnectionError
        yield 1
        if late:
            raise ConnectionError

    assert [piece async for piece in shaky(False)] == [1]
    with pytest.raises(ConnectionError):
        async for _ in shaky(True):
            pass
    assert len(attempts) == 3


async def test_an_effect_that_takes_too_long_times_out_and_replays_so():
    @effect(timeout=0.001, pure=True)
    async def hang() -> None:
        await asyncio.Event().wait()

    @effect(timeout=0.001, pure=True)
    async def hang_later():
        yield 1
        await asyncio.Event().wait()

    async def program() -> list[str]:
        errors = []
        with pytest.raises(TimeoutError, match="'hang' took longer than 0.001 seconds") as caught:
            await hang()
        errors.append(str(caught.value))
        with pytest.raises(TimeoutError):
            async for piece in hang_later():
                errors.append(str(piece))
        return errors

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        errors = await program()
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await program() == errors


async def test_a_budget_of_calls_and_of_other_things():
    budget = Budget(calls=2, kinds={"send"})
    tokens = Budget(limits={"tokens": 5}, cost=lambda call, result: {"tokens": len(result)})
    async with RunContext("r", layers=[budget]):
        await send("a")
        assert touch("free") == "free"
        await send("b")
        with pytest.raises(BudgetExceededError, match="2 of 2 calls are used"):
            await send("c")
    async with RunContext("r", layers=[tokens]):
        assert [x async for x in letters("abcdef")]
        with pytest.raises(BudgetExceededError, match="6 of 5 tokens"):
            touch("more")

    assert budget.used == {"calls": 2}
    assert tokens.used == {"calls": 1, "tokens": 6}


async def test_kinds_are_denied():
    async with RunContext("r", layers=[Deny({"send", "touch"})]):
        with pytest.raises(EffectDeniedError, match="'send' are denied"):
            await send("a")
        with pytest.raises(EffectDeniedError):
            touch("a")
        assert [x async for x in letters("ab")] == ["a", "b"]
    async with RunContext("r", layers=[Deny(allow={"send"})]):
        await send("b")
        with pytest.raises(EffectDeniedError):
            async for _ in letters("ab"):
                pass
    assert attempts == ["ab", "b"]


async def test_somebody_is_asked_and_the_decision_is_noted_and_replayed():
    async def decide(call: EffectCall) -> bool:
        await asyncio.sleep(0)
        return '"ok"' in call.request

    async def program() -> str:
        with pytest.raises(EffectDeniedError):
            await send("bad")
        return await send("ok")

    journal = MemoryJournal()
    async with RunContext("r", journal=journal, layers=[Ask(decide, kinds={"send"})]):
        assert await program() == "sent ok"
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await program() == "sent ok"

    noted = [entry.text for entry in journal.entries if isinstance(entry, EffectNoted)]
    assert noted == ["refused", "allowed"]
    assert attempts == ["ok"]


async def test_who_is_asked_about_a_plain_function_has_to_answer_at_once():
    async def decide(call: EffectCall) -> bool:
        return True

    async with RunContext("r", layers=[Ask(decide)]):
        with pytest.raises(EffectDeniedError, match="answer at once"):
            touch("x")
    async with RunContext("r", layers=[Ask(lambda call: call.kind == "touch")]):
        assert touch("x") == "x"


async def test_a_dry_run_changes_nothing():
    dry = DryRun({"send": lambda call: f"would send {call.request}"}, default="default")
    async with RunContext("r", layers=[dry]):
        assert await send("a") == 'would send {"to":"a"}'
        assert touch("b") == "default"
        assert measure("abc") == 3
        assert [x async for x in letters("ab")] == ["a", "b"]

    assert [call.kind for call in dry.skipped] == ["send", "touch"]
    assert attempts == ["ab"]


async def test_the_first_layer_is_the_outermost():
    order = []

    class Named(Layer):
        def __init__(self, name: str) -> None:
            self.name = name

        async def call(self, call, proceed):
            order.append(self.name)
            return await proceed()

    @effect(layers=[Named("own1"), Named("own2")])
    async def work() -> None:
        order.append("work")

    async with RunContext("r", layers=[Named("run1"), Named("run2")]):
        await work()

    assert order == ["run1", "run2", "own1", "own2", "work"]


async def test_layers_of_its_own_are_around_an_effect_also_outside_of_runs():
    @effect(layers=[Timeout(0.001)])
    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await hang()
