"""Deltas become one whole answer and the events it is worth."""

from __future__ import annotations

import time

import pytest

from atlas.errors import IncompleteStreamError, InvalidResponseError
from atlas.providers.assembler import Assembler
from atlas.providers.base import (
    Finished,
    RefusalDelta,
    ResponseStarted,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    UsageDelta,
)
from atlas.providers.messages import (
    Completion,
    RefusalPart,
    StreamThinking,
    StreamToken,
    StreamToolCall,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    Usage,
)


def assembled(*deltas, **options) -> Completion:
    assembler = Assembler(**options)
    for delta in (*deltas, Finished("stop", "end")):
        assembler.feed(delta)
    return assembler.completion()


def test_parts_keep_the_order_of_their_first_piece() -> None:
    answer = assembled(
        ThinkingDelta("hm", 0),
        TextDelta("a", 1),
        ToolCallDelta(0, "c1", "now", "{"),
        TextDelta("c", 2),
        TextDelta("b", 1),
        ToolCallDelta(0, "", "", "}"),
        RefusalDelta("no", 3),
    )

    assert answer.parts == (
        ThinkingPart("hm"),
        TextPart("ab"),
        ToolCallPart("c1", "now", "{}"),
        TextPart("c"),
        RefusalPart("no"),
    )


def test_thinking_keeps_signatures_and_redacted_data_exactly() -> None:
    answer = assembled(
        ThinkingDelta("a", 0),
        ThinkingDelta("b", 0),
        ThinkingDelta("", 0, signature="Eq+/="),
        ThinkingDelta("", 0, signature="=é"),
        ThinkingDelta(block=1, redacted="opaque"),
    )

    assert answer.parts == (
        ThinkingPart("ab", "Eq+/==é"),
        ThinkingPart("", None, "opaque"),
    )


def test_empty_blocks_leave_no_part() -> None:
    assert assembled(TextDelta(""), ThinkingDelta(""), RefusalDelta("")).parts == ()


def test_interleaved_calls_are_told_apart() -> None:
    answer = assembled(
        ToolCallDelta(0, "c1", "a", "1"),
        ToolCallDelta(1, "c2", "b", "2"),
        ToolCallDelta(0, "", "", "3"),
    )

    assert answer.tool_calls == (ToolCallPart("c1", "a", "13"), ToolCallPart("c2", "b", "2"))


def test_a_call_without_id_gets_one_from_the_reply() -> None:
    calls = ToolCallDelta(0, "", "a", "{}"), ToolCallDelta(1, "", "a", "{}")

    assert [call.id for call in assembled(*calls, reply="r7").tool_calls] == ["r7_0", "r7_1"]


def test_the_last_count_that_is_known_wins() -> None:
    answer = assembled(
        UsageDelta(Usage(input_tokens=5, output_tokens=1)),
        UsageDelta(Usage(output_tokens=8, reasoning_tokens=2)),
        UsageDelta(Usage(output_tokens=0)),
    )

    assert answer.usage == Usage(input_tokens=5, output_tokens=0, reasoning_tokens=2)


def test_the_vendors_names_win_over_what_was_asked() -> None:
    answer = assembled(ResponseStarted("id1", "model-2026"), provider="p", model="model")

    assert (answer.provider, answer.model, answer.response_id) == ("p", "model-2026", "id1")
    assert (answer.finish_reason, answer.raw_finish_reason) == ("stop", "end")


def test_with_a_reply_id_deltas_are_worth_events() -> None:
    assembler = Assembler(reply="r")
    deltas = (
        ResponseStarted(),
        ThinkingDelta("hm"),
        TextDelta(""),
        TextDelta("a"),
        ToolCallDelta(0, "c", "now"),
        TextDelta("b"),
        Finished("tool_calls"),
    )
    events = [event for delta in deltas if (event := assembler.feed(delta)) is not None]

    assert events == [
        StreamThinking("r", 0, "hm"),
        StreamToken("r", 1, "a"),
        StreamToken("r", 2, "b"),
    ]
    assert assembler.tool_calls() == (StreamToolCall("r", ToolCallPart("c", "now", "")),)


def test_without_a_reply_id_there_are_no_events() -> None:
    assembler = Assembler()

    assert assembler.feed(TextDelta("a")) is None
    assert assembler.feed(ThinkingDelta("a")) is None
    assembler.feed(ToolCallDelta(0, "c", "now"))
    assembler.feed(Finished("stop"))
    assert assembler.tool_calls() == ()


