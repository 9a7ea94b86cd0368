"""The event bus without a loop: selecting, ordering, stamping, failing, remembering, ending."""

from __future__ import annotations

import functools
import gc
import logging
import re
import threading
import weakref

import blinker
import pytest

from atlas.core.causality import Links
from atlas.core.event_bus import EventBus, HandlerFailed
from atlas.core.messages import Command, Event, Message, message
from atlas.errors import (
    BusClosedError,
    ConfigurationError,
    HandlersFailedError,
    NotAMessageError,
    RecursionLimitError,
    SubscriptionError,
    ValidationError,
)
from atlas.testing import ManualClock, capture


@message("order.placed")
class OrderPlaced(Event):
    order_id: str = "A1"
    total: float = 1.0


@message("order.item.added")
class ItemAdded(Event):
    sku: str = "x"


@message("urgent.order.placed")
class UrgentOrderPlaced(OrderPlaced):
    hours: int = 1


@message("order.place")
class PlaceOrder(Command[str]):
    order_id: str = "A1"


@pytest.fixture
def bus():
    return EventBus()


@pytest.fixture
def seen():
    return []


def fail(_: Message) -> None:
    raise ValueError("on purpose")


# -- selecting ------------------------------------------------------------------------------------


def test_a_handler_of_a_class_receives_its_subclasses_too(bus, seen):
    bus.subscribe(OrderPlaced, seen.append)
    bus.publish(UrgentOrderPlaced())
    bus.publish(ItemAdded())

    assert seen == [UrgentOrderPlaced()]


def test_a_handler_of_event_receives_every_event_and_no_command(bus, seen):
    bus.subscribe(Event, seen.append)
    bus.publish(OrderPlaced())
    bus.publish(PlaceOrder())

    assert seen == [OrderPlaced()]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("order.placed", {"order.placed"}),
        ("order.*", {"order.placed", "order.place"}),
        ("order.**", {"order.placed", "order.place", "order.item.added"}),
        ("**.placed", {"order.placed", "urgent.order.placed"}),
        ("*.order.*", {"urgent.order.placed"}),
        ("**", {"order.placed", "order.place", "order.item.added", "urgent.order.placed"}),
        ("order.placed.**", {"order.placed"}),
        ("order", set()),
        ("ord*r.placed", None),
        ("order..placed", None),
        ("", None),
    ],
)
def test_a_pattern_selects_by_segments_of_the_name(bus, pattern, names):
    seen = []
    if names is None:
        with pytest.raises(SubscriptionError, match="is no pattern"):
            bus.subscribe(pattern, seen.append)
        return
    bus.subscribe(pattern, seen.append)
    for cls in (OrderPlaced, PlaceOrder, ItemAdded, UrgentOrderPlaced):
        bus.publish(cls())

    assert {item.message_name for item in seen} == names


def test_a_message_that_several_parts_of_a_selector_select_arrives_once(bus, seen):
    bus.subscribe((OrderPlaced, "order.*", Event), seen.append)
    bus.publish(OrderPlaced())

    assert seen == [OrderPlaced()]


@pytest.mark.parametrize("selector", [int, 3, None, (), (OrderPlaced, int), ["order.*"]])
def test_what_selects_no_messages_is_refused(bus, seen, selector):
    with pytest.raises(SubscriptionError):
        bus.subscribe(selector, seen.append)


def test_a_predicate_filters(bus, seen):
    bus.subscribe(OrderPlaced, seen.append, where=lambda event: event.total > 100)
    bus.publish(OrderPlaced(total=1.0))
    bus.publish(OrderPlaced(total=250.0))

    assert [event.total for event in seen] == [250.0]


def test_a_predicate_that_fails_counts_as_its_handler_failing(bus, seen):
    bus.subscribe(OrderPlaced, seen.append, where=lambda event: event.total / 0)
    bus.subscribe(OrderPlaced, seen.append, mode="observer", where=lambda event: event.total / 0)
    receipt = bus.publish(OrderPlaced())

    assert seen == []
    assert [type(error) for error in receipt.errors] == [ZeroDivisionError]
    bus.close()


# -- ordering and re-entrancy ---------------------------------------------------------------------


def test_plain_handlers_run_by_priority_then_in_the_order_subscribed(bus, seen):
    bus.subscribe(OrderPlaced, lambda _: seen.append("1st"))
    bus.subscribe("order.*", lambda _: seen.append("2nd"))
    bus.subscribe(OrderPlaced, lambda _: seen.append("late"), priority=-1)
    bus.subscribe(Event, lambda _: seen.append("urgent"), priority=10)
    bus.subscribe(OrderPlaced, lambda _: seen.append("3rd"))
    bus.publish(OrderPlaced())

    assert seen == ["urgent", "1st", "2nd", "3rd", "late"]


