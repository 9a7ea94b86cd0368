import asyncio
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from atlas.core.event_bus import EventBus
from atlas.core.log.memory import MemoryEngine
from atlas.core.log.records import NewRecord, Snapshot
from atlas.core.messages import Event, message, value
from atlas.core.persistent import PMap, pmap, pvector
from atlas.core.schema.migrations import upcaster
from atlas.core.temporal_store import (
    DataclassEvents,
    SnapshotPolicy,
    TemporalStore,
    Timeline,
)
from atlas.core.transitions import Transitions
from atlas.errors import (
    ConfigurationError,
    ErasedError,
    LogClosedError,
    LogFormatError,
    LogUnavailableError,
    SchemaError,
    StateError,
    TransitionError,
    UnknownMessageError,
    UnknownNameError,
    UnknownVersionError,
    VersionConflictError,
)

from support.postgres import PostgresServer, postgres_server

__all__ = ["postgres_server"]


@message("shop.item_added")
class ItemAdded(Event):
    item: str
    price: int = 1


@message("shop.refunded")
class Refunded(Event):
    item: str


@dataclass(frozen=True)
class Cart:
    items: tuple[str, ...] = ()
    total: int = 0


shopping = Transitions[Cart]()


@shopping.on(ItemAdded)
def add(cart: Cart, event: ItemAdded) -> Cart:
    return replace(cart, items=(*cart.items, event.item), total=cart.total + event.price)


@shopping.on(Refunded)
def refund(cart: Cart, event: Refunded) -> Cart:
    return replace(cart, items=tuple(item for item in cart.items if item != event.item))


def summed(total: int, number: int) -> int:
    return total + number


@pytest.fixture
def store() -> Any:
    with TemporalStore() as made:
        yield made


def cart_in(store: TemporalStore, name: str = "cart") -> Timeline[Cart]:
    return store.timeline(name, shopping, initial=Cart())


def filled(store: TemporalStore, count: int = 5) -> Timeline[Cart]:
    cart = cart_in(store)
    for number in range(count):
        cart.append(ItemAdded(f"item {number}")).wait()
    return cart


