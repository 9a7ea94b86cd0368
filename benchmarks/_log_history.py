"""Timelines and chats for ``benchmarks/log.py``: states to be read at any moment, texts to be weighed."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyrsistent import PMap, PVector, pmap, pvector

from atlas import Atlas
from atlas.core.temporal_store import TemporalStore, Timeline
from atlas.providers.scripted import ScriptedProvider

KEYS = 1_000
TURNS, SAID = 400, 300
"""How many turns a chat has, and how many bytes each of the two says in each."""


# Any: what the keys of a state hold is of no interest here.
def set_key(state: PMap[str, Any], event: list[Any]) -> PMap[str, Any]:
    key, value = event
    return ALL_KEYS if key == "all" else state.set(key, value)


ALL_KEYS = pmap({f"key {number}": 0 for number in range(KEYS)})


def events(count: int) -> Iterator[list[Any]]:
    """Yield one event that sets all keys, so that the state is as large early as late; then others."""
    chance = random.Random(count)
    yield ["all", 0]
    for number in range(1, count):
        yield [f"key {chance.randrange(KEYS)}", number]


@contextmanager
def history(path: Path, count: int, *, together: int = 100) -> Iterator[TemporalStore]:
    """Open a store with a timeline of so many events, which set one of 1,000 keys each.

    Args:
        path: Where to.
        count: How many events.
        together: How many of them are appended by one call.
    """
    with TemporalStore(path) as store:
        timeline, waiting = fresh(store), []
        for number, event in enumerate(events(count), 1):
            waiting.append(event)
            if len(waiting) == together:
                timeline.append(*waiting)
                waiting.clear()
            if number % 1_000 == 0:
                store.flush()
                timeline.now()
        yield store


# Any: see above.
def fresh(store: TemporalStore, **options: Any) -> Timeline[PMap[str, Any]]:
    """Return the timeline as one sees it who has not read any of it yet."""
    return store.timeline("map", set_key, initial=pmap({"key 0": 0}), **options)


def readers(store: TemporalStore, count: int) -> dict[str, Callable[[], object]]:
    """Return ways to read a state, each at another moment every time."""
    chance = random.Random(count)
    entries = fresh(store).events(until=1) + fresh(store).events(after=count - 1)
    first, last = (entry.time.timestamp() for entry in (entries[0], entries[-1]))

    def as_of_time() -> object:
        moment = datetime.fromtimestamp(first + (last - first) * chance.random(), UTC)
        return fresh(store).at(time=moment)

    return {
        "now": lambda: fresh(store).now(),
        "as of a version": lambda: fresh(store).at(chance.randrange(1, count + 1)),
        "as of a time": as_of_time,
    }


def add_up(total: int, event: list[Any]) -> int:
    return total + event[1]


def rebuild_map(store: TemporalStore) -> object:
    """Compute the map from the first event, with no snapshot."""
    return fresh(store, snapshot=None).now()


def rebuild_sum(store: TemporalStore) -> object:
    """Compute a state that costs next to nothing: what is left is what the store costs."""
    return store.timeline("map", add_up, initial=0, snapshot=None).now()


class Floor:
    """The least it can cost: rows of SQLite, ``json.loads``, and the sum."""

    def __init__(self, path: Path, count: int) -> None:
        self.connection = sqlite3.connect(path)
        self.connection.execute("CREATE TABLE events (position INTEGER PRIMARY KEY, payload BLOB)")
        rows = ((json.dumps(event).encode(),) for event in events(count))
        self.connection.executemany("INSERT INTO events (payload) VALUES (?)", rows)
        self.connection.commit()

    def rebuild(self) -> object:
        total = 0
        for (payload,) in self.connection.execute("SELECT payload FROM events ORDER BY position"):
            total = add_up(total, json.loads(payload))
        return total


# -- chats ----------------------------------------------------------------------------------------


def said() -> list[tuple[str, str]]:
    """Return what was asked and answered: words of a vocabulary, as hard to compress as a language."""
    chance = random.Random(400)
    letters = "eeeeetttaaaooinnsshrrdlucmfwyp"
    words = ["".join(chance.choices(letters, k=chance.randrange(2, 10))) for _ in range(3_000)]

    def text() -> str:
        found = ""
        while len(found) < SAID:
            found += f"{chance.choice(words)} "
        return found[: SAID - 1] + "."

    return [(text(), text()) for _ in range(TURNS)]


def add(state: PVector[Any], event: list[str]) -> PVector[Any]:
    return state.append(event)


def chat_timeline(path: Path) -> None:
    """Keep a chat as a timeline whose state is the list of what was said; a commit per message."""
    with TemporalStore(path) as store:
        chat = store.timeline("chat", add, initial=pvector())
        for question, answer in said():
            chat.append(["user", question]).wait()
            chat.append(["assistant", answer]).wait()
            chat.now()


def chat_app(path: Path) -> None:
    """Let an application keep a chat: every token, request and result that crosses its bus."""
    asyncio.run(converse(path))


async def converse(path: Path) -> None:
    turns = said()
    provider = ScriptedProvider([answer for _, answer in turns])
    async with Atlas(path, provider=provider) as app:
        conversation = app.conversation()
        for question, _ in turns:
            async for _ in conversation.chat(question):
                pass