def test_plain_handlers_run_in_the_publishers_thread(bus, seen):
    bus.subscribe(OrderPlaced, lambda _: seen.append(threading.current_thread()))
    bus.publish(OrderPlaced())

    assert seen == [threading.current_thread()]


def test_what_a_plain_handler_publishes_is_delivered_before_its_publish_returns(bus, seen):
    def nested(_: OrderPlaced) -> None:
        seen.append("before")
        bus.publish(ItemAdded())
        seen.append("after")

    bus.subscribe(OrderPlaced, nested)
    bus.subscribe(ItemAdded, lambda _: seen.append("item"))
    bus.subscribe(OrderPlaced, lambda _: seen.append("second"))
    bus.publish(OrderPlaced())

    assert seen == ["before", "item", "after", "second"]


def test_a_message_reaches_those_who_were_subscribed_when_it_was_published(bus, seen):
    def change(_: OrderPlaced) -> None:
        seen.append("change")
        other.close()
        bus.subscribe(OrderPlaced, lambda _: seen.append("new"))

    bus.subscribe(OrderPlaced, change, once=True)
    other = bus.subscribe(OrderPlaced, lambda _: seen.append("other"))
    bus.publish(OrderPlaced())
    assert seen == ["change", "other"]
    bus.publish(OrderPlaced())

    assert seen == ["change", "other", "new"]


def test_once_is_once_even_when_the_handler_publishes_the_same(bus, seen):
    def again(event: OrderPlaced) -> None:
        seen.append(event)
        bus.publish(OrderPlaced())

    subscription = bus.subscribe(OrderPlaced, again, once=True)
    bus.publish(OrderPlaced())

    assert len(seen) == 1
    assert not subscription.is_open


def test_once_with_a_predicate_waits_for_the_first_that_fits(bus, seen):
    bus.subscribe(OrderPlaced, seen.append, once=True, where=lambda event: event.total > 5)
    for total in (1.0, 7.0, 9.0):
        bus.publish(OrderPlaced(total=total))

    assert [event.total for event in seen] == [7.0]


def test_one_handler_subscribed_twice_is_called_twice_and_fails_twice(bus):
    bus.subscribe(OrderPlaced, fail)
    bus.subscribe(OrderPlaced, fail, priority=1)

    assert len(bus.publish(OrderPlaced()).errors) == 2


def test_the_recursion_limit_fails_the_outermost_message_with_the_chain(bus):
    bus.subscribe(OrderPlaced, lambda _: bus.publish(ItemAdded()))
    bus.subscribe(ItemAdded, lambda _: bus.publish(OrderPlaced()))
    receipt = bus.publish(OrderPlaced())

    (error,) = receipt.errors
    assert isinstance(error, RecursionLimitError)
    assert error.chain[:3] == ("order.placed", "order.item.added", "order.placed")
    assert len(error.chain) == 66
    assert "order.item.added -> order.placed" in str(error)
    with pytest.raises(RecursionLimitError, match="without end"):
        receipt.wait(1)


def test_the_recursion_limit_does_not_multiply_when_handlers_publish_twice():
    bus = EventBus(max_depth=50)

    def twice(_: OrderPlaced) -> None:
        bus.publish(OrderPlaced())
        bus.publish(OrderPlaced())

    bus.subscribe(OrderPlaced, twice)

    assert isinstance(bus.publish(OrderPlaced()).errors[0], RecursionLimitError)


def test_nesting_within_the_limit_is_fine():
    bus = EventBus(max_depth=10)
    seen = []

    def count(event: OrderPlaced) -> None:
        seen.append(event.total)
        if event.total < 10:
            bus.publish(OrderPlaced(total=event.total + 1))

    bus.subscribe(OrderPlaced, count)

    assert bus.publish(OrderPlaced(total=0.0)).errors == ()
    assert len(seen) == 11


# -- stamping -------------------------------------------------------------------------------------


def test_publish_stamps_the_message(bus):
    clock = ManualClock(start=5.0)
    bus = EventBus(clock=clock)
    mine = OrderPlaced()
    first, second = bus.publish(mine).message, bus.publish(OrderPlaced()).message

    assert first is mine
    assert (first.meta.sequence, second.meta.sequence) == (1, 2)
    assert first.meta.time_ns == 5_000_000_000
    assert first.meta.id < second.meta.id
    assert first.meta.causation is None
    assert first.meta.correlation == first.meta.id
    assert first.meta.run is None
    assert dict(first.meta.headers) == {}