def test_the_text_so_far_can_be_read_and_the_answer_only_at_its_end() -> None:
    assembler = Assembler(provider="p")
    assembler.feed(TextDelta("so "))
    assembler.feed(TextDelta("far"))

    assert assembler.text == "so far"
    assert not assembler.finished
    with pytest.raises(IncompleteStreamError) as caught:
        assembler.completion()
    assert caught.value.partial == "so far"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        {"text": "a"},
        TextDelta(None),
        TextDelta(b"a"),
        TextDelta("a", []),
        ThinkingDelta(7),
        ThinkingDelta("a", [], None, None),
        ThinkingDelta("a", signature=b"x"),
        ToolCallDelta(0, arguments={"a": 1}),
        ToolCallDelta([]),
        UsageDelta({"input_tokens": 1}),
        UsageDelta(None),
        RefusalDelta(None, {}),
        ToolCallDelta(0, id=7),
        ToolCallDelta(0, name=b"x"),
        ResponseStarted(7),
        Finished("eos"),
        Finished("stop", 7),
    ],
)
def test_what_is_no_delta_is_refused_with_its_provider_and_value(value) -> None:
    assembler = Assembler(provider="third-party")
    assembler.feed(TextDelta("so far"))

    with pytest.raises(InvalidResponseError) as caught:
        assembler.feed(value)
    assert "'third-party'" in str(caught.value)
    assert repr(value)[:100] in str(caught.value)
    assert caught.value.partial == "so far"


@pytest.mark.parametrize("late", [TextDelta("a"), Finished("stop"), UsageDelta(Usage())])
def test_nothing_may_come_after_the_end(late) -> None:
    assembler = Assembler()
    assembler.feed(Finished("stop"))

    with pytest.raises(InvalidResponseError, match="after the answer was finished"):
        assembler.feed(late)


def test_the_cost_is_linear() -> None:
    def cost(count: int) -> float:
        started = time.process_time()
        text = [TextDelta("x" * 20)] * count
        calls = [ToolCallDelta(0, "", "", "x" * 20)] * count
        assembled(*text, *calls)
        return time.process_time() - started

    cost(1000)

    assert cost(100_000) < 25 * max(cost(10_000), 0.001)


SMILE = "\N{GRINNING FACE}"
FIRST, SECOND = "\ud83d", "\ude00"


def test_a_character_cut_between_two_deltas_is_joined_before_anybody_sees_it() -> None:
    assembler = Assembler(reply="r")
    deltas = [TextDelta("a" + FIRST), TextDelta(SECOND + "b" + FIRST), TextDelta(SECOND)]
    events = [assembler.feed(delta) for delta in (*deltas, Finished("stop", "end"))]

    assert events == [
        StreamToken("r", 0, "a"),
        StreamToken("r", 1, SMILE + "b"),
        StreamToken("r", 2, SMILE),
        None,
    ]
    assert assembler.completion().text == f"a{SMILE}b{SMILE}"


def test_a_half_of_a_character_waits_for_the_other_half_of_its_own_block() -> None:
    assembler = Assembler(reply="r")
    deltas = [TextDelta(FIRST, 0), TextDelta("x", 1), TextDelta(""), TextDelta(SECOND, 0)]
    events = [assembler.feed(delta) for delta in (*deltas, Finished("stop", "end"))]

    assert events == [None, StreamToken("r", 0, "x"), None, StreamToken("r", 1, SMILE), None]
    assert assembler.completion().parts == (TextPart(SMILE), TextPart("x"))


def test_cut_characters_of_thinking_and_of_arguments_are_joined_too() -> None:
    assembler = Assembler(reply="r")
    thought = [assembler.feed(ThinkingDelta(FIRST)), assembler.feed(ThinkingDelta(SECOND))]
    for delta in (
        ToolCallDelta(0, "c", "say", '"' + FIRST),
        ToolCallDelta(0, "", "", SECOND + '"'),
        Finished("stop", "end"),
    ):
        assembler.feed(delta)

    assert thought == [None, StreamThinking("r", 0, SMILE)]
    assert assembler.completion().parts == (
        ThinkingPart(SMILE),
        ToolCallPart("c", "say", f'"{SMILE}"'),
    )


def test_a_half_whose_other_half_never_comes_is_in_the_completion() -> None:
    assert assembled(TextDelta("a" + FIRST), TextDelta("b")).text == f"a{FIRST}b"
    assert assembled(TextDelta("a"), TextDelta(FIRST)).text == f"a{FIRST}"