class Counting:
    """A transition that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, total: int, number: int) -> int:
        self.calls += 1
        return total + number


# -- appending and reading --


def test_the_state_follows_from_the_events(store: TemporalStore) -> None:
    cart = cart_in(store)
    assert (cart.version, cart.now()) == (0, Cart())

    assert cart.append(ItemAdded("tea", price=3), ItemAdded("milk")).wait() == 2
    assert cart.append(Refunded("milk"), expected_version=2).wait() == 3

    assert cart.now() == Cart(("tea",), 4)
    assert cart.current() == (3, Cart(("tea",), 4))
    assert [cart.at(version).items for version in range(4)] == [
        (),
        ("tea",),
        ("tea", "milk"),
        ("tea",),
    ]


def test_a_conflict_tells_both_versions_and_stores_nothing(store: TemporalStore) -> None:
    cart = filled(store, 3)

    with pytest.raises(VersionConflictError) as caught:
        cart.append(ItemAdded("a"), ItemAdded("b"), expected_version=1).wait()

    assert (caught.value.expected, caught.value.actual) == (1, 3)
    assert cart.version == 3


async def test_appending_is_awaitable(store: TemporalStore) -> None:
    cart = cart_in(store)

    versions = await asyncio.gather(*(cart.append(ItemAdded(str(n))) for n in range(20)))

    assert sorted(versions) == list(range(1, 21))


def test_threads_append_without_losing_anything(tmp_path: Path) -> None:
    with TemporalStore(tmp_path / "log.db", durability="lazy") as store:
        total = store.timeline("total", summed, initial=0)

        def work() -> None:
            for _ in range(25):
                total.append(1, 1).wait()
                total.now()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert total.current() == (200, 200)


def test_entries_tell_version_time_and_position(store: TemporalStore) -> None:
    cart = filled(store, 3)

    entries = cart.events(after=1)

    assert [(entry.version, entry.event.item) for entry in entries] == [
        (2, "item 1"),
        (3, "item 2"),
    ]
    assert entries[0].time <= entries[1].time <= datetime.now(UTC)
    assert entries[0].position < entries[1].position
    assert cart.events(after=1, until=1) == []


def test_a_published_message_keeps_its_metadata(store: TemporalStore) -> None:
    with EventBus() as bus:
        sent = bus.publish(ItemAdded("tea"), source="till", headers={"a": "b"}).message
    cart = cart_in(store)

    cart.append(sent, sent, expected_version=0).wait()
    cart.append(sent).wait()

    for entry in cart.events():
        assert entry.event == sent
        assert entry.event.meta.id == sent.meta.id
        assert entry.event.meta.source == "till"
        assert entry.event.meta.headers == {"a": "b"}
        assert entry.wall_ns == sent.meta.time_ns


@pytest.mark.parametrize("event", [1, "text", None, [1, {"a": 2.5}], {"$": "x"}, True, {}])
def test_json_values_are_events(store: TemporalStore, event: object) -> None:
    values = store.timeline("values")

    values.append(event, event, expected_version=0).wait()
    values.append(event).wait()

    assert [entry.event for entry in values.events()] == [event] * 3
    assert {type(entry.event) for entry in values.events()} == {type(event)}


@pytest.mark.parametrize(
    "event", [object(), float("nan"), {1: 2}, (1,), {"a": {1, 2}}, float("-inf"), Cart()]
)
def test_what_cannot_be_read_back_is_refused(store: TemporalStore, event: object) -> None:
    with pytest.raises(SchemaError, match="cannot be stored"):
        store.timeline("values").append(event)


def test_dataclasses_are_events_by_a_codec(store: TemporalStore) -> None:
    @dataclass(frozen=True)
    class Moved:
        by: tuple[int, int]
        when: datetime

    def move(at: tuple[int, int], event: Moved) -> tuple[int, int]:
        return at[0] + event.by[0], at[1] + event.by[1]

    event = Moved((1, 2), datetime(2026, 1, 1, tzinfo=UTC))
    place = store.timeline("place", move, initial=(0, 0), events=DataclassEvents(Moved))
    place.append(event, event, expected_version=0).wait()

    assert place.now() == (2, 4)
    assert place.events()[0].event == event
    with pytest.raises(SchemaError, match="add its class"):
        place.append(Cart())
    with pytest.raises(LogFormatError, match="'place'.*add its class"):
        store.timeline("place", events=DataclassEvents(Cart)).events()


def test_old_versions_of_events_are_led_up_to_todays() -> None:
    engine = MemoryEngine()
    old = b'{"amount":5}'
    engine.append([NewRecord("account", "bank.paid@1", old), NewRecord("account", "$batch@1", b'[["bank.paid@1",{"amount":2},{"amount":3}]]', 3)]).wait()  # fmt: skip

    @message("bank.paid", version=2)
    class Paid(Event):
        cents: int

    @upcaster("bank.paid", version=1)
    def to_cents(fields: dict[str, Any]) -> dict[str, Any]:
        return {"cents": fields["amount"] * 100}

    account = TemporalStore(engine).timeline("account", lambda s, e: s + e.cents, initial=0)

    assert account.now() == 1000
    assert account.events()[0].event == Paid(500)


def test_an_unknown_type_names_timeline_version_and_mend() -> None:
    engine = MemoryEngine()
    engine.append([NewRecord("cart", "shop.item_aded@1", b"{}")]).wait()

    with pytest.raises(UnknownMessageError, match=r"Version 1 .*'cart'.*Import the module"):
        cart_in(TemporalStore(engine)).now()


def test_a_stream_that_is_no_timeline_is_refused() -> None:
    engine = MemoryEngine()
    engine.append([NewRecord("pages", "$json@1", b"1", version=7)]).wait()

    with pytest.raises(LogFormatError, match="no timeline"):
        TemporalStore(engine).timeline("pages", summed, initial=0).now()


def test_a_failing_transition_names_timeline_and_version(store: TemporalStore) -> None:
    ratio = store.timeline("ratio", lambda state, event: state / event, initial=8.0)
    ratio.append(2, 0, 4).wait()

    with pytest.raises(
        TransitionError, match=r"'ratio' raised ZeroDivisionError.*at version 1"
    ) as e:
        ratio.now()

    assert (e.value.version, e.value.event) == (1, 0)
    assert ratio.at(1) == 4


def test_a_transition_that_forgets_to_return_is_refused(store: TemporalStore) -> None:
    broken: Any = lambda state, event: None  # noqa: E731
    total = store.timeline("total", broken, initial=0)
    total.append(1).wait()

    with pytest.raises(TransitionError, match="`return` may be missing"):
        total.now()


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda s: s.timeline("$cart"), ConfigurationError),
        (lambda s: s.timeline(""), ConfigurationError),
        (lambda s: s.timeline(7), ConfigurationError),
        (lambda s: s.timeline("nul\0"), ConfigurationError),
        (lambda s: s.timeline("cart", initial=3), ConfigurationError),
        (lambda s: s.timeline("cart", 3, initial=3), ConfigurationError),
        (lambda s: s.timeline("cart").now(), ConfigurationError),
        (lambda s: cart_in(s).append(), ConfigurationError),
        (lambda s: cart_in(s).append(1, expected_version=-1), ConfigurationError),
        (lambda s: cart_in(s).append(1, expected_version="3"), ConfigurationError),
        (lambda s: cart_in(s).append(1, expected_version=True), ConfigurationError),
        (lambda s: cart_in(s).at(), ConfigurationError),
        (lambda s: cart_in(s).at(1, label="x"), ConfigurationError),
        (lambda s: cart_in(s).at(1), UnknownVersionError),
        (lambda s: cart_in(s).at(-1), ConfigurationError),
        (lambda s: cart_in(s).at(1.5), ConfigurationError),
        (lambda s: cart_in(s).at(label="x"), UnknownNameError),
        (lambda s: cart_in(s).at(time=datetime(2026, 1, 1)), ConfigurationError),  # noqa: DTZ001
        (lambda s: cart_in(s).at(time="now"), ConfigurationError),
        (lambda s: cart_in(s).label(""), ConfigurationError),
        (lambda s: cart_in(s).label("x", at=1), UnknownVersionError),
        (lambda s: cart_in(s).fork("$x"), ConfigurationError),
        (lambda s: cart_in(s).fork("x", at=1), UnknownVersionError),
        (lambda s: cart_in(s).erase(1), UnknownVersionError),
        (lambda s: s.erase("cart", until=1), ConfigurationError),
        (lambda s: s.keep(cart_in(s)), ConfigurationError),
        (lambda s: s.keep(cart_in(s), last=-1), ConfigurationError),
        (lambda s: s.keep(cart_in(s), days=float("nan")), ConfigurationError),
        (lambda s: s.export("x", timelines=["nothing"]), ConfigurationError),
        (lambda s: SnapshotPolicy(events=0), ConfigurationError),
        (lambda s: DataclassEvents(int), ConfigurationError),
    ],
)
def test_bad_input_is_refused_in_words(store: TemporalStore, act: Any, error: type) -> None:
    with pytest.raises(error) as caught:
        act(store)

    assert len(str(caught.value)) > 30


def test_a_long_batch_is_atomic_and_packed() -> None:
    engine = MemoryEngine()
    total = TemporalStore(engine).timeline("total", summed, initial=0)

    assert total.append(*range(1000), expected_version=0).wait() == 1000

    assert len(engine.read("total")) == 16
    assert [entry.event for entry in total.events()] == list(range(1000))
    assert [total.at(version) for version in (63, 64, 65, 999)] == [
        sum(range(version)) for version in (63, 64, 65, 999)
    ]
    assert total.erase(64) == 1


# -- every engine --


@pytest.fixture(params=["file", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return str(tmp_path / "log.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_log()


def test_every_engine_keeps_timelines(address: str, tmp_path: Path) -> None:
    with TemporalStore(address) as store:
        cart = filled(store, 300)
        batch = [ItemAdded(f"more {number}", price=2) for number in range(50)]
        assert cart.append(*batch, expected_version=300).wait() == 350
        with pytest.raises(VersionConflictError) as caught:
            cart.append(*batch, expected_version=300).wait()
        assert (caught.value.expected, caught.value.actual) == (300, 350)
        assert cart.now().total == 400
        cart.label("half", at=150).wait()
        fork = cart.fork("fork", at=320)
        fork.append(ItemAdded("forked")).wait()
        entries = cart.events()
        times = [cart.version_at(time=entry.time) for entry in entries[::37]]
        assert times == [
            max(each.version for each in entries if each.time <= entry.time)
            for entry in entries[::37]
        ]
        assert [entry.version for entry in fork.follow(after=318, until=321)] == [319, 320, 321]
        cart.erase(200)

    with TemporalStore(address) as store:
        cart, fork = cart_in(store), cart_in(store, "fork")
        assert cart.now().total == 400
        assert cart.current() == (350, cart.at(350))
        assert (fork.now().total, fork.now().items[-1]) == (341, "forked")
        assert (cart.labels, cart.forks) == ({"half": 150}, {"fork": 320})
        with pytest.raises(ErasedError):
            cart.at(label="half")
        assert store.verify().ok
        exported = store.export(tmp_path / "log.jsonl")

    with TemporalStore() as copy:
        assert copy.import_(tmp_path / "log.jsonl") == exported
        assert cart_in(copy, "fork").now().total == 341


# -- time, labels, forks --


def test_a_time_finds_the_last_event_until_then(store: TemporalStore) -> None:
    cart = filled(store, 40)
    entries = cart.events()

    for entry in entries:
        version = cart.version_at(time=entry.time)
        assert entry.version <= version
        assert version == max(e.version for e in entries if e.time <= entry.time)
    assert cart.at(time=entries[0].time - timedelta(seconds=1)) == Cart()
    assert cart.at(time=datetime.now(UTC) + timedelta(days=1)) == cart.now()


def test_labels_find_versions_and_move(store: TemporalStore) -> None:
    cart = filled(store, 4)
    cart.label("early", at=1).wait()
    cart.label("late").wait()
    assert cart.at(label="early").items == ("item 0",)

    cart.label("early", at=2).wait()

    assert cart.labels == {"early": 2, "late": 4}
    assert cart.fork("other", at=3).labels == {"early": 2}


def test_forks_share_what_was_and_go_their_own_way(store: TemporalStore) -> None:
    cart = filled(store, 4)
    other = cart.fork("other", at=2)
    third = other.fork("third", at=1)
    assert third.forked_from == ("cart", 1)

    cart.append(ItemAdded("here")).wait()
    other.append(ItemAdded("there"), expected_version=2).wait()

    assert other.now().items == ("item 0", "item 1", "there")
    assert third.now().items == ("item 0",)
    assert cart.now().items[-1] == "here"
    assert cart.forks == {"other": 2, "third": 1}
    assert store.timelines() == ["cart", "other", "third"]
    with pytest.raises(VersionConflictError):
        cart.fork("third", at=3)


def test_a_fork_within_a_batch_has_only_what_it_shares(store: TemporalStore) -> None:
    cart = cart_in(store)
    cart.append(ItemAdded("a"), ItemAdded("b"), ItemAdded("c"), expected_version=0).wait()

    other = cart.fork("other", at=2)
    other.append(ItemAdded("d")).wait()

    assert [entry.event.item for entry in other.events()] == ["a", "b", "d"]
    assert [entry.version for entry in other.follow(until=3)] == [1, 2, 3]
    assert other.now().items == ("a", "b", "d")


def test_diff_works_in_both_directions(store: TemporalStore) -> None:
    cart = filled(store, 2)

    assert cart.diff(1) == (
        {"op": "add", "path": "/items/1", "value": "item 1"},
        {"op": "replace", "path": "/total", "value": 2},
    )
    assert cart.diff(2, 1)[0] == {"op": "remove", "path": "/items/1"}


# -- following --


def test_following_catches_up_then_goes_live(store: TemporalStore) -> None:
    cart = filled(store, 3)
    seen: list[int] = []
    caught_up = threading.Event()

    def follow() -> None:
        for entry in cart.follow(after=1, until=5):
            seen.append(entry.version)
            if entry.version == 3:
                caught_up.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert caught_up.wait(10)
    cart.append(ItemAdded("x"), ItemAdded("y"), ItemAdded("z")).wait()
    thread.join(10)

    assert seen == [2, 3, 4, 5]


async def test_following_on_a_loop(store: TemporalStore) -> None:
    cart = filled(store, 2)
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def follow() -> None:
        async for entry in cart.follow(after=1):
            seen.put_nowait(entry.version)

    followers = [asyncio.create_task(follow()) for _ in range(3)]
    for _ in followers:
        assert await seen.get() == 2
    await cart.append(ItemAdded("x"))
    for _ in followers:
        assert await asyncio.wait_for(seen.get(), 10) == 3

    followers[0].cancel()
    store.close()
    done = await asyncio.wait_for(asyncio.gather(*followers, return_exceptions=True), 10)
    assert isinstance(done[0], asyncio.CancelledError)
    assert done[1:] == [None, None]


async def test_a_follower_survives_trouble_of_the_log() -> None:
    class Troubled(MemoryEngine):
        troubles = 2

        def wait_beyond(self, position: int, timeout: float | None = None) -> bool:
            if self.troubles:
                self.troubles -= 1
                raise LogUnavailableError("The connection was lost.")
            return super().wait_beyond(position, timeout)

    with TemporalStore(Troubled()) as store:
        cart = filled(store, 1)
        follower = cart.follow()
        assert (await anext(follower)).version == 1
        next_one = asyncio.create_task(anext(follower))
        await cart.append(ItemAdded("x"))
        assert (await asyncio.wait_for(next_one, 10)).version == 2


def test_following_ends_when_closed_or_quiet(store: TemporalStore) -> None:
    cart = filled(store, 2)

    assert [entry.version for entry in cart.follow(timeout=0)] == [1, 2]
    with cart.follow() as follower:
        assert next(follower).version == 1
    assert list(follower) == []
    assert follower.version == 1


WRITER = """
import sys
from atlas.core.temporal_store import TemporalStore
with TemporalStore(sys.argv[1]) as store:
    total = store.timeline("total")
    for number in range(int(sys.argv[2])):
        total.append(number, number).wait()