def test_publishing_a_published_message_publishes_a_copy(bus, seen):
    bus.subscribe(OrderPlaced, seen.append)
    first = bus.publish(OrderPlaced()).message
    second = bus.publish(first).message

    assert second == first
    assert second is not first
    assert [item.meta.sequence for item in seen] == [1, 2]


def test_what_handlers_publish_is_linked_to_what_they_handle(bus):
    bus.subscribe(OrderPlaced, lambda _: bus.publish(ItemAdded()))
    bus.subscribe(ItemAdded, lambda _: bus.publish(PlaceOrder()))
    with capture(bus) as seen:
        bus.publish(OrderPlaced(), run="r1", headers={"a": "b"}, source="shop")
        alone = bus.publish(PlaceOrder()).message

    order, item, place, _ = seen.messages
    assert item.meta.causation == order.meta.id
    assert place.meta.causation == item.meta.id
    assert {one.meta.correlation for one in (order, item, place)} == {order.meta.id}
    assert {one.meta.run for one in (order, item, place)} == {"r1"}
    assert (order.meta.source, item.meta.source) == ("shop", None)
    assert (dict(order.meta.headers), dict(item.meta.headers)) == ({"a": "b"}, {})
    assert alone.meta.causation is None


def test_the_cause_is_linked_across_buses(bus, seen):
    other = EventBus()
    other.subscribe(ItemAdded, seen.append)
    bus.subscribe(OrderPlaced, lambda _: other.publish(ItemAdded()))
    cause = bus.publish(OrderPlaced()).message

    assert seen[0].meta.causation == cause.meta.id


def test_causation_and_correlation_can_be_given_as_messages_or_ids(bus):
    cause = bus.publish(OrderPlaced(), run="r1").message
    by_message = bus.publish(ItemAdded(), causation=cause).message
    by_id = bus.publish(ItemAdded(), causation="id-1", correlation="id-2").message
    together = bus.publish(ItemAdded(), correlation=by_message).message

    assert by_message.meta.causation == cause.meta.id
    assert by_message.meta.correlation == cause.meta.id
    assert by_message.meta.run == "r1"
    assert (by_id.meta.causation, by_id.meta.correlation) == ("id-1", "id-2")
    assert together.meta.correlation == cause.meta.id
    assert together.meta.causation is None


def test_a_cause_that_was_never_published_is_refused(bus):
    with pytest.raises(ValidationError, match="a published message, or its id"):
        bus.publish(ItemAdded(), causation=OrderPlaced())


@pytest.mark.parametrize("headers", [{"a": 1}, {2: "b"}])
def test_headers_are_strings_by_strings(bus, headers):
    with pytest.raises(ValidationError, match="strings by strings"):
        bus.publish(ItemAdded(), headers=headers)


def test_a_refused_publish_leaves_no_gap_in_the_sequence(bus):
    with pytest.raises(ValidationError):
        bus.publish(ItemAdded(), headers={"a": 1})

    assert bus.publish(ItemAdded()).message.meta.sequence == 1


def test_scopes_nest_and_end(bus):
    with bus.scope(run="r1", source="outer", headers={"a": "1", "b": "1"}, correlation="c"):
        with bus.scope(source="inner", headers={"b": "2"}):
            inner = bus.publish(OrderPlaced()).message
        outer = bus.publish(OrderPlaced()).message
        given = bus.publish(OrderPlaced(), run="r2", headers={"a": "3"}).message
    after = bus.publish(OrderPlaced()).message

    assert (inner.meta.run, inner.meta.source) == ("r1", "inner")
    assert dict(inner.meta.headers) == {"a": "1", "b": "2"}
    assert (outer.meta.source, outer.meta.correlation) == ("outer", "c")
    assert (given.meta.run, dict(given.meta.headers)) == ("r2", {"a": "3", "b": "1"})
    assert (after.meta.run, after.meta.source) == (None, None)


def test_a_scope_inside_a_handler_keeps_the_cause(bus, seen):
    def handle(_: OrderPlaced) -> None:
        with bus.scope(source="handler"):
            bus.publish(ItemAdded())

    bus.subscribe(OrderPlaced, handle)
    bus.subscribe(ItemAdded, seen.append)
    cause = bus.publish(OrderPlaced(), run="r1").message

    assert seen[0].meta.causation == cause.meta.id
    assert (seen[0].meta.run, seen[0].meta.source) == ("r1", "handler")


