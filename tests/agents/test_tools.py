"""Tools: what a model is told of a function, and what the function gets to see."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import pytest

from atlas.agents import Tool, tool
from atlas.errors import ConfigurationError, SchemaError, ValidationError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Place:
    city: str
    zip: int = 0


@tool
def everything(  # noqa: PLR0917
    amount: float,
    count: int,
    names: list[str],
    where: Place,
    colour: Colour = Colour.RED,
    unit: Literal["m", "km"] = "m",
    more: dict[str, list[int]] | None = None,
) -> str:
    """Do everything at once.

    It takes all kinds.

    Args:
        amount: How much,
            at most.
        count (int): How many.

    Returns:
        Nothing of interest.
    """
    return f"{amount} {count} {names} {where} {colour} {unit} {more}"


def test_the_signature_is_the_schema_and_the_docstring_the_description() -> None:
    schema: Any = everything.schema

    assert everything.spec.description == "Do everything at once.\n\nIt takes all kinds."
    assert schema["required"] == ["amount", "count", "names", "where"]
    assert schema["properties"]["amount"] == {"type": "number", "description": "How much, at most."}
    assert schema["properties"]["count"] == {"type": "integer", "description": "How many."}
    assert schema["properties"]["colour"]["enum"] == ["red", "blue"]
    assert schema["properties"]["unit"] == {"enum": ["m", "km"], "default": "m"}
    assert json.loads(everything.spec.parameters) == schema


def test_arguments_come_as_they_are_annotated() -> None:
    given = everything.parse(
        '{"amount": 2, "count": 3, "names": ["a"], "where": {"city": "Rome"}, "colour": "blue",'
        ' "more": {"x": [1]}}'
    )

    assert given == {
        "amount": 2.0,
        "count": 3,
        "names": ["a"],
        "where": Place("Rome"),
        "colour": Colour.BLUE,
        "unit": "m",
        "more": {"x": [1]},
    }
    assert type(given["more"]["x"]) is list


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ('{"amount": "2"}', "amount"),
        ("{}", "amount"),
        ('{"amount": 1, "currency": "USD", "tip": 1}', "tip"),
        ('{"amount": NaN}', "amount"),
        ("[1]", "object"),
        ("[" * 100_000, "nested less deeply"),
        ('{"amount": 1', "JSON"),
    ],
)
def test_what_does_not_fit_never_reaches_the_function(arguments: str, named: str) -> None:
    @tool
    def convert(amount: float, currency: str = "EUR") -> float:
        raise AssertionError("reached")

    with pytest.raises(ValidationError, match=named):
        convert.parse(arguments)


def test_a_tool_is_still_the_function() -> None:
    @tool(permission="write")
    def add(one: int, other: int) -> int:
        "Add."
        return one + other

    assert add(1, 2) == 3
    assert (add.name, add.declared, add.needs_approval) == ("add", "external", False)


def act() -> None: ...


def test_permissions_say_what_a_repetition_would_do() -> None:
    assert Tool(act).declared == "idempotent"
    assert Tool(act, permission="network", idempotent=True).declared == "idempotent"
    assert Tool(act, permission="dangerous").needs_approval
    assert not Tool(act, permission="dangerous", approval=False).needs_approval


def test_what_no_model_could_be_told_is_refused_where_it_is_written() -> None:
    with pytest.raises(SchemaError, match="no annotation"):
        tool(name="same")(lambda x: x)
    with pytest.raises(SchemaError, match=r"\*rest"):

        @tool
        def some(*rest: int) -> None: ...

    with pytest.raises(SchemaError, match="no message can hold"):

        @tool
        def odd(thing: threading.Thread) -> None: ...

    with pytest.raises(SchemaError, match="'x' of square .* Take the / out"):

        @tool
        def square(x: int, /) -> int: ...

    with pytest.raises(ConfigurationError, match="'count' is a generator function"):

        @tool
        def count() -> Iterator[int]:
            yield 1

    for setting, wrong in (
        ("timeout", "1"),
        ("description", 5),
        ("layers", 5),
        ("layers", [5]),
        ("approval", "yes"),
    ):
        with pytest.raises(ConfigurationError, match=rf"Tool 'act': (a )?{setting[:5]}\w* is "):
            Tool(act, **{setting: wrong})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="is a tool already"):
        Tool(Tool(act))

    with pytest.raises(ConfigurationError, match="cannot be called"):

        @tool(name="what is it")
        def fine() -> None: ...


@dataclass(frozen=True)
class Folder:
    name: str
    inside: tuple[Folder, ...] = ()


def test_a_dataclass_may_hold_others_of_its_kind() -> None:
    @tool
    def count(folder: Folder, other: Folder | None = None) -> int:
        return len(folder.inside)

    inner = count.schema["$defs"]["Folder"]["properties"]["inside"]  # type: ignore[call-overload, index]
    assert list(count.schema["$defs"]) == ["Folder"]  # type: ignore[arg-type]
    assert inner["items"] == {"$ref": "#/$defs/Folder"}
    given = count.parse('{"folder": {"name": "a", "inside": [{"name": "b"}]}}')
    assert given["folder"] == Folder("a", (Folder("b"),))


@dataclass(frozen=True)
class Basket:
    items: list[str]
    inside: dict[str, Basket] = field(default_factory=dict)


def test_what_a_dataclass_promises_is_in_it_at_any_depth() -> None:
    @tool
    def count(baskets: list[Basket], other: Basket | None = None) -> int:
        return len(baskets)

    given = count.parse(
        '{"baskets": [{"items": ["a"], "inside": {"x": {"items": []}}}], "other": {"items": ["b"]}}'
    )

    assert given == {
        "baskets": [Basket(["a"], {"x": Basket([])})],
        "other": Basket(["b"]),
    }


def test_what_a_union_or_a_tuple_promises_is_in_it() -> None:
    @tool
    def look(
        either: list[int] | dict[str, int] | None,
        pair: tuple[str, list[int]],
        many: tuple[set[int], ...],
    ) -> None: ...

    given = look.parse('{"either": {"a": 1}, "pair": ["x", [1]], "many": [[1], [2]]}')
    assert given == {"either": {"a": 1}, "pair": ("x", [1]), "many": ({1}, {2})}
    assert type(given["either"]) is dict
    assert look.parse('{"either": [1], "pair": ["x", []], "many": []}')["either"] == [1]
    assert look.parse('{"either": null, "pair": ["x", []], "many": []}')["either"] is None


class Scale:
    """Multiply."""

    def __call__(self, x: int) -> int:
        return 2 * x


def multiply(by: int, x: int) -> Later:  # type: ignore[name-defined]  # noqa: F821  as under TYPE_CHECKING
    """Multiply two numbers."""
    return by * x


@pytest.mark.parametrize("function", [Scale(), functools.partial(multiply, 2)])
async def test_whatever_can_be_called_is_a_tool(function: Callable[[int], int]) -> None:
    made = Tool(function)

    assert made.name in ("Scale", "multiply")
    assert made.description.startswith("Multiply")
    assert made.schema["required"] == ["x"]
    assert await made.perform(made.parse('{"x": 21}'), print) == "42"


def test_what_has_no_signature_is_refused() -> None:
    with pytest.raises(SchemaError, match="signature of int cannot be read"):
        Tool(int)


async def test_a_plain_function_runs_in_a_thread_and_results_become_text() -> None:
    threads: list[str] = []

    @tool
    def slow(x: int) -> dict[str, object]:
        threads.append(threading.current_thread().name)
        return {"x": x, "place": Place("Rome")}

    content = await slow.perform({"x": 1}, lambda text: None)

    assert json.loads(content) == {"x": 1, "place": {"city": "Rome", "zip": 0}}
    assert threads != [threading.main_thread().name]


async def test_plain_functions_that_never_return_hold_no_other_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "atlas.agents.threads")
    let_go = threading.Event()

    @tool(timeout=0.02)
    def never(x: int) -> int:
        let_go.wait()
        return x

    @tool
    def quick() -> str:
        return "quick"

    stuck = [never.perform({"x": number}, print) for number in range(100)]
    ended = await asyncio.gather(*stuck, return_exceptions=True)
    before = threading.active_count()
    assert [type(each) for each in ended] == [TimeoutError] * 100
    assert await quick.perform({}, print) == "quick"

    let_go.set()
    while len(caplog.records) < 64:  # of which that many were begun at once, at least
        await asyncio.sleep(0)
    assert "never ended when nobody waited for it any more" in caplog.text
    assert await asyncio.gather(*(quick.perform({}, print) for _ in range(50))) == ["quick"] * 50
    assert threading.active_count() <= before + 1  # the same threads again


async def test_a_plain_function_sees_the_context_of_who_calls_it() -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")

    @tool
    def tell() -> str:
        return who.get()

    who.set("me")
    assert await tell.perform({}, print) == "me"


END = """
import asyncio, threading
from atlas import EventBus
from atlas.agents import Controller, scripted_agent, tool
from atlas.providers.messages import ToolCallPart

