"""Atlas: an event-driven reactive framework for LLM applications.

Everything that happens is a message on one bus; the log keeps it; slices publish and subscribe.

Names are loaded when they are first used, so that ``import atlas`` costs next to nothing and a
program that wants only the bus never pays for the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas._exports import exported

if TYPE_CHECKING:
    from atlas.app import Atlas as Atlas
    from atlas.core.buffer import StreamBuffer as StreamBuffer
    from atlas.core.effects import Effect as Effect
    from atlas.core.effects import effect as effect
    from atlas.core.effects import perform as perform
    from atlas.core.event_bus import EventBus as EventBus
    from atlas.core.event_bus import Receipt as Receipt
    from atlas.core.event_bus import Subscription as Subscription
    from atlas.core.messages import Command as Command
    from atlas.core.messages import Event as Event
    from atlas.core.messages import Message as Message
    from atlas.core.messages import message as message
    from atlas.core.messages import value as value
    from atlas.core.runs import Run as Run
    from atlas.core.temporal_store import TemporalStore as TemporalStore
    from atlas.errors import AtlasError as AtlasError
    from atlas.errors import ProviderError as ProviderError
    from atlas.errors import ReplayDiverged as ReplayDiverged
    from atlas.errors import ValidationError as ValidationError
    from atlas.providers.conversation import Conversation as Conversation
    from atlas.providers.messages import ChatMessage as ChatMessage
    from atlas.providers.messages import Completion as Completion
    from atlas.providers.messages import Usage as Usage
    from atlas.providers.reply import Reply as Reply
    from atlas.providers.reply import SyncReply as SyncReply

__getattr__, __dir__ = exported(
    __name__,
    {
        "atlas.app": ("Atlas",),
        "atlas.core.buffer": ("StreamBuffer",),
        "atlas.core.effects": ("Effect", "effect", "perform"),
        "atlas.core.event_bus": ("EventBus", "Receipt", "Subscription"),
        "atlas.core.messages": ("Command", "Event", "Message", "message", "value"),
        "atlas.core.runs": ("Run",),
        "atlas.core.temporal_store": ("TemporalStore",),
        "atlas.errors": ("AtlasError", "ProviderError", "ReplayDiverged", "ValidationError"),
        "atlas.providers.conversation": ("Conversation",),
        "atlas.providers.messages": ("ChatMessage", "Completion", "Usage"),
        "atlas.providers.reply": ("Reply", "SyncReply"),
    },
)

__all__ = [
    "Atlas",
    "AtlasError",
    "ChatMessage",
    "Command",
    "Completion",
    "Conversation",
    "Effect",
    "Event",
    "EventBus",
    "Message",
    "ProviderError",
    "Receipt",
    "ReplayDiverged",
    "Reply",
    "Run",
    "StreamBuffer",
    "Subscription",
    "SyncReply",
    "TemporalStore",
    "Usage",
    "ValidationError",
    "effect",
    "message",
    "perform",
    "value",
]