# -- failing --------------------------------------------------------------------------------------


def test_a_failing_handler_does_not_stop_the_others(bus, seen):
    bus.subscribe(OrderPlaced, fail)
    bus.subscribe(OrderPlaced, seen.append)
    bus.subscribe(OrderPlaced, fail)
    bus.subscribe(OrderPlaced, seen.append)
    receipt = bus.publish(OrderPlaced())

    assert len(seen) == 2
    assert [str(error) for error in receipt.errors] == ["on purpose", "on purpose"]
    with pytest.raises(HandlersFailedError, match="2 handler") as raised:
        receipt.raise_for_errors()
    assert raised.value.__cause__ is receipt.errors[0]


def test_a_failure_becomes_an_event_caused_by_what_was_handled(bus, seen):
    bus.subscribe("bus.handler_failed", seen.append)
    bus.subscribe(OrderPlaced, fail)
    cause = bus.publish(OrderPlaced(), run="r1").message

    (failure,) = seen
    assert isinstance(failure, HandlerFailed)
    assert failure.handler.endswith("test_event_bus.fail")
    assert (failure.failed, failure.failed_id) == ("order.placed", cause.meta.id)
    assert (failure.error_type, failure.error) == ("builtins.ValueError", "on purpose")
    assert "on purpose" in failure.traceback
    assert (failure.meta.causation, failure.meta.run) == (cause.meta.id, "r1")


def test_what_the_first_handler_raises_has_nothing_of_the_bus_in_its_context():
    bus = EventBus()

    def fails(_: OrderPlaced) -> None:
        raise ValueError("no")

    bus.subscribe(HandlerFailed, lambda _: None)
    bus.subscribe(OrderPlaced, fails)
    (error,) = bus.publish(OrderPlaced()).errors

    assert error.__context__ is None


def test_a_failure_that_nobody_watches_is_logged(bus, caplog):
    bus.subscribe(OrderPlaced, fail)
    bus.publish(OrderPlaced())

    assert "test_event_bus.fail failed on OrderPlaced" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


def test_a_failing_handler_of_failures_ends_in_the_log_not_in_a_circle(bus, caplog, seen):
    bus.subscribe(HandlerFailed, fail)
    bus.subscribe(HandlerFailed, seen.append)
    bus.subscribe(OrderPlaced, fail)
    bus.publish(OrderPlaced())

    assert len(seen) == 1
    assert "failed on HandlerFailed" in caplog.text


def test_keyboard_interrupt_goes_through_to_the_publisher(bus, seen):
    def interrupt(_: OrderPlaced) -> None:
        raise KeyboardInterrupt

    bus.subscribe(OrderPlaced, interrupt)
    with pytest.raises(KeyboardInterrupt):
        bus.publish(OrderPlaced())

    bus.subscribe(ItemAdded, seen.append)
    assert bus.publish(ItemAdded()).message.meta.causation is None  # the cause was taken back


def test_a_strict_bus_raises_when_all_handlers_have_run(seen):
    bus = EventBus(strict=True)
    bus.subscribe(OrderPlaced, fail)
    bus.subscribe(OrderPlaced, seen.append)
    with pytest.raises(HandlersFailedError, match="on purpose"):
        bus.publish(OrderPlaced())

    assert len(seen) == 1


def test_the_unhandled_hook_sees_what_nobody_is_subscribed_to(seen):
    bus = EventBus(on_unhandled=seen.append)
    bus.publish(OrderPlaced())
    bus.subscribe(OrderPlaced, lambda _: None)
    bus.publish(OrderPlaced(order_id="B2"))
    bus.publish(ItemAdded())

    assert seen == [OrderPlaced(), ItemAdded()]


# -- what can be published and subscribed ---------------------------------------------------------


@pytest.mark.parametrize("thing", [None, "order.placed", {"order_id": "A1"}, OrderPlaced, 3.5])
def test_what_is_no_message_is_refused_by_its_type(bus, thing):
    with pytest.raises(
        NotAMessageError, match=f"is no message but a builtins.{type(thing).__name__}"
    ):
        bus.publish(thing)


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        ("no callable", "it is a str, not a callable"),
        (lambda: None, "called with one positional argument"),
        (lambda event, other: None, "called with one positional argument"),
        (lambda *, event: None, "called with one positional argument"),
    ],
)
def test_a_handler_that_cannot_be_called_with_a_message_is_refused_at_once(bus, handler, text):
    with pytest.raises(SubscriptionError, match=text):
        bus.subscribe(OrderPlaced, handler)


