"""Models and how they are talked to: one protocol, one adapter a vendor, replies and conversations.

``atlas.providers.messages`` holds the values and the ``stream.*`` events; each adapter is a module
of its own (``atlas.providers.openai`` …), loaded by name through the registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas._exports import exported

if TYPE_CHECKING:
    from atlas.providers.assembler import Assembler as Assembler
    from atlas.providers.base import Capabilities as Capabilities
    from atlas.providers.base import ChatRequest as ChatRequest
    from atlas.providers.base import Delta as Delta
    from atlas.providers.base import Finished as Finished
    from atlas.providers.base import ModelCatalogue as ModelCatalogue
    from atlas.providers.base import Provider as Provider
    from atlas.providers.base import RefusalDelta as RefusalDelta
    from atlas.providers.base import ResponseStarted as ResponseStarted
    from atlas.providers.base import TextDelta as TextDelta
    from atlas.providers.base import ThinkingDelta as ThinkingDelta
    from atlas.providers.base import ToolCallDelta as ToolCallDelta
    from atlas.providers.base import UsageDelta as UsageDelta
    from atlas.providers.chat_state import ChatState as ChatState
    from atlas.providers.chat_state import ReplyState as ReplyState
    from atlas.providers.conversation import ChatOptions as ChatOptions
    from atlas.providers.conversation import Conversation as Conversation
    from atlas.providers.messages import ChatMessage as ChatMessage
    from atlas.providers.messages import Completion as Completion
    from atlas.providers.messages import FinishReason as FinishReason
    from atlas.providers.messages import Part as Part
    from atlas.providers.messages import RefusalPart as RefusalPart
    from atlas.providers.messages import TextPart as TextPart
    from atlas.providers.messages import ThinkingPart as ThinkingPart
    from atlas.providers.messages import Timing as Timing
    from atlas.providers.messages import ToolCallPart as ToolCallPart
    from atlas.providers.messages import ToolResultPart as ToolResultPart
    from atlas.providers.messages import ToolSpec as ToolSpec
    from atlas.providers.messages import Usage as Usage
    from atlas.providers.profile import ChatProfile as ChatProfile
    from atlas.providers.profile import load_chat_profile as load_chat_profile
    from atlas.providers.reply import Reply as Reply
    from atlas.providers.reply import StreamOptions as StreamOptions
    from atlas.providers.reply import SyncReply as SyncReply
    from atlas.providers.resilience import Deadlines as Deadlines
    from atlas.providers.resilience import Retry as Retry
    from atlas.providers.resilience import RetryPolicy as RetryPolicy
    from atlas.providers.resilience import resilient_stream as resilient_stream
    from atlas.providers.scripted import ScriptedProvider as ScriptedProvider
    from atlas.providers.selection import Choice as Choice
    from atlas.providers.selection import ProviderStatus as ProviderStatus
    from atlas.providers.selection import choose as choose
    from atlas.providers.selection import provider_registry as provider_registry
    from atlas.providers.timing import ProviderTimer as ProviderTimer
    from atlas.providers.views import event_line as event_line
    from atlas.providers.views import event_views as event_views
    from atlas.providers.views import log_lines as log_lines

__getattr__, __dir__ = exported(
    __name__,
    {
        "atlas.providers.assembler": ("Assembler",),
        "atlas.providers.base": (
            "Capabilities",
            "ChatRequest",
            "Delta",
            "Finished",
            "ModelCatalogue",
            "Provider",
            "RefusalDelta",
            "ResponseStarted",
            "TextDelta",
            "ThinkingDelta",
            "ToolCallDelta",
            "UsageDelta",
        ),
        "atlas.providers.chat_state": ("ChatState", "ReplyState"),
        "atlas.providers.conversation": ("ChatOptions", "Conversation"),
        "atlas.providers.messages": (
            "ChatMessage",
            "Completion",
            "FinishReason",
            "Part",
            "RefusalPart",
            "TextPart",
            "ThinkingPart",
            "Timing",
            "ToolCallPart",
            "ToolResultPart",
            "ToolSpec",
            "Usage",
        ),
        "atlas.providers.profile": ("ChatProfile", "load_chat_profile"),
        "atlas.providers.reply": ("Reply", "StreamOptions", "SyncReply"),
        "atlas.providers.resilience": ("Deadlines", "Retry", "RetryPolicy", "resilient_stream"),
        "atlas.providers.scripted": ("ScriptedProvider",),
        "atlas.providers.selection": ("Choice", "ProviderStatus", "choose", "provider_registry"),
        "atlas.providers.timing": ("ProviderTimer",),
        "atlas.providers.views": ("event_line", "event_views", "log_lines"),
    },
)

__all__ = [
    "Assembler",
    "Capabilities",
    "ChatMessage",
    "ChatOptions",
    "ChatProfile",
    "ChatRequest",
    "ChatState",
    "Choice",
    "Completion",
    "Conversation",
    "Deadlines",
    "Delta",
    "FinishReason",
    "Finished",
    "ModelCatalogue",
    "Part",
    "Provider",
    "ProviderStatus",
    "ProviderTimer",
    "RefusalDelta",
    "RefusalPart",
    "Reply",
    "ReplyState",
    "ResponseStarted",
    "Retry",
    "RetryPolicy",
    "ScriptedProvider",
    "StreamOptions",
    "SyncReply",
    "TextDelta",
    "TextPart",
    "ThinkingDelta",
    "ThinkingPart",
    "Timing",
    "ToolCallDelta",
    "ToolCallPart",
    "ToolResultPart",
    "ToolSpec",
    "Usage",
    "UsageDelta",
    "choose",
    "event_line",
    "event_views",
    "load_chat_profile",
    "log_lines",
    "provider_registry",
    "resilient_stream",
]
