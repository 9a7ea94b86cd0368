"""Atlas: an event-driven reactive framework for LLM applications.

Everything that happens is a message on one bus; the log keeps it; slices publish and subscribe.

Names are loaded when they are first used, so that ``import atlas`` costs next to nothing and a
program that wants only the bus never pays for the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas.app import Atlas as Atlas
    from atlas.core.buffer import StreamBuffer as StreamBuffer
    from atlas.core.event_bus import EventBus as EventBus
    from atlas.core.event_bus import Receipt as Receipt
    from atlas.core.event_bus import Subscription as Subscription
    from atlas.core.messages import Command as Command
    from atlas.core.messages import Event as Event
    from atlas.core.messages import Message as Message
    from atlas.core.messages import message as message
    from atlas.core.messages import value as value
    from atlas.errors import AtlasError as AtlasError
    from atlas.errors import ProviderError as ProviderError
    from atlas.errors import ValidationError as ValidationError
    from atlas.providers.conversation import Conversation as Conversation
    from atlas.providers.messages import ChatMessage as ChatMessage
    from atlas.providers.messages import Completion as Completion
    from atlas.providers.messages import Usage as Usage
    from atlas.providers.reply import Reply as Reply
    from atlas.providers.reply import SyncReply as SyncReply

_HOME = {
    "Atlas": "atlas.app",
    "AtlasError": "atlas.errors",
    "ChatMessage": "atlas.providers.messages",
    "Command": "atlas.core.messages",
    "Completion": "atlas.providers.messages",
    "Conversation": "atlas.providers.conversation",
    "Event": "atlas.core.messages",
    "EventBus": "atlas.core.event_bus",
    "Message": "atlas.core.messages",
    "ProviderError": "atlas.errors",
    "Receipt": "atlas.core.event_bus",
    "Reply": "atlas.providers.reply",
    "StreamBuffer": "atlas.core.buffer",
    "Subscription": "atlas.core.event_bus",
    "SyncReply": "atlas.providers.reply",
    "Usage": "atlas.providers.messages",
    "ValidationError": "atlas.errors",
    "message": "atlas.core.messages",
    "value": "atlas.core.messages",
}

__all__ = [  # noqa: RUF022 (kept in step with _HOME, which is sorted case by case)
    "Atlas",
    "AtlasError",
    "ChatMessage",
    "Command",
    "Completion",
    "Conversation",
    "Event",
    "EventBus",
    "Message",
    "ProviderError",
    "Receipt",
    "Reply",
    "StreamBuffer",
    "Subscription",
    "SyncReply",
    "Usage",
    "ValidationError",
    "message",
    "value",
]


def __getattr__(name: str) -> Any:  # Any: the type of each name is told above
    """Load a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'atlas' has no attribute {name!r}")
    found = getattr(import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