@pytest.mark.parametrize(
    "wrong",
    [
        {"priority": "high"},
        {"priority": 1.5},
        {"where": "total > 1"},
        {"mode": "reliably"},
        {"mode": "observer", "overflow": "forget"},
        {"mode": "observer", "merge": 1},
        {"mode": "observer", "droppable": True},
        {"capacity": 0},
        {"capacity": "many"},
        {"loop": "mine"},
        {"name": 7},
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_its_value(bus, wrong):
    name, value = list(wrong.items())[-1]
    with pytest.raises(SubscriptionError, match=re.escape(f"{name}={value!r}")):
        bus.subscribe(OrderPlaced, lambda _: None, **wrong)


@pytest.mark.parametrize(
    "misplaced",
    [
        {"merge": lambda one, other: other},
        {"droppable": lambda _: True},
        {"overflow": "drop_oldest"},
    ],
)
def test_what_only_observers_do_is_refused_for_a_reliable_handler(bus, misplaced):
    with pytest.raises(SubscriptionError, match="observer"):
        bus.subscribe(OrderPlaced, lambda _: None, **misplaced)


@pytest.mark.parametrize(
    "wrong",
    [
        {"history": "long"},
        {"history": 1.5},
        {"max_depth": 0},
        {"middleware": [5]},
        {"middleware": 5},
    ],
)
def test_a_bus_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        EventBus(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"headers": [1]}, {"source": 5}, {"run": 5}, {"correlation": 5}, {"causation": 5}]
)
def test_what_is_said_about_a_message_is_refused_by_its_value_when_it_makes_no_sense(bus, wrong):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(ValidationError, match=re.escape(f"publish.{name}: {value!r}")):
        bus.publish(OrderPlaced(), **wrong)


def test_a_generator_is_refused_as_a_handler(bus):
    def generator(event):
        yield event

    async def agenerator(event):
        yield event

    for handler in (generator, agenerator):
        with pytest.raises(SubscriptionError, match="is a generator"):
            bus.subscribe(OrderPlaced, handler)


def test_callables_of_all_kinds_are_handlers(bus, seen):
    class Handler:
        def __call__(self, event: OrderPlaced) -> None:
            seen.append("object")

        def method(self, event: OrderPlaced) -> None:
            seen.append("method")

    bus.subscribe(OrderPlaced, Handler())
    bus.subscribe(OrderPlaced, Handler().method)
    bus.subscribe(OrderPlaced, functools.partial(lambda text, _: seen.append(text), "partial"))
    bus.subscribe(OrderPlaced, lambda event, extra="default": seen.append(extra))
    bus.subscribe(OrderPlaced, seen.append)
    bus.publish(OrderPlaced())

    assert seen == ["object", "method", "partial", "default", OrderPlaced()]


def test_on_returns_the_function_unchanged(bus, seen):
    @bus.on(OrderPlaced, where=lambda event: event.total > 0)
    def handler(event: OrderPlaced) -> None:
        seen.append(event)

    handler(OrderPlaced(order_id="direct"))
    bus.publish(OrderPlaced())

    assert [event.order_id for event in seen] == ["direct", "A1"]


def test_a_subscription_is_a_context_manager_and_closing_twice_is_fine(bus, seen):
    with bus.subscribe(OrderPlaced, seen.append) as subscription:
        bus.publish(OrderPlaced())
        assert subscription.is_open
    subscription.close()
    bus.publish(OrderPlaced())

    assert len(seen) == 1
    assert not subscription.is_open
    assert "closed" in repr(subscription)


def test_a_weak_subscription_ends_with_its_object(bus, seen):
    class Screen:
        def show(self, event: OrderPlaced) -> None:
            seen.append(event)

    screen = Screen()
    subscription = bus.subscribe(OrderPlaced, screen.show, weak=True)
    bus.publish(OrderPlaced())
    gone = weakref.ref(screen)
    del screen
    gc.collect()
    bus.publish(OrderPlaced())
    bus.subscribe(ItemAdded, seen.append).close()

    assert gone() is None
    assert len(seen) == 1
    assert not subscription.is_open


def test_a_strong_subscription_is_the_default_and_keeps_its_object(bus, seen):
    class Screen:
        def show(self, event: OrderPlaced) -> None:
            seen.append(event)

    bus.subscribe(OrderPlaced, Screen().show)
    gc.collect()
    bus.publish(OrderPlaced())

    assert len(seen) == 1


# -- blinker --------------------------------------------------------------------------------------


