"""Requests: another one made of one that was checked."""

from __future__ import annotations

import dataclasses

import pytest

from atlas.providers.base import ChatRequest, with_messages
from atlas.providers.messages import ChatMessage, TextPart, ToolSpec


def said(text: str) -> ChatMessage:
    return ChatMessage("user", (TextPart(text),))


def test_a_request_with_other_messages_asks_the_same_otherwise():
    request = ChatRequest(
        messages=(said("One."),),
        model="m",
        tools=(ToolSpec("add", "Adds.", "{}"),),
        tool_choice="required",
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=("END",),
        thinking_tokens=3,
        json_schema="{}",
        connect_timeout=2.0,
        extra={"deep": {"er": [1]}},
    )
    assert all(
        getattr(request, field.name) != field.default for field in dataclasses.fields(request)
    ), "each field is given here, so that none is forgotten there"

    longer = (said("One."), said("Two."))
    made = with_messages(request, longer)

    assert made == dataclasses.replace(request, messages=longer)
    assert (type(made), hash(made)) == (ChatRequest, hash(dataclasses.replace(made)))
    with pytest.raises(AttributeError):
        made.model = "other"  # type: ignore[misc]