@tool(timeout=0.05)
def never() -> None:
    threading.Event().wait()

calls = [ToolCallPart("c", "never", "{}")]
agent = scripted_agent("one", [calls, "I give up."], tools=[never])
print(asyncio.run(Controller([agent], bus=EventBus()).delegate("Go.")).text)
"""


def test_a_program_ends_though_a_tool_never_returns() -> None:
    done = subprocess.run(
        [sys.executable, "-c", END], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "I give up.\n", "")


async def test_what_a_plain_function_leaves_to_be_awaited_is_awaited() -> None:
    async def later(x: int) -> int:
        return x + 1

    assert await tool(name="wrapped")(_passing_on(later)).perform({"x": 1}, print) == "2"


def _passing_on(function: Callable[[int], Awaitable[int]]) -> Callable[[int], Awaitable[int]]:
    def passing_on(x: int) -> Awaitable[int]:
        return function(x)

    return passing_on


async def test_a_generator_tells_its_progress_and_gives_its_last_word() -> None:
    @tool
    async def count(to: int) -> AsyncIterator[str]:
        for number in range(to):
            yield f"{number} of {to}"
        yield "done"

    told: list[str] = []

    assert await count.perform({"to": 2}, told.append) == "done"
    assert told == ["0 of 2", "1 of 2"]


async def test_a_tool_that_takes_too_long_is_given_up() -> None:
    @tool(timeout=0.01)
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    with pytest.raises(TimeoutError, match="longer than"):
        await never.perform({}, lambda text: None)
