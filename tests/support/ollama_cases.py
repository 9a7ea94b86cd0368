"""The awkward streams in Ollama's protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from atlas.errors import ServerError

from support.cases import ARGUMENTS, SNOWMAN, Row, row
from support.wire import CUT, DROP, Answer, Step, error_answer, ndjson, pieces

__all__ = ["ERROR_ROWS", "STREAM_ROWS", "answer", "end", "line", "words"]


# Any: whatever JSON a server sends.
def line(message: Any = None, **fields: Any) -> bytes:
    """Return one line of an answer."""
    said = {"role": "assistant", "content": "", **(message or {})}
    return ndjson({"model": "test-model", "message": said, "done": False, **fields})


def words(*texts: str) -> list[bytes]:
    """Return a line for each piece of text."""
    return [line({"content": text}) for text in texts]


def end(reason: str | None = "stop", **fields: Any) -> bytes:
    """Return the last line."""
    return line(done=True, done_reason=reason, **fields)


def answer(*steps: Step, reason: str | None = "stop", **fields: Any) -> Answer:
    """Return a whole answer around ``steps``."""
    return _lines(*steps, end(reason, **fields))


def _lines(*steps: Step, **options: Any) -> Answer:
    return Answer(*steps, content_type="application/x-ndjson", **options)


def _stream(*parts: bytes, size: int) -> Answer:
    return _lines(*pieces(b"".join(parts), size))


def _call(name: str, arguments: Any, call_id: str | None = None) -> Any:
    function = {"index": 0, "name": name, "arguments": arguments}
    call = {"function": {k: v for k, v in function.items() if v is not None}}
    return call if call_id is None else {"id": call_id, **call}


def _calls(*calls: Any) -> list[bytes]:
    return [line({"tool_calls": [call]}) for call in calls]


A, B = {"city": "A"}, {"city": "B"}
WEATHER = _call("weather", json.loads(ARGUMENTS), "call_1")
COUNTS = {"prompt_eval_count": 5, "eval_count": 2}
BOTH_WEATHER = (("call_1", "weather", '{"city": "A"}'), ("call_2", "weather", '{"city": "B"}'))
WITHOUT_ID = (("", "weather", '{"city": "A"}'), ("", "weather", '{"city": "B"}'))

STREAM_ROWS: Sequence[Row] = (
    row("plain-text", answer(*words("Hello", " world"), **COUNTS)),
    row("one-byte-chunks", _stream(*words(*SNOWMAN), end(), size=1)),
    row("split-characters", _stream(*words(SNOWMAN), end(), size=7)),
    row(
        "crlf-lines",
        _stream(
            b"".join((*words("Hello", " world"), end())).replace(b"\n", b"\r\n"),
            size=11,
        ),
    ),
    row("pings-and-comments", answer(b"\n", *words("Hello"), b" \n\n", *words(" world"), b"\n")),
    row("empty-deltas", answer(*words("", "Hello", "", " world", ""))),
    row(
        "null-fields",
        answer(
            line({"content": None, "thinking": None, "tool_calls": None, "images": None}),
            *words("Hello world"),
            line(message=None, done_reason=None, error=None),
            prompt_eval_count=None,
        ),
    ),
    row(
        "absent-fields",
        _lines(ndjson({"message": {"content": "Hello world"}}, {"message": {}}, {"done": True})),
    ),
    row("many-equal-tokens", answer(*words(*"a" * 300))),
    row("usage-in-last-chunk", answer(*words("Hello", " world"), **COUNTS)),
    row("no-usage", answer(*words("Hello", " world"))),
    row("length", answer(*words("Hello"), reason="length")),
    row("unknown-finish-reason", answer(*words("Hello"), reason="brand_new")),
    row(
        "thinking",
        answer(
            line({"thinking": "Let me"}), line({"thinking": " think"}), *words("Hello", " world")
        ),
    ),
    row("tool-call", answer(*_calls(WEATHER))),
    row("tool-call-one-chunk", answer(*_calls(WEATHER))),
    row("tool-call-split-anywhere", _stream(*_calls(WEATHER), end(), size=3)),
    row("tool-call-without-arguments", answer(*_calls(_call("now", None, "call_1")))),
    row("tool-call-broken-arguments", answer(*_calls(_call("weather", '{"city": ', "call_1")))),
    row("text-then-tool-call", answer(*words("Let me", " look."), *_calls(WEATHER))),
    row(
        "parallel-tool-calls",
        answer(
            line({"tool_calls": [_call("weather", A, "call_1"), _call("weather", B, "call_2")]})
        ),
        tool_calls=BOTH_WEATHER,
    ),
    row(
        "tool-index-clash",
        answer(*_calls(_call("weather", A, "call_1"), _call("weather", B, "call_2"))),
        tool_calls=BOTH_WEATHER,
    ),
    row(
        "tool-id-missing",
        answer(*_calls(_call("weather", A), _call("weather", B))),
        tool_calls=WITHOUT_ID,
    ),
    row("tool-calls-with-finish-stop", answer(*_calls(WEATHER), reason="stop")),
    row("clean-cut", _lines(*words("Hello"), CUT)),
    row("cut-in-an-event", _lines(*words("Hello"), words(" world")[0][:40], CUT)),
    row("empty-body", _lines(CUT)),
    row("dropped-mid-token", _lines(*words("Hello"), words(" world")[0][:40], DROP)),
    row("cut-without-framing", _lines(*words("Hello"), DROP, framing="close")),
    row("broken-json", _lines(*words("Hello"), b'{"message": [\n', end())),
    row("event-of-wrong-shape", _lines(*words("Hello"), ndjson({"message": "none"}), end())),
    row("event-not-an-object", _lines(*words("Hello"), b"[1, 2]\n", end())),
    row("html-with-200", Answer(b"<!DOCTYPE html><html>login</html>", content_type="text/html")),
    row(
        "json-with-200",
        Answer(b'{"object": "list"}\n', content_type="application/json"),
        status=None,
    ),
    row("json-error-with-200", error_answer(200, b'{"error": "busy"}\n'), error=ServerError),
    row("error-in-stream", _lines(*words("Hello"), ndjson({"error": "busy"})), error=ServerError),
)


def _refused(case: str, status: int, message: str, **headers: str) -> Row:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return row(case, error_answer(status, {"error": message}, headers=named))


ERROR_ROWS: Sequence[Row] = (
    _refused("unauthorized", 401, "unauthorized", x_request_id="req_1"),
    _refused("forbidden", 403, "forbidden"),
    _refused("model-not-found", 404, "model 'test-model' not found"),
    row("nothing-at-this-address", error_answer(404, b"404 page not found")),
    _refused("bad-request", 400, "invalid option: temperature"),
    _refused("context-length", 400, "the input length exceeds the context length"),
    _refused("rate-limited-milliseconds", 429, "slow", retry_after_ms="1500"),
    _refused("rate-limited-seconds", 429, "slow", retry_after="7"),
    _refused("rate-limited-date", 429, "slow", retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    _refused("overloaded-503", 503, "server busy, please try again"),
    _refused("overloaded-529", 529, "busy"),
    _refused("server-error", 500, "model runner has unexpectedly stopped"),
    row("bad-gateway-html", error_answer(502, b"<html>502 Bad Gateway</html>")),
)