def test_receivers_register_in_a_real_blinker_signal(bus, seen):
    signal = bus.signal(OrderPlaced)
    subscription = bus.subscribe(OrderPlaced, seen.append)

    assert isinstance(signal, blinker.Signal)
    assert list(signal.receivers_for(None)) == [subscription]
    assert signal.has_receivers_for(None)
    assert bus.signal(OrderPlaced) is signal


def test_what_is_sent_through_the_signal_reaches_subscriptions_until_they_are_closed(bus, seen):
    signal = bus.signal(OrderPlaced)
    subscription = bus.subscribe(OrderPlaced, seen.append)
    signal.send(OrderPlaced(order_id="A1", total=1.0))
    subscription.close()
    signal.send(OrderPlaced(order_id="A2", total=1.0))

    assert [event.order_id for event in seen] == ["A1"]
    assert not signal.has_receivers_for(None)


def test_a_receiver_connected_with_blinker_is_honoured_until_disconnected(bus, seen):
    def receiver(event):
        seen.append(event)

    bus.publish(OrderPlaced())
    bus.signal(OrderPlaced).connect(receiver)
    bus.publish(OrderPlaced(order_id="B2"))
    bus.signal(OrderPlaced).disconnect(receiver)
    bus.publish(OrderPlaced(order_id="C3"))

    assert [event.order_id for event in seen] == ["B2"]


def test_a_weak_blinker_receiver_is_not_kept_alive(bus, seen):
    class Receiver:
        def receive(self, event):
            seen.append(event)

    receiver = Receiver()
    bus.signal("order.*").connect(receiver.receive)
    bus.publish(OrderPlaced())
    del receiver
    gc.collect()
    bus.publish(OrderPlaced())

    assert len(seen) == 1


def test_disconnecting_a_subscription_with_blinker_ends_its_messages(bus, seen):
    subscription = bus.subscribe(OrderPlaced, seen.append)
    bus.publish(OrderPlaced())
    bus.signal(OrderPlaced).disconnect(subscription)
    bus.publish(OrderPlaced())

    assert len(seen) == 1


def test_a_message_sent_through_the_signal_reaches_its_subscriptions_stamped(bus, seen):
    bus.subscribe(OrderPlaced, seen.append)
    bus.signal(OrderPlaced).send(OrderPlaced())

    assert seen[0].meta.sequence == 1


# -- middleware -----------------------------------------------------------------------------------


def test_middleware_transforms_drops_and_passes(seen):
    def double(item: Message) -> Message:
        return OrderPlaced(total=item.total * 2) if isinstance(item, OrderPlaced) else item

    def no_items(item: Message) -> Message | None:
        return None if isinstance(item, ItemAdded) else item

    bus = EventBus(middleware=[double, no_items])
    bus.subscribe(Event, seen.append)
    dropped = bus.publish(ItemAdded())
    passed = bus.publish(OrderPlaced(total=4.0))

    assert seen == [OrderPlaced(total=8.0)]
    assert (dropped.dropped, dropped.done, dropped.errors) == (True, True, ())
    assert (passed.dropped, passed.message.meta.sequence) == (False, 1)
    assert len(bus.history) == 1


def test_middleware_may_return_a_message_of_another_class(seen):
    bus = EventBus(middleware=[lambda item: ItemAdded(sku="from " + item.message_name)])
    bus.subscribe(ItemAdded, seen.append)
    bus.publish(OrderPlaced())

    assert seen == [ItemAdded(sku="from order.placed")]


def test_middleware_of_two_arguments_sees_and_changes_what_is_said_about_a_message():
    said = []

    def trace(item: Message, links: Links) -> Message:
        said.append({**links, "headers": dict(links["headers"])})
        links["headers"]["trace"] = "t1"
        links["source"] = "traced"
        return item

    bus = EventBus(middleware=[trace, lambda item: item])
    with bus.scope(headers={"tenant": "a"}, source="shop", run="r1"):
        receipt = bus.publish(OrderPlaced(), headers={"user": "u"}, correlation="c1")
    plain = bus.publish(OrderPlaced())

    assert said[0] == {
        "headers": {"tenant": "a", "user": "u"},
        "source": "shop",
        "run": "r1",
        "correlation": "c1",
    }
    meta = receipt.message.meta
    assert meta.headers == {"tenant": "a", "user": "u", "trace": "t1"}
    assert (meta.source, meta.run, meta.correlation) == ("traced", "r1", "c1")
    assert plain.message.meta.headers == {"trace": "t1"}


def test_middleware_that_cannot_be_called_with_a_message_is_refused():
    with pytest.raises(ConfigurationError, match="three"):
        EventBus(middleware=[lambda one, two, three: one])


