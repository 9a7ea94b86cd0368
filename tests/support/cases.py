"""The awkward streams, named once for all protocols.

`CASES` says what each case must come to, in neutral terms. A protocol adds its rows in a module of
its own (`openai_cases`, ...): the bytes a server sends for that case, as an `Answer`. Where a
protocol cannot express a case it leaves the row out; where it must come to something slightly
different it gives its own `Outcome` with the row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from atlas.errors import (
    AuthenticationError,
    BadRequestError,
    ConnectionFailedError,
    ContentFilteredError,
    ContextLengthError,
    IncompleteStreamError,
    InvalidResponseError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ProviderError,
    QuotaExceededError,
    RateLimitedError,
    ServerError,
)
from atlas.providers.messages import FinishReason

from support.wire import Answer

__all__ = ["CASES", "Outcome", "Row", "row"]

SNOWMAN = (
    "né ☃ 😀 \u2028\u2029\x85 end"  # two to four bytes, and what splitlines takes for line ends
)
ARGUMENTS = '{"city": "Zürich", "days": [1, 2]}'


@dataclass(frozen=True)
class Outcome:
    """What a case comes to. ``error`` None: a whole answer, else this error with ``text`` partial."""

    text: str = ""
    thinking: str = ""
    signature: str | None = None
    refusal: str = ""
    tool_calls: tuple[tuple[str, str, str], ...] = ()  # id ("" = any), name, arguments
    finish_reason: FinishReason = "stop"
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: type[ProviderError] | None = None
    status: int | None = None
    retry_after: float | None = None
    request_id: str | None = None
    code: str | None = None
    facts: tuple[str, ...] = field(default=())  # words the error's sentence must contain


@dataclass(frozen=True)
class Row:
    """One case in one protocol."""

    case: str
    answer: Answer
    outcome: Outcome


def row(case: str, answer: Answer, **changes: object) -> Row:
    """Return the row of ``case``; ``changes`` are what this protocol makes different."""
    # A mapping of field names cannot be typed for `replace`.
    return Row(case, answer, replace(CASES[case], **changes))  # type: ignore[arg-type]


CASES: dict[str, Outcome] = {
    # -- whole answers
    "plain-text": Outcome(text="Hello world", input_tokens=5, output_tokens=2),
    "one-byte-chunks": Outcome(text=SNOWMAN),
    "split-characters": Outcome(text=SNOWMAN),
    "crlf-lines": Outcome(text="Hello world"),
    "pings-and-comments": Outcome(text="Hello world"),
    "empty-deltas": Outcome(text="Hello world"),
    "null-fields": Outcome(text="Hello world"),
    "absent-fields": Outcome(text="Hello world"),
    "many-equal-tokens": Outcome(text="a" * 300),
    "usage-in-last-chunk": Outcome(text="Hello world", input_tokens=5, output_tokens=2),
    "no-usage": Outcome(text="Hello world"),
    "length": Outcome(text="Hello", finish_reason="length"),
    "content-filter-cut": Outcome(text="Hel", finish_reason="content_filter"),
    "unknown-finish-reason": Outcome(text="Hello", finish_reason="unknown"),
    "thinking": Outcome(text="Hello world", thinking="Let me think"),
    "refusal": Outcome(refusal="I cannot help with that", finish_reason="refusal"),
    # -- tool calls
    "tool-call": Outcome(
        tool_calls=(("call_1", "weather", ARGUMENTS),), finish_reason="tool_calls"
    ),
    "tool-call-one-chunk": Outcome(
        tool_calls=(("call_1", "weather", ARGUMENTS),), finish_reason="tool_calls"
    ),
    "tool-call-split-anywhere": Outcome(
        tool_calls=(("call_1", "weather", ARGUMENTS),), finish_reason="tool_calls"
    ),
    "tool-call-without-arguments": Outcome(
        tool_calls=(("call_1", "now", ""),), finish_reason="tool_calls"
    ),
    "tool-call-broken-arguments": Outcome(
        tool_calls=(("call_1", "weather", '{"city": '),), finish_reason="tool_calls"
    ),
    "text-then-tool-call": Outcome(
        text="Let me look.",
        tool_calls=(("call_1", "weather", ARGUMENTS),),
        finish_reason="tool_calls",
    ),
    "parallel-tool-calls": Outcome(
        tool_calls=(("call_1", "weather", '{"city":"A"}'), ("call_2", "weather", '{"city":"B"}')),
        finish_reason="tool_calls",
    ),
    "interleaved-tool-calls": Outcome(
        tool_calls=(("call_1", "weather", '{"city":"A"}'), ("call_2", "time", '{"zone":"B"}')),
        finish_reason="tool_calls",
    ),
    "tool-index-clash": Outcome(
        tool_calls=(("call_1", "weather", '{"city":"A"}'), ("call_2", "weather", '{"city":"B"}')),
        finish_reason="tool_calls",
    ),
    "tool-index-missing": Outcome(
        tool_calls=(("call_1", "weather", '{"city":"A"}'), ("call_2", "time", '{"zone":"B"}')),
        finish_reason="tool_calls",
    ),
    "tool-id-missing": Outcome(
        tool_calls=(("", "weather", '{"city":"A"}'), ("", "weather", '{"city":"B"}')),
        finish_reason="tool_calls",
    ),
    "tool-id-and-name-repeated": Outcome(
        tool_calls=(("call_1", "weather", ARGUMENTS),), finish_reason="tool_calls"
    ),
    "tool-id-late": Outcome(
        tool_calls=(("call_1", "weather", ARGUMENTS),), finish_reason="tool_calls"
    ),
    "tool-calls-with-finish-stop": Outcome(
        tool_calls=(("call_1", "weather", ARGUMENTS),), finish_reason="tool_calls"
    ),
    # -- streams that break
    "clean-cut": Outcome(error=IncompleteStreamError, text="Hello"),
    "cut-in-an-event": Outcome(error=IncompleteStreamError, text="Hello"),
    "empty-body": Outcome(error=IncompleteStreamError),
    "dropped-mid-token": Outcome(error=ConnectionFailedError, text="Hello"),
    "cut-without-framing": Outcome(error=IncompleteStreamError, text="Hello"),
    "broken-json": Outcome(error=InvalidResponseError, text="Hello", facts=("JSON",)),
    "event-of-wrong-shape": Outcome(error=InvalidResponseError, text="Hello"),
    "event-not-an-object": Outcome(error=InvalidResponseError, text="Hello"),
    "html-with-200": Outcome(
        error=InvalidResponseError, status=200, facts=("web page", "base URL")
    ),
    "json-with-200": Outcome(error=InvalidResponseError, status=200),
    "json-error-with-200": Outcome(error=OverloadedError),
    "error-in-stream": Outcome(error=OverloadedError, text="Hello"),
    "error-first-in-stream": Outcome(error=RateLimitedError),
    # -- error answers
    "unauthorized": Outcome(
        error=AuthenticationError, status=401, request_id="req_1", facts=("key",)
    ),
    "forbidden": Outcome(error=PermissionDeniedError, status=403),
    "model-not-found": Outcome(error=ModelNotFoundError, status=404, facts=("'test-model'",)),
    "nothing-at-this-address": Outcome(error=BadRequestError, status=404, facts=("base URL",)),
    "bad-request": Outcome(error=BadRequestError, status=400, facts=("temperature",)),
    "context-length": Outcome(error=ContextLengthError, status=400),
    "content-filter": Outcome(error=ContentFilteredError, status=400),
    "quota": Outcome(error=QuotaExceededError, status=429),
    "rate-limited-milliseconds": Outcome(error=RateLimitedError, status=429, retry_after=1.5),
    "rate-limited-seconds": Outcome(error=RateLimitedError, status=429, retry_after=7.0),
    "rate-limited-date": Outcome(error=RateLimitedError, status=429, retry_after=0.0),
    "overloaded-503": Outcome(error=OverloadedError, status=503),
    "overloaded-529": Outcome(error=OverloadedError, status=529),
    "server-error": Outcome(error=ServerError, status=500),
    "bad-gateway-html": Outcome(error=ServerError, status=502, facts=("web page",)),
}
