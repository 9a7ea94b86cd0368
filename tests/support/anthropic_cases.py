"""The awkward streams in Anthropic's messages protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from support.cases import ARGUMENTS, SNOWMAN, Row, row
from support.wire import CUT, DROP, Answer, Step, error_answer, pieces, sse

__all__ = [
    "ERROR_ROWS",
    "STREAM_ROWS",
    "answer",
    "block",
    "delta",
    "end",
    "event",
    "refusal",
    "start",
    "stop",
    "text",
    "tool",
    "words",
]


# Any: whatever JSON a server sends.
def event(kind: str, **fields: Any) -> bytes:
    """Return one event."""
    return sse({"type": kind, **fields}, event=kind)


def start(**usage: Any) -> bytes:
    """Return the first event of an answer."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "test-model",
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 5, "output_tokens": 1, **usage},
    }
    return event("message_start", message=message)


def block(index: int, kind: str, **fields: Any) -> bytes:
    """Return the start of a content block."""
    return event("content_block_start", index=index, content_block={"type": kind, **fields})


def delta(index: int, kind: str, **fields: Any) -> bytes:
    """Return a piece of a content block."""
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def text(said: str | None, index: int = 0) -> bytes:
    """Return a piece of text."""
    return delta(index, "text_delta", text=said)


def stop(index: int = 0) -> bytes:
    """Return the end of a content block."""
    return event("content_block_stop", index=index)


def end(reason: str | None = "end_turn", **usage: Any) -> bytes:
    """Return the last two events of an answer."""
    changes = {"stop_reason": reason, "stop_sequence": None}
    counts = {"output_tokens": 2, **usage}
    return event("message_delta", delta=changes, usage=counts) + event("message_stop")


def words(*texts: str, index: int = 0) -> list[bytes]:
    """Return a text block with these pieces."""
    return [block(index, "text", text=""), *(text(said, index) for said in texts), stop(index)]


def answer(*steps: Step, reason: str | None = "end_turn", **usage: Any) -> Answer:
    """Return a whole answer around ``steps``."""
    return Answer(start(), *steps, end(reason, **usage))


def tool(index: int, call_id: str, name: str, *fragments: str) -> list[bytes]:
    """Return a tool call whose arguments come in these fragments."""
    return [
        block(index, "tool_use", id=call_id, name=name, input={}),
        *(delta(index, "input_json_delta", partial_json=piece) for piece in fragments),
        stop(index),
    ]