def test_middleware_that_fails_fails_the_publish(seen):
    bus = EventBus(middleware=[fail])
    with pytest.raises(ValueError, match="on purpose"):
        bus.publish(OrderPlaced())


def test_middleware_that_fails_on_failures_does_not_hide_them(seen, caplog):
    def no_failures(item: Message) -> Message:
        if isinstance(item, HandlerFailed):
            raise TypeError("not these")
        return item

    bus = EventBus(middleware=[no_failures])
    bus.subscribe(OrderPlaced, fail)
    bus.subscribe(OrderPlaced, seen.append)
    receipt = bus.publish(OrderPlaced())

    assert (len(seen), str(receipt.errors[0])) == (1, "on purpose")
    assert "on purpose" in caplog.text


# -- history, tree, metrics, explain --------------------------------------------------------------


def test_history_keeps_the_last_and_counts_what_it_evicted():
    bus = EventBus(history=3)
    for number in range(5):
        bus.publish(OrderPlaced(order_id=str(number)))

    assert [item.order_id for item in bus.history] == ["2", "3", "4"]
    assert [item.order_id for item in bus.history.since(4)] == ["3", "4"]
    assert (len(bus.history), bus.history.capacity, bus.history.evicted) == (3, 3, 2)
    newest = list(bus.history)[-1]
    assert bus.history.find(newest.meta.id) is newest
    assert bus.history.find("unknown") is None


def test_frequent_messages_do_not_push_rare_ones_out_of_a_history_with_shares():
    bus = EventBus(history={ItemAdded: 2, "order.placed": 3})
    for number in range(10):
        bus.publish(OrderPlaced(order_id=f"placed {number}"))
        bus.publish(ItemAdded(sku=f"added {number}"))
    bus.publish(PlaceOrder())

    assert [item.sku for item in bus.history if isinstance(item, ItemAdded)] == [
        "added 8",
        "added 9",
    ]
    assert [item.order_id for item in bus.history if isinstance(item, OrderPlaced)] == [
        "placed 7",
        "placed 8",
        "placed 9",
    ]
    assert [item.meta.sequence for item in bus.history] == [15, 17, 18, 19, 20, 21]
    assert [item.meta.sequence for item in bus.history.since(19)] == [19, 20, 21]
    assert bus.history.capacity == 2 + 3 + 1_024
    assert (len(bus.history), bus.history.evicted) == (6, 15)


def test_the_first_share_that_selects_a_message_counts():
    bus = EventBus(history={"**": 1, ItemAdded: 5})
    for number in range(3):
        bus.publish(ItemAdded(sku=str(number)))

    assert [item.sku for item in bus.history] == ["2"]


@pytest.mark.parametrize("shares", [{"order.*": -1}, {"order..": 3}, {int: 3}])
def test_a_share_that_makes_no_sense_is_refused(shares):
    with pytest.raises((ConfigurationError, SubscriptionError)):
        EventBus(history=shares)


def test_a_history_of_none_keeps_nothing_and_less_is_refused():
    bus = EventBus(history=0)
    bus.publish(OrderPlaced())

    assert list(bus.history) == []
    with pytest.raises(ConfigurationError, match="-1"):
        EventBus(history=-1)


def test_replay_calls_a_handler_with_what_is_kept(bus, seen):
    for number in range(3):
        bus.publish(OrderPlaced(order_id=str(number)))

    assert bus.replay(seen.append, since=2) == 2
    assert [item.order_id for item in seen] == ["1", "2"]


def test_the_tree_of_a_run_shows_what_caused_what(bus):
    bus.subscribe(OrderPlaced, lambda _: (bus.publish(ItemAdded()), bus.publish(PlaceOrder())))
    bus.publish(OrderPlaced(), run="r1", source="shop")
    bus.publish(ItemAdded())

    assert bus.tree("r1") == "\n".join(
        [
            "order.placed #1 from shop",
            "├─ order.item.added #2",
            "└─ order.place #3",
        ]
    )
    assert bus.tree().splitlines()[-1] == "order.item.added #4"


