"""What everything is built on: messages, the event bus, buffers, state. No vendor, no LLM word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas._exports import exported

if TYPE_CHECKING:
    from atlas.core.aspect_weaver import AspectWeaver as AspectWeaver
    from atlas.core.buffer import BufferReader as BufferReader
    from atlas.core.buffer import BufferStats as BufferStats
    from atlas.core.buffer import StreamBuffer as StreamBuffer
    from atlas.core.clock import SystemClock as SystemClock
    from atlas.core.diff_synchronizer import DiffSynchronizer as DiffSynchronizer
    from atlas.core.event_bus import EventBus as EventBus
    from atlas.core.event_bus import HandlerFailed as HandlerFailed
    from atlas.core.event_bus import Receipt as Receipt
    from atlas.core.event_bus import Subscription as Subscription
    from atlas.core.loop_thread import LoopThread as LoopThread
    from atlas.core.messages import Command as Command
    from atlas.core.messages import Event as Event
    from atlas.core.messages import Message as Message
    from atlas.core.messages import Metadata as Metadata
    from atlas.core.messages import message as message
    from atlas.core.messages import value as value
    from atlas.core.perspective import Perspectives as Perspectives
    from atlas.core.profiles import Profile as Profile
    from atlas.core.profiles import load_profile as load_profile
    from atlas.core.registry import FallbackTaken as FallbackTaken
    from atlas.core.registry import Registry as Registry
    from atlas.core.state import Change as Change
    from atlas.core.state import State as State
    from atlas.core.state_projector import StateProjector as StateProjector
    from atlas.core.state_projector import selector as selector
    from atlas.core.transitions import Transitions as Transitions

__getattr__, __dir__ = exported(
    __name__,
    {
        "atlas.core.aspect_weaver": ("AspectWeaver",),
        "atlas.core.buffer": ("BufferReader", "BufferStats", "StreamBuffer"),
        "atlas.core.clock": ("SystemClock",),
        "atlas.core.diff_synchronizer": ("DiffSynchronizer",),
        "atlas.core.event_bus": ("EventBus", "HandlerFailed", "Receipt", "Subscription"),
        "atlas.core.loop_thread": ("LoopThread",),
        "atlas.core.messages": ("Command", "Event", "Message", "Metadata", "message", "value"),
        "atlas.core.perspective": ("Perspectives",),
        "atlas.core.profiles": ("Profile", "load_profile"),
        "atlas.core.registry": ("FallbackTaken", "Registry"),
        "atlas.core.state": ("Change", "State"),
        "atlas.core.state_projector": ("StateProjector", "selector"),
        "atlas.core.transitions": ("Transitions",),
    },
)

__all__ = [
    "AspectWeaver",
    "BufferReader",
    "BufferStats",
    "Change",
    "Command",
    "DiffSynchronizer",
    "Event",
    "EventBus",
    "FallbackTaken",
    "HandlerFailed",
    "LoopThread",
    "Message",
    "Metadata",
    "Perspectives",
    "Profile",
    "Receipt",
    "Registry",
    "State",
    "StateProjector",
    "StreamBuffer",
    "Subscription",
    "SystemClock",
    "Transitions",
    "load_profile",
    "message",
    "selector",
    "value",
]
