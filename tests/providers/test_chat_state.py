"""The state of replies: the same whether events are applied one by one or together."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from atlas.core.state import State
from atlas.core.state_projector import StateProjector
from atlas.providers import chat_state
from atlas.providers.chat_state import ChatState, fold_chat, transitions
from atlas.providers.messages import (
    Completion,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamPaused,
    StreamResumed,
    StreamRetried,
    StreamStarted,
    StreamThinking,
    StreamToken,
    StreamToolCall,
    TextPart,
    Timing,
    ToolCallPart,
)

CALL = ToolCallPart("c", "add", "{}")
TIMING = Timing(1.0)


def events_of(reply: str):
    return st.sampled_from(
        [
            StreamStarted(reply, "talk", "scripted", "m", "Hi"),
            StreamToken(reply, 0, "Hel"),
            StreamToken(reply, 1, "lo"),
            StreamThinking(reply, 2, "hm"),
            StreamToolCall(reply, CALL),
            StreamPaused(reply),
            StreamResumed(reply),
            StreamRetried(reply, 1, 0.5, "overloaded", "busy"),
            StreamCompleted(reply, "talk", Completion((TextPart("Hello"), CALL), "stop"), TIMING),
            StreamCancelled(reply, "talk", "Hel", TIMING),
            StreamFailed(reply, "talk", "overloaded", "busy", "Hel", TIMING),
        ]
    )


@given(st.lists(st.sampled_from("abcdef").flatmap(events_of), max_size=60))
def test_events_applied_together_lead_where_they_lead_one_by_one(events) -> None:
    together = StateProjector(ChatState(), transitions, history=2, fold=fold_chat)
    one_by_one = State(ChatState(), transitions)
    with patch.object(chat_state, "FINISHED_KEPT", 2):
        for event in events:
            together.project(event)
            one_by_one.apply(event)
        version, value = together.current

    assert (version, value) == one_by_one.current
    assert list(value.replies) == list(one_by_one.value.replies)


def test_an_event_of_an_unknown_reply_changes_nothing() -> None:
    before = transitions(ChatState(), StreamStarted("r", "talk", "scripted", "m", "Hi"))

    assert transitions(before, StreamToken("other", 0, "x")) is before
    assert transitions(before, StreamToken("r", 0, "x")) is not before
    assert transitions.fold(before, [StreamPaused("other"), StreamResumed("other")]) is before