def test_explain_says_who_would_receive_in_which_order_and_why(bus):
    async def later(_: OrderPlaced) -> None: ...

    bus.subscribe("order.*", fail, name="audit")
    bus.subscribe(OrderPlaced, fail, priority=5, once=True, where=lambda _: True)
    bus.subscribe(OrderPlaced, later)
    bus.subscribe(Event, fail, mode="observer", name="screen")
    text = bus.explain(OrderPlaced)

    assert text.splitlines() == [
        "order.placed (OrderPlaced) on 'bus':",
        " in the publisher's thread, in this order:",
        f"  {__name__}.fail: by OrderPlaced, priority 5, if its predicate says so, once",
        "  audit: by 'order.*', priority 0",
        " each on a lane of its own:",
        f"  {later.__module__}.{later.__qualname__}: by OrderPlaced, priority 0, async",
        "  screen: by Event, priority 0, observer",
    ]
    assert bus.explain(PlaceOrder).splitlines()[1:] == [
        " in the publisher's thread, in this order:",
        "  audit: by 'order.*', priority 0",
    ]
    bus.close()


def test_explain_says_when_nobody_is_subscribed(bus):
    assert bus.explain(ItemAdded) == "order.item.added (ItemAdded) on 'bus': nobody is subscribed"


def test_metrics_count_and_time_every_handler_when_asked(seen):
    bus = EventBus(measure=True)
    bus.subscribe(OrderPlaced, seen.append, name="good")
    bus.subscribe(OrderPlaced, fail, name="bad", where=lambda event: event.total > 1)
    for total in (1.0, 2.0, 3.0):
        bus.publish(OrderPlaced(total=total))
    good, bad = bus.metrics

    assert (good.name, good.handled, good.failed) == ("good", 3, 0)
    assert (bad.name, bad.handled, bad.failed) == ("bad", 2, 2)
    assert 0 < good.p50 <= good.p99


def test_metrics_count_failures_always_and_measure_only_when_asked(bus):
    subscription = bus.subscribe(OrderPlaced, fail)
    bus.publish(OrderPlaced())

    assert (subscription.metrics.failed, subscription.metrics.handled) == (1, None)
    assert subscription.metrics.p50 is None


# -- receipts and ending --------------------------------------------------------------------------


def test_the_receipt_of_plain_handlers_is_done_at_once(bus, seen):
    bus.subscribe(OrderPlaced, lambda _: None)
    receipt = bus.publish(OrderPlaced())
    receipt.when_done(lambda: seen.append("told"))

    assert receipt.done
    assert receipt.wait(0) is receipt
    assert receipt.raise_for_errors() is receipt
    assert seen == ["told"]
    assert repr(receipt) == "<Receipt of OrderPlaced: done, 0 errors>"


def test_a_closed_bus_takes_no_messages_and_no_subscriptions(bus, seen):
    bus.publish(OrderPlaced())
    bus.close()
    bus.close()

    assert bus.is_closed
    with pytest.raises(BusClosedError, match="'bus' is closed"):
        bus.publish(OrderPlaced())
    with pytest.raises(BusClosedError, match="cannot be subscribed"):
        bus.subscribe(OrderPlaced, seen.append)


def test_a_bus_is_a_context_manager():
    with EventBus(name="shop") as bus:
        assert repr(bus) == "<EventBus 'shop', open, 0 messages kept>"

    assert bus.is_closed


def test_a_history_keeps_1024_messages_by_default():
    bus = EventBus()
    for _ in range(1_030):
        bus.publish(OrderPlaced())

    assert len(bus.history) == bus.history.capacity == 1_024
    assert bus.history.evicted == 6


def test_a_read_of_the_history_is_a_snapshot(bus):
    bus.publish(OrderPlaced())
    kept = iter(bus.history)
    bus.publish(OrderPlaced())

    assert len(list(kept)) == 1


def test_run_and_correlation_are_handed_on_and_source_and_headers_are_not(bus, seen):
    bus.subscribe(OrderPlaced, lambda _: bus.publish(ItemAdded()))
    bus.subscribe(ItemAdded, seen.append)
    with bus.scope(run="r1", correlation="c", source="web", headers={"tenant": "a"}):
        bus.publish(OrderPlaced())

    meta = seen[0].meta
    assert (meta.run, meta.correlation) == ("r1", "c")
    assert (meta.source, dict(meta.headers)) == (None, {})


def test_metrics_come_in_the_order_subscribed(bus, seen):
    for name, priority in (("first", 0), ("second", 9), ("third", -1)):
        bus.subscribe(OrderPlaced, seen.append, name=name, priority=priority)

    assert [one.name for one in bus.metrics] == ["first", "second", "third"]


def test_a_bus_with_plain_handlers_holds_nothing_that_must_be_closed(seen):
    threads = threading.active_count()
    bus = EventBus()
    bus.subscribe(OrderPlaced, seen.append)
    bus.publish(OrderPlaced())
    gone = weakref.ref(bus)
    del bus
    gc.collect()

    assert threading.active_count() == threads
    assert gone() is None