def refusal(kind: str, message: str = "No.") -> dict[str, Any]:
    """Return the body of an error."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_b"}


def _stream(*parts: bytes, size: int) -> Answer:
    return Answer(*pieces(b"".join(parts), size))


def _tools(*steps: bytes) -> Answer:
    return answer(*steps, reason="tool_use")


HELLO = (start(), *words("Hello", " world"), end())
BEGUN = (start(), block(0, "text", text=""), text("Hello"))

STREAM_ROWS: Sequence[Row] = (
    row("plain-text", Answer(*HELLO)),
    row("one-byte-chunks", _stream(start(), *words(*SNOWMAN), end(), size=1)),
    row("split-characters", _stream(start(), *words(SNOWMAN), end(), size=7)),
    row("crlf-lines", _stream(b"".join(HELLO).replace(b"\n", b"\r\n"), size=11)),
    row(
        "pings-and-comments",
        answer(event("ping"), b": ping\n\n", *words("Hello", " world"), event("ping"), b":\n"),
    ),
    row("empty-deltas", answer(*words("", "Hello", "", " world", ""))),
    row(
        "null-fields",
        Answer(
            event("message_start", message=None),
            block(0, "text", text=None),
            text("Hello world"),
            text(None),
            stop(),
            event("message_delta", delta={"stop_reason": "end_turn"}, usage=None),
            event("message_stop"),
        ),
    ),
    row(
        "absent-fields",
        Answer(
            sse({"type": "message_start"}),
            sse({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hello "}}),
            sse({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "world"}}),
            sse({}),
            sse({"type": "message_delta"}),
            sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
            sse({"type": "message_stop"}),
        ),
    ),
    row("many-equal-tokens", answer(*words(*"a" * 300))),
    row("usage-in-last-chunk", answer(*words("Hello", " world"), input_tokens=5, output_tokens=2)),
    row(
        "no-usage",
        Answer(
            event("message_start", message={"id": "msg_1"}),
            *words("Hello", " world"),
            event("message_delta", delta={"stop_reason": "end_turn"}),
            event("message_stop"),
        ),
    ),
    row("length", answer(*words("Hello"), reason="max_tokens")),
    row("unknown-finish-reason", answer(*words("Hello"), reason="brand_new")),
    row(
        "thinking",
        answer(
            block(0, "thinking", thinking="", signature=""),
            delta(0, "thinking_delta", thinking="Let me"),
            delta(0, "thinking_delta", thinking=" think"),
            delta(0, "signature_delta", signature="c2lnbmVk"),
            stop(0),
            *words("Hello", " world", index=1),
        ),
        signature="c2lnbmVk",
    ),
    row(
        "refusal",
        answer(*words("I cannot help", " with that"), reason="refusal"),
        text="I cannot help with that",
        refusal="",
    ),
    row("tool-call", _tools(*tool(0, "call_1", "weather", ARGUMENTS[:11], ARGUMENTS[11:]))),
    row("tool-call-one-chunk", _tools(*tool(0, "call_1", "weather", ARGUMENTS))),
    row(
        "tool-call-split-anywhere",
        _stream(start(), *tool(0, "call_1", "weather", *ARGUMENTS), end("tool_use"), size=3),
    ),
    row("tool-call-without-arguments", _tools(*tool(0, "call_1", "now", ""))),
    row("tool-call-broken-arguments", _tools(*tool(0, "call_1", "weather", '{"city": '))),
    row(
        "text-then-tool-call",
        _tools(*words("Let me", " look."), *tool(1, "call_1", "weather", ARGUMENTS)),
    ),
    row(
        "parallel-tool-calls",
        _tools(
            *tool(0, "call_1", "weather", '{"city":"A"}'),
            *tool(1, "call_2", "weather", '{"city":"B"}'),
        ),
    ),
    row(
        "interleaved-tool-calls",
        _tools(
            block(0, "tool_use", id="call_1", name="weather", input={}),
            block(1, "tool_use", id="call_2", name="time", input={}),
            delta(0, "input_json_delta", partial_json='{"city"'),
            delta(1, "input_json_delta", partial_json='{"zone":'),
            delta(0, "input_json_delta", partial_json=':"A"}'),
            delta(1, "input_json_delta", partial_json='"B"}'),
            stop(0),
            stop(1),
        ),
    ),
    row(
        "tool-index-clash",
        _tools(
            *tool(0, "call_1", "weather", '{"city":', '"A"}'),
            *tool(0, "call_2", "weather", '{"city":"B"}'),
        ),
    ),
    row(
        "tool-calls-with-finish-stop",
        answer(*tool(0, "call_1", "weather", ARGUMENTS), reason="end_turn"),
    ),
    row("clean-cut", Answer(*BEGUN, CUT)),
    row("cut-in-an-event", Answer(*BEGUN, text(" world")[:60], CUT)),
    row("empty-body", Answer(CUT)),
    row("dropped-mid-token", Answer(*BEGUN, text(" world")[:60], DROP)),
    row("cut-without-framing", Answer(*BEGUN, DROP, framing="close")),
    row("broken-json", Answer(*BEGUN, b'data: {"type": [\n\n', end())),
    row("event-of-wrong-shape", Answer(*BEGUN, event("content_block_delta", delta="none"), end())),
    row("event-not-an-object", Answer(*BEGUN, sse("[1, 2]"), end())),
    row("html-with-200", Answer(b"<!DOCTYPE html><html>login</html>", content_type="text/html")),
    row("json-with-200", Answer(b'{"content": []}', content_type="application/json")),
    row("json-error-with-200", error_answer(200, refusal("overloaded_error"))),
    row("error-in-stream", Answer(*BEGUN, sse(refusal("overloaded_error"), event="error"))),
    row("error-first-in-stream", Answer(sse(refusal("rate_limit_error"), event="error"))),
)


def _refused(case: str, status: int, kind: str, message: str = "No.", **headers: str) -> Row:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return row(case, error_answer(status, refusal(kind, message), headers=named))


ERROR_ROWS: Sequence[Row] = (
    _refused("unauthorized", 401, "authentication_error", request_id="req_1"),
    _refused("forbidden", 403, "permission_error"),
    _refused("model-not-found", 404, "not_found_error", "model: test-model"),
    row("nothing-at-this-address", error_answer(404, b"<html>404 page not found</html>")),
    _refused("bad-request", 400, "invalid_request_error", "temperature: too hot"),
    _refused("context-length", 400, "invalid_request_error", "prompt is too long: 9 > 8"),
    _refused("quota", 429, "billing_error"),
    _refused("rate-limited-milliseconds", 429, "rate_limit_error", retry_after_ms="1500"),
    _refused("rate-limited-seconds", 429, "rate_limit_error", retry_after="7"),
    _refused(
        "rate-limited-date", 429, "rate_limit_error", retry_after="Wed, 21 Oct 2015 07:28:00 GMT"
    ),
    _refused("overloaded-503", 503, "overloaded_error"),
    _refused("overloaded-529", 529, "overloaded_error"),
    _refused("server-error", 500, "api_error"),
    row("bad-gateway-html", error_answer(502, b"<html>502 Bad Gateway</html>")),
)