"""


def test_another_process_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with TemporalStore(path) as store:
        total = store.timeline("total", summed, initial=0)
        total.append(1000).wait()
        assert total.now() == 1000
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(path), "10"])
        entries = list(total.follow(after=1, until=21, timeout=60))
        assert child.wait(60) == 0

        assert [entry.event for entry in entries] == [n for n in range(10) for _ in (1, 2)]
        assert total.now() == 1090


# -- snapshots --


def test_a_known_state_is_advanced_by_what_is_new_only(store: TemporalStore) -> None:
    counting = Counting()
    total = store.timeline("total", counting, initial=0)
    total.append(*range(100)).wait()
    total.now()
    total.append(7).wait()

    total.now()
    total.now()

    assert counting.calls == 101


def test_snapshots_save_most_of_the_way() -> None:
    engine = MemoryEngine()
    policy = SnapshotPolicy(events=10, share=0)
    first = TemporalStore(engine).timeline("total", Counting(), initial=0, snapshot=policy)
    for number in range(100):
        first.append(number).wait()
    first.now()
    counting = Counting()

    again = TemporalStore(engine).timeline("total", counting, initial=0, snapshot=policy)

    assert (again.now(), counting.calls) == (4950, 0)
    assert (again.at(57), counting.calls) == (sum(range(57)), 7)


def test_large_events_bring_a_snapshot_sooner() -> None:
    engine = MemoryEngine()
    store = TemporalStore(engine)
    total = store.timeline("size", _size, initial=0, snapshot=SnapshotPolicy(size=10_000, share=1))
    for _ in range(5):
        total.append("x" * 4000).wait()

    total.now()

    snapshot = engine.snapshot("size", total.view.label)
    assert snapshot is not None
    assert snapshot.version == 3


def _size(total: int, text: str) -> int:
    return total + len(text)


def test_a_damaged_snapshot_is_made_again() -> None:
    engine = MemoryEngine()
    policy = SnapshotPolicy(events=10, share=0)
    total = TemporalStore(engine).timeline("total", summed, initial=0, snapshot=policy)
    total.append(*range(30)).wait()
    total.now()
    good = engine.snapshot("total", total.view.label)
    assert good is not None
    for payload in (b"", b"rubbish", good.payload[:32] + b"rubbish", b"x" * 32 + good.payload[32:]):
        engine.save_snapshot(Snapshot("total", 30, total.view.label, payload))

        again = TemporalStore(engine).timeline("total", summed, initial=0, snapshot=policy)
        assert again.now() == 435


def test_snapshots_of_other_code_are_not_used() -> None:
    engine = MemoryEngine()
    policy = SnapshotPolicy(events=10, share=0)

    def opened(transition: Any, version: int = 1, initial: int = 0) -> Timeline[int]:
        return TemporalStore(engine).timeline(
            "total", transition, initial=initial, snapshot=policy, version=version
        )

    opened(summed).append(*range(20)).wait()
    assert opened(summed).now() == 190
    assert opened(lambda total, number: total + 2 * number).now() == 380
    assert opened(summed, initial=5).now() == 195
    tripled = partial(_times, factor=3)
    assert opened(tripled).now() == 570
    assert opened(partial(_times, factor=4)).now() == 760
    assert opened(tripled).view.label == opened(partial(_times, factor=3)).view.label
    assert opened(summed, version=2).view.label != opened(summed).view.label


def test_snapshots_of_other_transitions_are_not_used(store: TemporalStore) -> None:
    before, after = Transitions[Cart](), Transitions[Cart]()
    before.on(ItemAdded)(add)
    after.on(ItemAdded, Refunded)(add)

    labels = {store.timeline("cart", t, initial=Cart()).view.label for t in (before, after)}

    assert len(labels) == 2


def _times(total: int, number: int, factor: int) -> int:
    return total + factor * number


def test_a_checkpoint_keeps_the_state_now() -> None:
    engine = MemoryEngine()
    total = TemporalStore(engine).timeline("total", Counting(), initial=0)
    total.append(*range(100)).wait()
    assert total.checkpoint("here") == 100
    counting = Counting()

    again = TemporalStore(engine).timeline("total", counting, initial=0)

    assert (again.at(label="here"), counting.calls) == (4950, 0)
    assert again.rebuild() == 4950
    assert counting.calls == 100


@value
class Point:
    x: int
    y: float


@dataclass(frozen=True)
class Everything:
    point: Point
    numbers: PMap[Any, Any]
    when: datetime
    tags: frozenset[str]


@pytest.mark.parametrize(
    "state",
    [
        {"a": [1, 2.5, None, {"$": 3}]},
        [1, [2]],
        "text",
        Point(1, 2.0),
        pmap({"a": pvector([1, (2, 3)]), "b": pmap({(1, 2): b"x"})}),
        Everything(
            Point(1, 2.0), pmap({"k": Point(3, 4.0)}), datetime.now(UTC), frozenset({"b", "a"})
        ),
        ItemAdded("tea"),
    ],
)
def test_states_of_many_types_are_kept_as_snapshots(state: object) -> None:
    engine = MemoryEngine()
    total = TemporalStore(engine).timeline("state", _set, initial=state)
    total.append(1).wait()
    total.checkpoint()
    calls: list[int] = []
    again = TemporalStore(engine).timeline("state", _set, initial=state)

    found = again.now()

    assert (found, type(found), calls) == (state, type(state), [])
    assert engine.snapshot("state", again.view.label) is not None


def _set(state: object, _event: object) -> object:
    return state


def test_a_state_that_cannot_be_stored_asks_for_a_codec(store: TemporalStore) -> None:
    with pytest.raises(StateError, match="state_codec"):
        store.timeline("state", _set, initial=object())

    unkept = store.timeline("state", _set, initial=object(), snapshot=None)
    unkept.append(*range(300)).wait()
    assert type(unkept.now()) is object


# -- erasing and keeping --


def test_erasing_keeps_later_states_and_forks(store: TemporalStore) -> None:
    cart = filled(store, 6)
    early = cart.fork("early", at=2)
    states = [cart.at(version) for version in range(7)]

    assert cart.erase(4) == 4

    again = cart_in(store)
    assert [again.at(version) for version in (4, 5, 6)] == states[4:]
    assert cart_in(store, "early").now() == states[2] == early.now()
    with pytest.raises(ErasedError, match="'cart'.*no base state"):
        again.at(1)
    with pytest.raises(ErasedError, match="erased"):
        again.events()
    assert [entry.version for entry in again.events(after=4)] == [5, 6]
    assert store.verify().ok


def test_erasing_without_a_base_leaves_nothing(store: TemporalStore) -> None:
    cart = filled(store, 6)
    early = cart.fork("early", at=2)
    early.append(ItemAdded("x")).wait()
    early.checkpoint()
    cart.erase(2)

    assert store.erase("cart", until=4, base=False) == 2

    for name in ("cart", "early"):
        with pytest.raises(ErasedError):
            cart_in(store, name).now()
    assert store.verify().ok


def test_base_states_need_a_name_of_their_own(store: TemporalStore) -> None:
    total = store.timeline("total", lambda state, event: state + event, initial=0)
    total.append(1).wait()
    total.append(2).wait()
    with pytest.raises(ConfigurationError, match="view="):
        total.erase(1)

    named = store.timeline("total", summed, initial=0, view="total")
    named.erase(1)

    assert store.timeline("total", summed, initial=0, view="total").now() == 3
    with pytest.raises(ErasedError, match="there are such of 'total'"):
        store.timeline("total", summed, initial=0).now()


def test_what_is_shared_is_erased_where_it_is(store: TemporalStore) -> None:
    fork = filled(store, 3).fork("fork", at=2)
    fork.append(ItemAdded("a"), ItemAdded("b"), expected_version=2).wait()

    with pytest.raises(ConfigurationError, match="'cart'; erase them there"):
        fork.erase(1)
    with pytest.raises(ConfigurationError, match="erase until 4"):
        fork.erase(3)

    fork.erase(4)
    assert cart_in(store, "fork").now().items == ("item 0", "item 1", "a", "b")


def test_rules_of_keeping_are_a_plan_first(store: TemporalStore) -> None:
    cart = filled(store, 10)
    cart.label("refund", at=4).wait()

    plan = store.keep(cart, last=3)
    assert [(each.after, each.until) for each in plan.erasures] == [(0, 7)]
    assert (plan.events, cart.at(1).total) == (7, 1)
    assert store.keep(cart, last=3, label="refund").events == 3
    assert store.keep(cart, days=1).events == 0
    assert store.keep(cart, label="no such").events == 0

    assert store.keep(cart, last=3, label="refund").apply() == 3
    assert [(each.after, each.until) for each in store.keep(cart, last=3).erasures] == [(3, 7)]
    assert cart_in(store).now().total == 10


def test_keeping_by_days_goes_by_the_clock() -> None:
    class Clock:
        now = 1_700_000_000

        def time_ns(self) -> int:
            return self.now * 10**9

        def monotonic(self) -> float:
            return 0.0

    clock = Clock()
    with TemporalStore(clock=clock) as store:
        cart = filled(store, 3)
        clock.now += 10 * 86_400
        cart.append(ItemAdded("new")).wait()

        assert store.keep(cart, days=11).events == 0
        assert store.keep(cart, days=9).events == 3


# -- export and import --


def test_an_export_is_imported_as_it_was(store: TemporalStore, tmp_path: Path) -> None:
    cart = filled(store, 5)
    cart.label("middle", at=3).wait()
    cart.fork("other", at=4).append(ItemAdded("x"), ItemAdded("y"), expected_version=4).wait()
    cart.erase(2)
    seen: list[tuple[int, int]] = []
    exported = store.export(tmp_path / "log.jsonl", progress=lambda *each: seen.append(each))
    assert exported.timelines == ("cart", "other")
    assert seen

    with TemporalStore() as second:
        assert second.import_(tmp_path / "log.jsonl") == exported
        assert second.export(tmp_path / "again.jsonl").digest == exported.digest
        with pytest.raises(VersionConflictError):
            second.import_(tmp_path / "log.jsonl")

        for name in ("cart", "other"):
            mine, theirs = cart_in(store, name), cart_in(second, name)
            assert mine.current() == theirs.current()
            assert mine.labels == theirs.labels
            assert [e.time for e in mine.events(after=2)] == [
                e.time for e in theirs.events(after=2)
            ]
        moment = cart.events(after=3, until=4)[0].time
        assert cart_in(second).at(time=moment) == cart.at(time=moment)
        assert second.verify().ok


def test_one_timeline_is_exported_with_what_it_was_forked_from(
    store: TemporalStore, tmp_path: Path
) -> None:
    filled(store, 2).fork("other")
    store.timeline("unrelated").append(1).wait()

    exported = store.export(tmp_path / "log.jsonl", timelines=["other"])

    assert exported.timelines == ("cart", "other")


@pytest.mark.parametrize("line", range(1, 7))
def test_a_broken_line_is_named_and_nothing_is_stored(
    store: TemporalStore, tmp_path: Path, line: int
) -> None:
    filled(store, 4)
    path = tmp_path / "log.jsonl"
    store.export(path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    place = lines[line - 1].index(b":") + 3
    flipped = bytes([lines[line - 1][place] ^ 1])
    broken = lines[line - 1][:place] + flipped + lines[line - 1][place + 1 :]

    for content in (
        b"".join([*lines[: line - 1], broken, *lines[line:]]),
        b"".join([*lines[: line - 1], *lines[line:]]),
        b"".join([*lines[: line - 1], b"\xff\n", *lines[line:]]),
    ):
        path.write_bytes(content)
        with TemporalStore() as second:
            with pytest.raises(LogFormatError, match=rf"Line {line} of"):
                second.import_(path)
            assert second.timelines() == []


def test_a_closed_store_stays_closed(tmp_path: Path) -> None:
    store = TemporalStore(tmp_path / "log.db")
    cart = filled(store, 2)
    store.close()
    store.close()

    with TemporalStore(str(tmp_path / "log.db")) as again:
        assert cart_in(again).now() == Cart(("item 0", "item 1"), 2)
    assert cart.name == "cart"


async def test_a_store_is_an_async_context_manager() -> None:
    async with TemporalStore() as store:
        cart = cart_in(store)
        await cart.append(ItemAdded("tea"))
        assert await asyncio.to_thread(cart.now) == Cart(("tea",), 1)


def test_what_no_log_can_hold_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with TemporalStore(str(tmp_path / "t.db")) as store:
        counted = store.timeline("a", lambda state, _event: state + 1, initial=0)
        counted.append(1).wait()
        cyclic: list[object] = []
        cyclic.append(cyclic)

        with pytest.raises(SchemaError, match="holds itself"):
            counted.append(cyclic).wait()
        with pytest.raises(UnknownVersionError, match="no log has so many"):
            counted.at(10**30)
        with pytest.raises(ConfigurationError, match="is a folder"):
            store.export(str(tmp_path))
        with pytest.raises(LogUnavailableError, match="cannot be written"):
            store.export(str(tmp_path / "none" / "file"))
        assert counted.now() == 1
    assert not list(tmp_path.parent.glob("*.part"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_the_log_anew_and_the_parents_stays_as_it_is(
    address: str,
) -> None:
    with TemporalStore(address) as store:
        numbers = store.timeline("numbers", lambda total, number: total + number, initial=0)
        numbers.append(1).wait()
        numbers.append(2)  # on its way: the parent stores it, once

        def refused(use: Callable[[], object]) -> str:
            try:
                return repr(use())
            except LogClosedError:
                return "refused"

        def child() -> list[str]:
            old = [refused(numbers.now), refused(lambda: numbers.append(100).wait())]
            store.close()
            with TemporalStore(address) as own:
                return [*old, refused(lambda: own.timeline("numbers").append(4).wait() > 1)]

        told = in_a_forked_process(child)
        numbers.append(8).wait()

        assert told == ["refused", "refused", "True"]
        assert numbers.now() == 15
        assert store.verify().ok


def in_a_forked_process(do: Callable[[], object]) -> object:
    """Return what a function returns in a process forked from this one."""
    ends = os.pipe()
    with warnings.catch_warnings():
        # 3.12 and later warn of locks that threads may hold, which is what this is about
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        try:
            os.write(ends[1], json.dumps(do()).encode())
        finally:
            os._exit(0)
    os.close(ends[1])
    with open(ends[0], "rb") as pipe:  # noqa: PTH123 - there is no path
        told = pipe.read()
    os.waitpid(process, 0)
    return json.loads(told)


def test_an_export_that_is_broken_off_leaves_what_was_there(tmp_path: Path) -> None:
    def interrupted(_done: int, _all: int) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "all.jsonl"
    file.write_text("the one of before")
    with TemporalStore() as store:
        store.timeline("numbers").append(1, 2, 3).wait()
        with pytest.raises(KeyboardInterrupt):
            store.export(file, progress=interrupted)

    assert [each.name for each in tmp_path.iterdir()] == ["all.jsonl"]
    assert file.read_text() == "the one of before"


def test_an_export_to_a_link_writes_what_it_leads_to_and_one_to_a_pipe_into_the_pipe(
    tmp_path: Path,
) -> None:
    file, link, pipe = tmp_path / "all.jsonl", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(file)
    os.mkfifo(pipe)
    with TemporalStore() as store, ThreadPoolExecutor(1) as other:
        store.timeline("numbers").append(1, 2, 3).wait()
        store.export(link)
        reader = other.submit(pipe.read_text)
        store.export(pipe)

    assert link.is_symlink()
    assert pipe.is_fifo()
    assert reader.result() == file.read_text()
