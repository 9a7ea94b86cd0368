"""The awkward streams in OpenAI's two protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from support.cases import ARGUMENTS, SNOWMAN, Row, row
from support.wire import CUT, DROP, Answer, Step, error_answer, pieces, sse

__all__ = ["CHAT_ROWS", "ERROR_ROWS", "RESPONSES_ROWS", "chat_answer", "chunk", "responses_answer"]

DONE = sse("[DONE]")
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


# -- chat completions -----------------------------------------------------------------------------


# Any: whatever JSON a server sends.
def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> bytes:
    """Return one chunk of a chat completion."""
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "test-model",
        "choices": [choice],
        **fields,
    }
    return sse(body)


def words(*texts: str) -> list[bytes]:
    return [chunk({"content": text}) for text in texts]


def chat_answer(*steps: Step, finish: str = "stop", usage: bool = False) -> Answer:
    """Return a whole answer around ``steps``."""
    counts = [chunk(choices=[], usage=USAGE)] if usage else []
    return Answer(chunk({"role": "assistant"}), *steps, chunk({}, finish), *counts, DONE)


def fragment(index: Any = 0, call_id: Any = None, name: Any = None, arguments: Any = None) -> Any:
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    said = {"index": index, "id": call_id, "function": function or None}
    return {k: v for k, v in said.items() if v is not None}


def calls(*fragments: Any) -> list[bytes]:
    return [chunk({"tool_calls": [one]}) for one in fragments]


def tool_answer(*fragments: Any, finish: str = "tool_calls") -> Answer:
    return chat_answer(*calls(*fragments), finish=finish)


def one_stream(*parts: bytes, size: int) -> Answer:
    return Answer(*pieces(b"".join(parts), size))


HELLO = (chunk({"role": "assistant"}), *words("Hello", " world"), chunk({}, "stop"), DONE)
NULLS = {"content": None, "role": None, "tool_calls": None, "function_call": None, "refusal": None}

CHAT_ROWS: Sequence[Row] = (
    row("plain-text", chat_answer(*words("Hello", " world"), usage=True)),
    row("one-byte-chunks", one_stream(*words(*SNOWMAN), chunk({}, "stop"), DONE, size=1)),
    row("split-characters", one_stream(*words(SNOWMAN), chunk({}, "stop"), DONE, size=7)),
    row("crlf-lines", one_stream(b"".join(HELLO).replace(b"\n", b"\r\n"), size=11)),
    row(
        "pings-and-comments",
        Answer(b": ping\n\n", HELLO[0], b":\n", HELLO[1], b"event: ping\n\n", *HELLO[2:]),
    ),
    row(
        "empty-deltas",
        chat_answer(chunk({}), *words("", "Hello", ""), chunk(), *words(" world"), chunk({})),
    ),
    row(
        "null-fields",
        Answer(
            chunk(NULLS, usage=None, id=None, model=None),
            chunk({**NULLS, "content": "Hello world"}, usage=None, service_tier=None),
            sse({"choices": [{"index": None, "delta": None, "finish_reason": "stop"}]}),
            sse({"choices": None, "usage": {"prompt_tokens": None, "prompt_tokens_details": None}}),
            DONE,
        ),
    ),
    row(
        "absent-fields",
        Answer(
            sse({"choices": [{"delta": {"content": "Hello world"}}]}),
            sse({"choices": [{}]}),
            sse({}),
            sse({"choices": [{"finish_reason": "stop"}]}),
            DONE,
        ),
    ),
    row("many-equal-tokens", chat_answer(*words(*"a" * 300))),
    row("usage-in-last-chunk", chat_answer(*words("Hello", " world"), usage=True)),
    row("no-usage", chat_answer(*words("Hello", " world"))),
    row("length", chat_answer(*words("Hello"), finish="length")),
    row("content-filter-cut", chat_answer(*words("Hel"), finish="content_filter")),
    row("unknown-finish-reason", chat_answer(*words("Hello"), finish="eos")),
    row(
        "thinking",
        chat_answer(
            chunk({"reasoning_content": "Let me", "content": None}),
            chunk({"reasoning": " think"}),
            *words("Hello", " world"),
        ),
    ),
    row(
        "refusal",
        chat_answer(chunk({"refusal": "I cannot help"}), chunk({"refusal": " with that"})),
    ),
    row(
        "tool-call",
        tool_answer(
            fragment(0, "call_1", "weather", ""),
            fragment(0, None, None, '{"city": "Zü'),
            fragment(0, None, None, 'rich", "days": [1, 2]}'),
        ),
    ),
    row("tool-call-one-chunk", tool_answer(fragment(0, "call_1", "weather", ARGUMENTS))),
    row(
        "tool-call-split-anywhere",
        one_stream(
            *calls(
                fragment(0, "call_1", "weather"), *(fragment(0, arguments=a) for a in ARGUMENTS)
            ),
            chunk({}, "tool_calls"),
            DONE,
            size=3,
        ),
    ),
    row("tool-call-without-arguments", tool_answer(fragment(0, "call_1", "now"))),
    row("tool-call-broken-arguments", tool_answer(fragment(0, "call_1", "weather", '{"city": '))),
    row(
        "text-then-tool-call",
        chat_answer(
            *words("Let me", " look."),
            *calls(fragment(0, "call_1", "weather", ARGUMENTS)),
            finish="tool_calls",
        ),
    ),
    row(
        "parallel-tool-calls",
        chat_answer(
            chunk(
                {
                    "tool_calls": [
                        fragment(0, "call_1", "weather", '{"city":"A"}'),
                        fragment(1, "call_2", "weather", '{"city":"B"}'),
                    ]
                }
            ),
            finish="tool_calls",
        ),
    ),
    row(
        "interleaved-tool-calls",
        tool_answer(
            fragment(0, "call_1", "weather", ""),
            fragment(1, "call_2", "time", ""),
            fragment(0, arguments='{"city"'),
            fragment(1, arguments='{"zone":'),
            fragment(0, arguments=':"A"}'),
            fragment(1, arguments='"B"}'),
        ),
    ),
    row(
        "tool-index-clash",
        tool_answer(
            fragment(0, "call_1", "weather", '{"city":'),
            fragment(0, arguments='"A"}'),
            fragment(0, "call_2", "weather", '{"city":"B"}'),
        ),
    ),
    row(
        "tool-index-missing",
        tool_answer(
            fragment(None, "call_1", "weather", '{"city":'),
            fragment(None, arguments='"A"}'),
            fragment(None, "call_2", "time", '{"zone":"B"}'),
        ),
    ),
    row(
        "tool-id-missing",
        tool_answer(
            fragment(0, None, "weather", '{"city":"A"}'),
            fragment(0, None, "weather", '{"city":"B"}'),
        ),
    ),
    row(
        "tool-id-and-name-repeated",
        tool_answer(
            *(fragment(0, "call_1", "weather", part) for part in (ARGUMENTS[:9], ARGUMENTS[9:]))
        ),
    ),
    row(
        "tool-id-late",
        tool_answer(
            fragment(0, None, "weather", ARGUMENTS[:9]), fragment(0, "call_1", None, ARGUMENTS[9:])
        ),
    ),
    row(
        "tool-calls-with-finish-stop",
        tool_answer(fragment(0, "call_1", "weather", ARGUMENTS), finish="stop"),
    ),
    row("clean-cut", Answer(*HELLO[:1], *words("Hello"), CUT)),
    row("cut-in-an-event", Answer(*HELLO[:1], *words("Hello"), words(" world")[0][:40], CUT)),
    row("empty-body", Answer(CUT)),
    row("dropped-mid-token", Answer(*HELLO[:1], *words("Hello"), words(" world")[0][:40], DROP)),
    row("cut-without-framing", Answer(*words("Hello"), DROP, framing="close")),
    row("broken-json", Answer(*words("Hello"), b'data: {"choices": [\n\n', DONE)),
    row("event-of-wrong-shape", Answer(*words("Hello"), sse({"choices": "none"}), DONE)),
    row("event-not-an-object", Answer(*words("Hello"), sse("[1, 2]"), DONE)),
    row("html-with-200", Answer(b"<!DOCTYPE html><html>login</html>", content_type="text/html")),
    row("json-with-200", Answer(b'{"choices": []}', content_type="application/json")),
    row(
        "json-error-with-200",
        error_answer(200, {"error": {"message": "busy", "type": "overloaded_error"}}),
    ),
    row(
        "error-in-stream",
        Answer(
            *words("Hello"), sse({"error": {"message": "busy", "code": "server_is_overloaded"}})
        ),
    ),
    row(
        "error-first-in-stream",
        Answer(sse({"error": {"message": "slow down", "code": "rate_limit_exceeded"}})),
    ),
)


# -- the responses API ----------------------------------------------------------------------------


# Any: whatever JSON a server sends.
def event(kind: str, **fields: Any) -> bytes:
    """Return one event of the responses API."""
    return sse({"type": kind, "sequence_number": 1, **fields}, event=kind)


def said(*texts: str, output: int = 0) -> list[bytes]:
    places = {"item_id": f"item_{output}", "output_index": output, "content_index": 0}
    return [event("response.output_text.delta", delta=text, **places) for text in texts]


def response(status: str = "completed", **fields: Any) -> Any:
    return {
        "id": "resp_1",
        "model": "test-model",
        "status": status,
        "error": None,
        "incomplete_details": None,
        "usage": None,
        **fields,
    }


CREATED = event("response.created", response=response("in_progress"))
COMPLETED = event("response.completed", response=response())
COUNTED = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 7,
}
COMPLETED_COUNTED = event("response.completed", response=response(usage=COUNTED))


def responses_answer(*steps: Step, end: bytes = COMPLETED) -> Answer:
    """Return a whole answer around ``steps``."""
    return Answer(CREATED, event("response.in_progress", response=response()), *steps, end)


def item(output: int, call_id: str, name: str, arguments: str = "") -> Any:
    return {
        "type": "function_call",
        "id": f"item_{output}",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def added(output: int, what: Any) -> bytes:
    return event("response.output_item.added", output_index=output, item=what)


def item_done(output: int, what: Any) -> bytes:
    return event("response.output_item.done", output_index=output, item=what)


def arguing(output: int, text: str) -> bytes:
    places = {"item_id": f"item_{output}", "output_index": output}
    return event("response.function_call_arguments.delta", delta=text, **places)


def argued(output: int, text: str) -> bytes:
    places = {"item_id": f"item_{output}", "output_index": output}
    return event("response.function_call_arguments.done", arguments=text, **places)


def whole_call(output: int, call_id: str, name: str, *parts: str) -> list[bytes]:
    whole = "".join(parts)
    return [
        added(output, item(output, call_id, name)),
        *(arguing(output, part) for part in parts),
        argued(output, whole),
        item_done(output, item(output, call_id, name, whole)),
    ]


REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "Let me think"}],
    "encrypted_content": "gAAA/+=",
}
REASONING_TEXT = (
    '{"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"Let me think"}],'
    '"encrypted_content":"gAAA/+="}'
)


def summarised(text: str, part: int = 0) -> bytes:
    return event(
        "response.reasoning_summary_text.delta", output_index=0, summary_index=part, delta=text
    )


def refusing(text: str) -> bytes:
    return event("response.refusal.delta", output_index=0, content_index=0, delta=text)


RESPONSES_ROWS: Sequence[Row] = (
    row("plain-text", responses_answer(*said("Hello", " world"), end=COMPLETED_COUNTED)),
    row("one-byte-chunks", one_stream(CREATED, *said(*SNOWMAN), COMPLETED, size=1)),
    row("split-characters", one_stream(CREATED, *said(SNOWMAN), COMPLETED, size=7)),
    row(
        "crlf-lines",
        one_stream(
            b"".join((CREATED, *said("Hello", " world"), COMPLETED)).replace(b"\n", b"\r\n"),
            size=11,
        ),
    ),
    row(
        "pings-and-comments",
        Answer(
            b": ping\n\n",
            CREATED,
            *said("Hello"),
            b"event: ping\n\n:\n",
            *said(" world"),
            COMPLETED,
        ),
    ),
    row("empty-deltas", responses_answer(*said("", "Hello", "", " world", ""))),
    row(
        "null-fields",
        Answer(
            event("response.created", response=None),
            *said("Hello world"),
            event("response.output_text.delta", delta=None, output_index=0, content_index=0),
            event("response.output_item.added", item=None, output_index=None),
            event("response.completed", response={"usage": None}),
        ),
    ),
    row(
        "absent-fields",
        Answer(
            sse({"type": "response.output_text.delta", "delta": "Hello world"}),
            sse({"type": "response.output_item.done"}),
            sse({}),
            sse({"type": "response.completed"}),
        ),
    ),
    row("many-equal-tokens", responses_answer(*said(*"a" * 300))),
    row("usage-in-last-chunk", responses_answer(*said("Hello", " world"), end=COMPLETED_COUNTED)),
    row("no-usage", responses_answer(*said("Hello", " world"))),
    row(
        "length",
        responses_answer(
            *said("Hello"),
            end=event(
                "response.incomplete",
                response=response("incomplete", incomplete_details={"reason": "max_output_tokens"}),
            ),
        ),
    ),
    row(
        "content-filter-cut",
        responses_answer(
            *said("Hel"),
            end=event(
                "response.incomplete",
                response=response("incomplete", incomplete_details={"reason": "content_filter"}),
            ),
        ),
    ),
    row(
        "unknown-finish-reason",
        responses_answer(
            *said("Hello"),
            end=event(
                "response.incomplete",
                response=response("incomplete", incomplete_details={"reason": "steered"}),
            ),
        ),
    ),
    row(
        "thinking",
        responses_answer(
            added(0, {"type": "reasoning", "id": "rs_1", "summary": []}),
            summarised("Let me"),
            summarised(" think"),
            item_done(0, REASONING),
            *said("Hello", " world", output=1),
        ),
        signature=REASONING_TEXT,
    ),
    row("refusal", responses_answer(refusing("I cannot help"), refusing(" with that"))),
    row(
        "tool-call",
        responses_answer(*whole_call(0, "call_1", "weather", ARGUMENTS[:11], ARGUMENTS[11:])),
    ),
    row(
        "tool-call-one-chunk",
        responses_answer(item_done(0, item(0, "call_1", "weather", ARGUMENTS))),
    ),
    row(
        "tool-call-split-anywhere",
        one_stream(CREATED, *whole_call(0, "call_1", "weather", *ARGUMENTS), COMPLETED, size=3),
    ),
    row("tool-call-without-arguments", responses_answer(*whole_call(0, "call_1", "now"))),
    row(
        "tool-call-broken-arguments",
        responses_answer(*whole_call(0, "call_1", "weather", '{"city": ')),
    ),
    row(
        "text-then-tool-call",
        responses_answer(*said("Let me", " look."), *whole_call(1, "call_1", "weather", ARGUMENTS)),
    ),
    row(
        "parallel-tool-calls",
        responses_answer(
            *whole_call(0, "call_1", "weather", '{"city":"A"}'),
            *whole_call(1, "call_2", "weather", '{"city":"B"}'),
        ),
    ),
    row(
        "interleaved-tool-calls",
        responses_answer(
            added(0, item(0, "call_1", "weather")),
            added(1, item(1, "call_2", "time")),
            arguing(0, '{"city"'),
            arguing(1, '{"zone":'),
            arguing(0, ':"A"}'),
            arguing(1, '"B"}'),
        ),
    ),
    row("clean-cut", Answer(CREATED, *said("Hello"), CUT)),
    row("cut-in-an-event", Answer(CREATED, *said("Hello"), said(" world")[0][:70], CUT)),
    row("empty-body", Answer(CUT)),
    row("dropped-mid-token", Answer(CREATED, *said("Hello"), said(" world")[0][:70], DROP)),
    row("cut-without-framing", Answer(CREATED, *said("Hello"), DROP, framing="close")),
    row("broken-json", Answer(*said("Hello"), b'data: {"type": [\n\n', COMPLETED)),
    row(
        "event-of-wrong-shape",
        Answer(*said("Hello"), event("response.output_text.delta", delta=7), COMPLETED),
    ),
    row("event-not-an-object", Answer(*said("Hello"), sse("[1, 2]"), COMPLETED)),
    row("html-with-200", Answer(b"<!DOCTYPE html><html>login</html>", content_type="text/html")),
    row("json-with-200", Answer(b'{"output": []}', content_type="application/json")),
    row(
        "json-error-with-200",
        error_answer(200, {"error": {"message": "busy", "type": "overloaded_error"}}),
    ),
    row(
        "error-in-stream",
        Answer(
            CREATED,
            *said("Hello"),
            event(
                "response.failed",
                response=response(
                    "failed", error={"code": "server_is_overloaded", "message": "busy"}
                ),
            ),
        ),
    ),
    row(
        "error-first-in-stream",
        Answer(event("error", code="rate_limit_exceeded", message="slow down", param=None)),
    ),
)


# -- error answers, the same for both -------------------------------------------------------------


def refused(case: str, status: int, message: str, headers: Any = None, **words: Any) -> Row:
    return row(
        case, error_answer(status, {"error": {"message": message, **words}}, headers=headers)
    )


ERROR_ROWS: Sequence[Row] = (
    refused(
        "unauthorized",
        401,
        "Incorrect API key provided",
        {"x-request-id": "req_1"},
        code="invalid_api_key",
    ),
    refused("forbidden", 403, "You may not", code="unsupported_country_region_territory"),
    refused("model-not-found", 404, "The model `x` does not exist", code="model_not_found"),
    row("nothing-at-this-address", error_answer(404, b"<html>404 page not found</html>")),
    refused("bad-request", 400, "Invalid temperature", type="invalid_request_error"),
    refused("context-length", 400, "too long", code="context_length_exceeded"),
    row(
        "context-length",
        error_answer(
            400, {"error": {"code": 400, "message": "x", "type": "exceed_context_size_error"}}
        ),
    ),
    refused("context-length", 400, "This model's maximum context length is 4096 tokens"),
    refused("content-filter", 400, "filtered", code="content_filter"),
    refused("quota", 429, "You exceeded your current quota", code="insufficient_quota"),
    refused(
        "rate-limited-milliseconds",
        429,
        "slow",
        {"retry-after-ms": "1500", "retry-after": "7"},
        code="rate_limit_exceeded",
        type="requests",
    ),
    refused("rate-limited-seconds", 429, "slow", {"retry-after": "7"}),
    refused("rate-limited-date", 429, "slow", {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    refused("overloaded-503", 503, "busy"),
    refused("overloaded-529", 529, "busy"),
    refused("server-error", 500, "oops", type="server_error"),
    row("bad-gateway-html", error_answer(502, b"<html>502 Bad Gateway</html>")),
)
