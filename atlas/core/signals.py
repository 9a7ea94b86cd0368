"""Who is registered on a bus: receivers in `blinker` signals, one for each class or pattern.

A subscription registers here, and so does what users connect with blinker's own calls; both receive.
Nothing is dispatched through the signals: a bus reads the receivers and keeps routes of its own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

import blinker

from atlas.core.messages import Message
from atlas.core.selectors import matches, selectors_of
from atlas.core.subscriptions import Subscription

__all__ = ["Part", "ReceiverSignal", "Receivers"]

Part: TypeAlias = "type[Message] | str"
"""What one signal is for: a message class, or a pattern over message names."""

Adopt: TypeAlias = Callable[[Part, Callable[..., object], bool], Subscription[Any]]
"""Makes the subscription that stands for a receiver of blinker's: held weakly, or not."""


class ReceiverSignal(blinker.Signal):
    """A signal in which subscriptions register without blinker's own bookkeeping of senders.

    blinker keeps a set of senders for each receiver and one of receivers for each sender, some 300
    bytes a receiver. A subscription is for any sender and takes one entry in ``receivers``.
    """

    def register(self, subscription: Subscription[Any]) -> None:
        """Connect a subscription, for any sender."""
        self.receivers[id(subscription)] = subscription
        self.receiver_connected.send(self, receiver=subscription, sender=blinker.ANY, weak=False)

    def has_receivers_for(self, sender: Any) -> bool:
        """Whether a message sent by this sender would reach somebody."""
        return any(isinstance(one, Subscription) for one in list(self.receivers.values())) or (
            super().has_receivers_for(sender)
        )

    def receivers_for(self, sender: Any) -> Generator[Callable[..., Any], None, None]:
        """Yield every subscription, and what was connected with blinker for this sender."""
        for one in list(self.receivers.values()):
            if isinstance(one, Subscription):
                yield one
        for one in super().receivers_for(sender):
            if not isinstance(one, Subscription):
                yield one


class Receivers:
    """The signals of one bus. Everything but reading a signal is done under the lock of the bus.

    Args:
        name: The name of the bus, for the signals' own descriptions.
        lock: The lock of the bus.
        changed: Called with a part when who receives it has changed.
        adopt: Makes a subscription for what was connected with blinker itself.
    """

    __slots__ = ("_adopt", "_adopted", "_changed", "_lock", "_name", "_signals")

    def __init__(
        self,
        name: str,
        lock: threading.RLock,
        *,
        changed: Callable[[Part], object],
        adopt: Adopt,
    ) -> None:
        self._name = name
        self._lock = lock
        self._changed = changed
        self._adopt = adopt
        self._signals: dict[Part, ReceiverSignal] = {}
        self._adopted: dict[tuple[Part, object], Subscription[Any]] = {}

    def signal(self, part: Part) -> ReceiverSignal:
        """Return the signal of a class or pattern, made when first asked for. Any thread.

        Raises:
            SubscriptionError: It selects no messages.
        """
        with self._lock:
            (checked,) = selectors_of(part)
            signal = self._signals.get(checked)
            if signal is None:
                self._signals[checked] = signal = ReceiverSignal(f"{self._name}: {checked}")

                def changed(_: object, receiver: object, **__: object) -> None:
                    with self._lock:
                        self._changed(checked)
                        self._forget_adopted(checked, receiver)

                signal.receiver_connected.connect(changed, weak=False)
                signal.receiver_disconnected.connect(changed, weak=False)
            return signal

    def register(self, subscription: Subscription[Any]) -> None:
        """Let a subscription receive what it selects."""
        for part in subscription.selectors:
            self.signal(part).register(subscription)

    def withdraw(self, subscription: Subscription[Any]) -> None:
        """Let a subscription receive nothing more."""
        for part in subscription.selectors:
            signal = self._signals.get(part)
            if signal is not None:
                signal.disconnect(subscription)

    def of(self, cls: type[Message]) -> list[Subscription[Any]]:
        """Return who receives messages of a class, in the order in which they do."""
        found: dict[Subscription[Any], None] = {}
        for part, signal in self._signals.items():
            if not matches(part, cls):
                continue
            for key, receiver in list(signal.receivers.items()):
                if isinstance(receiver, Subscription):
                    found[receiver] = None
                elif key in signal._by_sender[0]:  # connected for any sender
                    adopted = self._standing_for(part, key, receiver)
                    if adopted is not None:
                        found[adopted] = None
        return sorted(found, key=lambda one: (-one.priority, one.order))

    def all(self) -> list[Subscription[Any]]:
        """Return every subscription, in the order subscribed."""
        found = {
            receiver
            for signal in self._signals.values()
            for receiver in signal.receivers.values()
            if isinstance(receiver, Subscription)
        }
        return sorted(found, key=lambda one: one.order)

    def _standing_for(
        self,
        part: Part,
        key: object,
        receiver: Callable[..., object] | weakref.ref[Callable[..., object]],
    ) -> Subscription[Any] | None:
        known = self._adopted.get((part, key))
        is_weak = isinstance(receiver, weakref.ref)
        target = receiver() if isinstance(receiver, weakref.ref) else receiver
        if known is None and target is not None:
            known = self._adopt(part, target, is_weak)
            self._adopted[part, key] = known
        return known

    def _forget_adopted(self, part: Part, receiver: object) -> None:
        for key, one in list(self._adopted.items()):
            if key[0] == part and one.handler == receiver:
                del self._adopted[key]
