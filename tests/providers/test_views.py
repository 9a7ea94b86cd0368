"""The public view of events: what people and models said is never in it."""

import json

import pytest

from atlas import Atlas
from atlas.core.messages import Event, message
from atlas.core.schema import decode, encode, load
from atlas.core.schema.export import discover
from atlas.core.schema.samples import valid_samples
from atlas.errors import ServerError, UnknownNameError
from atlas.providers.base import Finished, TextDelta, ThinkingDelta, ToolCallDelta
from atlas.providers.messages import StreamToken, ToolCallPart, ToolResultPart
from atlas.providers.views import event_line, event_views, log_lines

from support.providers import ListProvider

OURS = [cls for cls in discover() if cls.__module__.startswith(("atlas.core", "atlas.providers"))]
SAID = "my-secret"


@message("views.own")
class Own(Event):
    """An event of a user."""

    text: str
    number: int = 1


def filled(data: object) -> object:
    """Return JSON data with the secret in the place of each text that is no tag or choice."""
    if isinstance(data, dict):
        return {key: v if key == "$type" else filled(v) for key, v in data.items()}
    if isinstance(data, list):
        return [filled(each) for each in data]
    return SAID if data == "text" else data


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.message_name)
def test_every_event_of_atlas_has_a_public_view(cls) -> None:
    sample = load(cls, filled(valid_samples(cls)[-1]))
    line = json.loads(event_line(sample))

    said = {"text", "prompt", "partial", "error", "traceback", "arguments", "content"}
    shown = {key: value for key, value in line["fields"].items() if key in said}
    assert set(shown.values()) <= {"[redacted]"}


async def test_nothing_that_was_said_is_in_the_public_log_of_a_conversation() -> None:
    answer = [
        ThinkingDelta(SAID, signature=SAID),
        TextDelta(SAID),
        ToolCallDelta(0, id="c1", name="search", arguments=json.dumps({"q": SAID})),
        Finished("tool_calls"),
    ]
    provider = ListProvider([answer, [ServerError(SAID)], [SAID, ServerError(SAID)]])
    lines: list[str] = []
    async with Atlas(provider=provider) as app:
        app.bus.subscribe("**", log_lines(lines.append))
        talk = app.conversation(system=SAID)
        await talk.chat(SAID)
        with pytest.raises(ServerError):
            await talk.chat(SAID)

    log = "\n".join(lines)
    names = {json.loads(line)["name"] for line in lines}
    assert SAID not in log
    assert names >= {
        "conversation.message_added",
        "stream.completed",
        "stream.failed",
        "stream.retried",
        "stream.thinking",
        "stream.token",
        "stream.tool_call",
    }
    assert '"name":"search"' in log
    assert '"kind":"server_error"' in log


def test_a_line_is_the_events_own_but_for_its_fields() -> None:
    event = StreamToken("r1", 4, "Hi")
    line = event_line(event)

    assert json.loads(line) == {
        **json.loads(encode(event)),
        "fields": {"reply": "r1", "index": 4, "text": "[redacted]"},
    }
    assert decode(line.encode()) == StreamToken("r1", 4, "[redacted]")


def test_parts_keep_their_kind_and_ids_in_the_public_view() -> None:
    added = load(
        next(cls for cls in OURS if cls.message_name == "conversation.message_added"),
        {
            "conversation": "c",
            "message": {
                "role": "tool",
                "parts": [
                    {"$type": "tool_call", "id": "1", "name": "now", "arguments": "{}"},
                    {"$type": "tool_result", "call_id": "1", "content": "x", "is_error": True},
                ],
            },
        },
    )
    parts = event_views().show(added, "public")["message"]["parts"]

    assert added.message.parts == (ToolCallPart("1", "now", "{}"), ToolResultPart("1", "x", True))
    assert parts == [
        {"$type": "tool_call", "id": "1", "name": "now", "arguments": "[redacted]"},
        {"$type": "tool_result", "call_id": "1", "content": "[redacted]", "is_error": True},
    ]


async def test_an_event_without_a_view_is_not_logged_by_accident() -> None:
    lines: list[str] = []
    async with Atlas(provider=ListProvider([])) as app:
        app.bus.subscribe("**", log_lines(lines.append))
        app.bus.publish(Own(SAID))

    assert len(lines) == 1
    assert json.loads(lines[0])["fields"]["error_type"].endswith("UnknownNameError")
    with pytest.raises(UnknownNameError, match="no view 'public'"):
        event_line(Own(SAID))


def test_events_of_ones_own_are_logged_by_views_of_ones_own() -> None:
    views = event_views(marker="-")
    views.define(Own, "public", redact=["text"])
    lines: list[str] = []
    log_lines(lines.append, views=views)(Own(SAID))

    assert json.loads(lines[0])["fields"] == {"text": "-", "number": 1}
