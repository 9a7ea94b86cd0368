"""The anthropic adapter: the official SDK against a server that plays the wire byte by byte."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from contextlib import aclosing

import pytest
from support.wire import (
    CUT,
    DROP,
    HANG,
    RESET,
    Answer,
    Gate,
    Repeat,
    WireServer,
    error_answer,
    pieces,
    sse,
)

from atlas.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    ContextLengthError,
    DeadlineExceededError,
    IncompleteStreamError,
    InvalidResponseError,
    MissingCredentialsError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ProviderError,
    QuotaExceededError,
    RateLimitedError,
    ServerError,
)
from atlas.providers.anthropic import AnthropicProvider
from atlas.providers.assembler import Assembler
from atlas.providers.base import ChatRequest, Provider, TextDelta
from atlas.providers.messages import (
    ChatMessage,
    Completion,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
    Usage,
)
from atlas.providers.resilience import Deadlines, RetryPolicy, resilient_stream

EVERY_LINE_END = "A\u0085B\u2028C\u2029D\x0b\x0c\x1cE 🎉 日本"


def ask(text: str = "Hi", **options) -> ChatRequest:
    messages = options.pop("messages", (ChatMessage(role="user", parts=(TextPart(text),)),))
    return ChatRequest(messages=messages, model=options.pop("model", "claude-test"), **options)


# -- the vendor's events --------------------------------------------------------------------------


def event(kind: str, **fields) -> bytes:
    return sse({"type": kind, **fields}, event=kind)


def start(**usage) -> bytes:
    counts = {"input_tokens": 10, "output_tokens": 1} | usage
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-test-1",
        "content": [],
        "stop_reason": None,
        "usage": counts,
    }
    return event("message_start", message=message)


def block(index: int, kind: str, **fields) -> bytes:
    return event("content_block_start", index=index, content_block={"type": kind, **fields})


def delta(index: int, kind: str, **fields) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def text(words: str, index: int = 0) -> bytes:
    return delta(index, "text_delta", text=words)


def stop(index: int = 0) -> bytes:
    return event("content_block_stop", index=index)


def end(reason: str | None = "end_turn", **usage) -> bytes:
    changes = {"stop_reason": reason, "stop_sequence": None}
    return event("message_delta", delta=changes, usage={"output_tokens": 5} | usage) + event(
        "message_stop"
    )


def said(*words: str, **ending) -> bytes:
    return start() + block(0, "text", text="") + b"".join(map(text, words)) + stop() + end(**ending)


@pytest.fixture
def server():
    with WireServer() as server:
        yield server


@pytest.fixture
async def provider(server):
    provider = AnthropicProvider(api_key="key", base_url=server.url)
    yield provider
    await provider.aclose()


async def answer_of(provider: Provider, request: ChatRequest | None = None) -> Completion:
    assembler = Assembler(provider=provider.name)
    async for each in provider.stream(request or ask()):
        assembler.feed(each)
    return assembler.completion()


async def failure_of(provider: Provider, request: ChatRequest | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await answer_of(provider, request)
    assert caught.value.provider == "anthropic"
    assert caught.value.model == "claude-test"
    return caught.value


# -- answers --------------------------------------------------------------------------------------


async def test_text_usage_and_the_end_arrive(server, provider):
    server.play(Answer(said("Hel", "lo")))

    answer = await answer_of(provider)

    assert answer.text == "Hello"
    assert (answer.finish_reason, answer.raw_finish_reason) == ("stop", "end_turn")
    assert (answer.response_id, answer.model) == ("msg_1", "claude-test-1")
    assert answer.usage == Usage(input_tokens=10, output_tokens=5)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_cut_anywhere_an_answer_is_the_same(server, provider, size):
    server.play(Answer(*pieces(said(EVERY_LINE_END), size)))

    assert (await answer_of(provider)).text == EVERY_LINE_END


async def test_every_line_end_of_the_specification_is_understood(server, provider):
    wire = said("one", "two").replace(b"\n", b"\r\n")
    server.play(Answer(*pieces(wire, 5)), Answer(*pieces(said("x").replace(b"\n", b"\r"), 3)))

    assert (await answer_of(provider)).text == "onetwo"
    assert (await answer_of(provider)).text == "x"


async def test_pings_comments_and_empty_deltas_are_no_content(server, provider):
    noise = event("ping") + b": keep-alive\n\n" + text("") + event("something_new", x=1)
    server.play(
        Answer(
            noise
            + start()
            + noise
            + block(0, "text", text="")
            + noise
            + text("a")
            + noise
            + stop()
            + end()
        )
    )

    assert (await answer_of(provider)).text == "a"


async def test_a_compressed_answer_is_read(server, provider):
    body = gzip.compress(said("packed"))
    server.play(Answer(*pieces(body, 9), headers={"content-encoding": "gzip"}))

    assert (await answer_of(provider)).text == "packed"


async def test_thinking_keeps_its_signature_and_what_is_redacted(server, provider):
    server.play(
        Answer(
            start()
            + block(0, "thinking", thinking="", signature="")
            + delta(0, "thinking_delta", thinking="Let me ")
            + delta(0, "thinking_delta", thinking="see.")
            + delta(0, "signature_delta", signature="c2ln")
            + stop(0)
            + block(1, "redacted_thinking", data="b3BhcXVl")
            + stop(1)
            + block(2, "text", text="")
            + text("Yes", 2)
            + stop(2)
            + end(output_tokens_details={"thinking_tokens": 3})
        )
    )

    answer = await answer_of(provider)

    assert answer.parts == (
        ThinkingPart("Let me see.", signature="c2ln"),
        ThinkingPart(redacted="b3BhcXVl"),
        TextPart("Yes"),
    )
    assert answer.usage.reasoning_tokens == 3


async def test_a_tool_call_cut_anywhere_is_put_together(server, provider):
    arguments = json.dumps({"q": "déjà vu 🎉", "n": [1, 2]}, ensure_ascii=False)
    fragments = b"".join(
        delta(0, "input_json_delta", partial_json=piece) for piece in ["", *arguments]
    )
    server.play(
        Answer(
            start()
            + block(0, "tool_use", id="toolu_1", name="look", input={})
            + fragments
            + stop()
            + end("tool_use")
        )
    )

    answer = await answer_of(provider)

    assert answer.parts == (ToolCallPart("toolu_1", "look", arguments),)
    assert answer.finish_reason == "tool_calls"


async def test_parallel_and_interleaved_blocks_are_told_apart(server, provider):
    server.play(
        Answer(
            start()
            + block(0, "text", text="")
            + block(1, "tool_use", id="a", name="first", input={})
            + block(2, "tool_use", id="b", name="second", input={})
            + delta(2, "input_json_delta", partial_json='{"x":')
            + delta(1, "input_json_delta", partial_json='{"y":')
            + text("Wait", 0)
            + delta(2, "input_json_delta", partial_json="1}")
            + delta(1, "input_json_delta", partial_json="2}")
            + stop(0)
            + stop(1)
            + stop(2)
            + end("tool_use")
        )
    )

    assert (await answer_of(provider)).parts == (
        ToolCallPart("a", "first", '{"y":2}'),
        ToolCallPart("b", "second", '{"x":1}'),
        TextPart("Wait"),
    )


async def test_an_index_used_twice_is_two_calls(server, provider):
    server.play(
        Answer(
            start()
            + block(0, "tool_use", id="a", name="look", input={})
            + delta(0, "input_json_delta", partial_json='{"x":1}')
            + stop(0)
            + block(0, "tool_use", id="b", name="look", input={})
            + delta(0, "input_json_delta", partial_json='{"x":2}')
            + stop(0)
            + end("tool_use")
        )
    )

    assert [call.arguments for call in (await answer_of(provider)).tool_calls] == [
        '{"x":1}',
        '{"x":2}',
    ]


async def test_a_call_without_fragments_has_the_arguments_of_its_start(server, provider):
    server.play(
        Answer(
            start()
            + block(0, "tool_use", id="a", name="now", input={})
            + stop(0)
            + block(1, "tool_use", id="b", name="look", input={"x": 1})
            + stop(1)
            + end("tool_use")
        )
    )

    assert [call.arguments for call in (await answer_of(provider)).tool_calls] == ["{}", '{"x": 1}']


async def test_broken_tool_arguments_are_kept_as_the_model_wrote_them(server, provider):
    server.play(
        Answer(
            start()
            + block(0, "tool_use", id="a", name="look", input={})
            + delta(0, "input_json_delta", partial_json='{"x": oops')
            + stop(0)
            + end("max_tokens")
        )
    )

    answer = await answer_of(provider)

    assert answer.tool_calls[0].arguments == '{"x": oops'
    assert answer.finish_reason == "length"


async def test_blocks_and_deltas_of_unknown_kinds_are_passed_over(server, provider):
    server.play(
        Answer(
            start()
            + block(0, "server_tool_use", id="s", name="web_search", input={})
            + delta(0, "input_json_delta", partial_json='{"query":"x"}')
            + stop(0)
            + block(1, "web_search_tool_result", tool_use_id="s", content=[])
            + stop(1)
            + block(2, "hologram", beam=1)
            + delta(2, "hologram_delta", photons=5)
            + stop(2)
            + block(3, "text", text="")
            + text("a", 3)
            + delta(3, "citations_delta", citation={"type": "char_location"})
            + text("b", 3)
            + stop(3)
            + end()
        )
    )

    assert (await answer_of(provider)).parts == (TextPart("ab"),)


async def test_text_in_the_start_of_a_block_and_a_block_never_started_are_kept(server, provider):
    server.play(
        Answer(start() + block(0, "text", text="a") + stop(0) + text("b", 1) + stop(1) + end())
    )

    assert (await answer_of(provider)).text == "ab"


async def test_cached_input_is_part_of_the_input(server, provider):
    server.play(
        Answer(
            start(input_tokens=3, cache_creation_input_tokens=20, cache_read_input_tokens=100)
            + end(output_tokens=9, input_tokens=None)
        )
    )

    assert (await answer_of(provider)).usage == Usage(
        input_tokens=123, output_tokens=9, cached_tokens=100, cache_write_tokens=20
    )


async def test_cumulative_usage_is_not_summed_and_does_not_fall(server, provider):
    middle = event("message_delta", delta={}, usage={"output_tokens": 4})
    server.play(Answer(start() + middle + end(output_tokens=8, input_tokens=0)))

    usage = (await answer_of(provider)).usage

    assert (usage.input_tokens, usage.output_tokens) == (10, 8)


@pytest.mark.parametrize(
    ("raw", "neutral"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("stop_sequence", "stop_sequence"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "pause"),
        ("refusal", "refusal"),
        ("model_context_window_exceeded", "context_window"),
        ("brand_new", "unknown"),
        (None, "unknown"),
    ],
)
async def test_stop_reasons_are_neutral_and_the_vendors_word_is_kept(
    server, provider, raw, neutral
):
    server.play(Answer(said("a", reason=raw)))

    answer = await answer_of(provider)

    assert (answer.finish_reason, answer.raw_finish_reason) == (neutral, raw)


async def test_the_end_marker_counts_without_its_blank_line(server, provider):
    server.play(Answer(said("a").rstrip(b"\n") + b"\n"))

    assert (await answer_of(provider)).finish_reason == "stop"


async def test_a_finished_answer_leaves_its_connection_for_the_next(server, provider):
    server.play(Answer(said("a")), Answer(said("b")))

    assert (await answer_of(provider)).text + (await answer_of(provider)).text == "ab"
    assert len(server.connections) == 1


async def test_a_server_that_hangs_after_the_end_marker_holds_nobody(server, provider):
    server.play(Answer(said("a"), HANG))

    assert (await answer_of(provider)).text == "a"
    await server.connections[0].wait_closed()


# -- what is sent ---------------------------------------------------------------------------------


async def test_a_request_is_said_in_the_vendors_words(server, provider):
    server.play(Answer(said("a")))
    request = ask(
        messages=(
            ChatMessage(role="system", parts=(TextPart("Be kind."),)),
            ChatMessage(role="user", parts=(TextPart("Hi"), TextPart(""))),
            ChatMessage(role="user", parts=(TextPart("there"),)),
            ChatMessage(
                role="assistant",
                parts=(
                    ThinkingPart("hm", signature="sig"),
                    ThinkingPart(redacted="xyz"),
                    ThinkingPart("unsigned"),
                    ThinkingPart("another vendor's", signature='{"type": "reasoning"}'),
                    RefusalPart("No."),
                    ToolCallPart("c1", "look", '{"q": 1}'),
                    ToolCallPart("c2", "look", "{broken"),
                ),
            ),
            ChatMessage(role="tool", parts=(ToolResultPart("c1", "found"),)),
            ChatMessage(
                role="user", parts=(TextPart("So?"), ToolResultPart("c2", "bad", is_error=True))
            ),
            ChatMessage(role="system", parts=(TextPart("Be brief."),)),
        ),
        tools=(ToolSpec("look", "Look up.", '{"type": "object"}'),),
        tool_choice="required",
        max_tokens=100,
        temperature=0.5,
        top_p=0.9,
        stop=("END",),
        json_schema='{"type": "object"}',
        extra={"metadata": {"user_id": "u"}},
    )

    await answer_of(provider, request)

    sent = server.requests[0]
    assert (sent.method, sent.path) == ("POST", "/v1/messages")
    assert sent.json() == {
        "model": "claude-test",
        "max_tokens": 100,
        "stream": True,
        "system": "Be kind.\n\nBe brief.",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "sig"},
                    {"type": "redacted_thinking", "data": "xyz"},
                    {"type": "text", "text": "No."},
                    {"type": "tool_use", "id": "c1", "name": "look", "input": {"q": 1}},
                    {
                        "type": "tool_use",
                        "id": "c2",
                        "name": "look",
                        "input": {"invalid_arguments": "{broken"},
                    },
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "found"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "c2",
                        "content": "bad",
                        "is_error": True,
                    },
                    {"type": "text", "text": "So?"},
                ],
            },
        ],
        "tools": [{"name": "look", "description": "Look up.", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"},
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_sequences": ["END"],
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "metadata": {"user_id": "u"},
    }


async def test_thinking_is_given_room_above_the_answers_limit(server, provider):
    server.play(Answer(said("a")))

    await answer_of(provider, ask(thinking_tokens=2000, model=""))

    sent = server.requests[0].json()
    assert sent["thinking"] == {"type": "enabled", "budget_tokens": 2000}
    assert sent["max_tokens"] == 8192 + 2000
    assert sent["model"] == provider.default_model


@pytest.mark.parametrize(
    "options", [{"json_schema": "{no"}, {"tools": (ToolSpec("look", "Look up.", "{no"),)}]
)
async def test_a_schema_that_is_no_json_is_refused_before_anything_is_sent(
    server, provider, options
):
    error = await failure_of(provider, ask(**options))

    assert isinstance(error, BadRequestError)
    assert server.requests == []


async def test_a_seed_is_refused_since_the_vendor_knows_none(server, provider):
    assert isinstance(await failure_of(provider, ask(seed=1)), BadRequestError)
    assert server.requests == []


async def test_text_that_cannot_be_encoded_is_a_bad_request(provider):
    assert isinstance(await failure_of(provider, ask("half a \ud83d")), BadRequestError)


# -- failures -------------------------------------------------------------------------------------


def refusal(kind: str, message: str = "No.") -> dict:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_body"}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, refusal("invalid_request_error"), BadRequestError),
        (400, refusal("invalid_request_error", "prompt is too long: 9 > 8"), ContextLengthError),
        (
            400,
            refusal("invalid_request_error", "Your credit balance is too low"),
            QuotaExceededError,
        ),
        (401, refusal("authentication_error"), AuthenticationError),
        (403, refusal("permission_error"), PermissionDeniedError),
        (404, refusal("not_found_error", "model: claude-test"), ModelNotFoundError),
        (413, refusal("request_too_large"), ContextLengthError),
        (429, refusal("rate_limit_error"), RateLimitedError),
        (500, refusal("api_error"), ServerError),
        (502, b"<html>Bad gateway</html>", ServerError),
        (529, refusal("overloaded_error"), OverloadedError),
        (418, b"", BadRequestError),
    ],
)
async def test_error_answers_are_neutral_errors(server, provider, status, body, expected):
    server.play(error_answer(status, body, headers={"request-id": "req_1"}))

    error = await failure_of(provider)

    assert type(error) is expected
    assert (error.status, error.request_id) == (status, "req_1")


async def test_the_facts_of_a_rate_limit_are_kept_and_nothing_is_retried(server, provider):
    server.play(
        error_answer(429, refusal("rate_limit_error", "Slow down."), headers={"retry-after": "7"})
    )

    error = await failure_of(provider)

    assert (error.retry_after, error.code) == (7, "rate_limit_error")
    assert error.retryable
    assert "Slow down." in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", OverloadedError),
        ("rate_limit_error", RateLimitedError),
        ("api_error", ServerError),
        ("invalid_request_error", BadRequestError),
        ("brand_new_error", ServerError),
    ],
)
async def test_an_error_event_in_mid_stream_is_a_neutral_error(server, provider, kind, expected):
    broken = sse(refusal(kind, "Oh."), event="error")
    server.play(
        Answer(
            start() + block(0, "text", text="") + text("a") + broken,
            headers={"request-id": "req_9"},
        )
    )

    error = await failure_of(provider)

    assert type(error) is expected
    assert (error.code, error.request_id, error.status) == (kind, "req_9", None)


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_a_stream_cut_cleanly_is_incomplete(server, provider, framing):
    server.play(Answer(start() + block(0, "text", text="") + text("a"), CUT, framing=framing))

    error = await failure_of(provider)

    assert type(error) is IncompleteStreamError
    assert error.retryable


async def test_a_stop_reason_without_the_end_marker_is_incomplete(server, provider):
    server.play(Answer(said("a").removesuffix(event("message_stop"))))

    assert type(await failure_of(provider)) is IncompleteStreamError


@pytest.mark.parametrize("ending", [DROP, RESET])
async def test_a_connection_dropped_in_mid_token_is_a_connection_error(server, provider, ending):
    server.play(Answer(start() + text("a") + text("🎉")[:-20], ending))

    assert type(await failure_of(provider)) is ConnectionFailedError


async def test_a_connection_dropped_before_the_answer_is_a_connection_error(server, provider):
    server.play(Answer(RESET, framing="length"))

    assert type(await failure_of(provider)) in {ConnectionFailedError, InvalidResponseError}


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html; charset=utf-8", b"<html><body>Please log in</body></html>"),
        ("text/event-stream", b"<html><body>Please log in</body></html>"),
        ("application/json", b'{"id": "msg_1", "content": []}'),
        ("text/event-stream", b""),
    ],
)
async def test_an_answer_that_is_no_event_stream_is_invalid(server, provider, content_type, body):
    server.play(Answer(body, content_type=content_type))

    error = await failure_of(provider)

    assert type(error) is InvalidResponseError
    assert "base" in str(error)


@pytest.mark.parametrize(
    "broken",
    [
        b"event: content_block_delta\ndata: {not json}\n\n",
        sse("[1, 2]"),
        sse("null"),
        sse("42"),
        sse('{"no": "type"}'),
        sse("[" * 100_000),
        sse({"type": "content_block_delta", "index": 0}),
        sse({"type": "content_block_delta", "index": 0, "delta": None}),
        sse({"type": "content_block_delta", "index": [0], "delta": {"type": "text_delta"}}),
        sse({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}),
        sse({"type": "message_start", "message": None}),
        sse({"type": "message_delta"}),
        sse({"type": ["list"]}),
        b"data: \xff\xfe\x00{\n\n",
    ],
)
async def test_a_broken_event_is_an_invalid_response(server, provider, broken):
    server.play(Answer(start() + text("a") + broken + end()))

    assert type(await failure_of(provider)) is InvalidResponseError


async def test_a_body_that_cannot_be_decompressed_is_an_invalid_response(server, provider):
    server.play(Answer(said("a"), headers={"content-encoding": "gzip"}))

    assert type(await failure_of(provider)) is InvalidResponseError


async def test_a_refused_connection_names_the_address():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    provider = AnthropicProvider(api_key="key", base_url=f"http://127.0.0.1:{port}")

    error = await failure_of(provider)

    await provider.aclose()
    assert type(error) is ConnectionFailedError
    assert f"127.0.0.1:{port}" in str(error)


async def test_pings_for_ever_end_at_the_total_deadline(server, provider):
    server.play(Answer(start(), Repeat(event("ping"))))

    with pytest.raises(DeadlineExceededError) as caught:
        stream = resilient_stream(
            provider,
            ask(),
            deadlines=Deadlines(first_token=None, gap=None, total=0.3),
            retries=RetryPolicy(attempts=1),
        )
        async with aclosing(stream):
            _ = [each async for each in stream]

    assert caught.value.deadline == "total"
    await server.connections[0].wait_closed()


def threads() -> set[str]:
    """Threads beside those in which the event loop resolves names: they are the loop's to end."""
    return {each.name for each in threading.enumerate() if not each.name.startswith("asyncio")}


# -- leaving, and several at once -----------------------------------------------------------------


def endless() -> Answer:
    return Answer(start() + block(0, "text", text=""), Repeat(text("word ")))


async def test_leaving_the_loop_closes_the_connection(server, provider):
    server.play(endless())

    async with aclosing(provider.stream(ask())) as stream:
        async for each in stream:
            if isinstance(each, TextDelta):
                break

    await server.connections[0].wait_closed()


async def test_cancelling_the_reader_closes_the_connection(server, provider):
    server.play(Answer(start() + text("a"), HANG))
    began = asyncio.Event()

    async def read() -> None:
        async for each in provider.stream(ask()):
            if isinstance(each, TextDelta):
                began.set()

    reading = asyncio.create_task(read())
    await began.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    await server.connections[0].wait_closed()


async def test_cancelling_before_the_answer_begins_closes_the_connection(server, provider):
    gate = Gate()
    server.play(Answer(gate, said("never")))
    reading = asyncio.create_task(answer_of(provider))
    await gate.reached()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    await server.connections[0].wait_closed()


async def test_closing_the_provider_ends_its_streams_with_a_neutral_error(server):
    provider = AnthropicProvider(api_key="key", base_url=server.url)
    server.play(Answer(start() + text("a"), HANG))
    stream = provider.stream(ask())
    while not isinstance(await anext(stream), TextDelta):
        pass
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)

    await provider.aclose()
    await provider.aclose()

    with pytest.raises(ConnectionFailedError, match="closed"):
        await asyncio.wait_for(reading, 5)
    with pytest.raises(ConnectionFailedError, match="closed"):
        await answer_of(provider)
    await server.connections[0].wait_closed()


async def test_many_streams_at_once_keep_apart_and_leave_nothing():
    before = asyncio.all_tasks(), threads()
    with WireServer() as server:
        provider = AnthropicProvider(api_key="key", base_url=server.url)
        server.play(*(Answer(*pieces(said(f"<{n}>", "x" * n), 11)) for n in range(30)))

        answers = await asyncio.gather(*(answer_of(provider) for _ in range(30)))

        await provider.aclose()
        for connection in server.connections:
            await connection.wait_closed()
    assert sorted(answer.text for answer in answers) == sorted(
        f"<{n}>" + "x" * n for n in range(30)
    )
    assert (asyncio.all_tasks(), threads()) == before


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("default_profile", [False, True])
def test_a_missing_key_is_named(monkeypatch, tmp_path, default_profile):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    monkeypatch.setenv(
        "ANTHROPIC_CONFIG_DIR", str(tmp_path if default_profile else tmp_path / "no")
    )
    (tmp_path / "active_config").write_text("default")

    with pytest.raises(MissingCredentialsError, match="ANTHROPIC_API_KEY"):
        AnthropicProvider()


async def test_key_and_address_come_from_the_environment(monkeypatch, server):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "from-env")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    provider = AnthropicProvider(model="claude-mine")
    server.play(Answer(said("a")))

    await answer_of(provider, ask(model=""))

    await provider.aclose()
    assert server.requests[0].headers["authorization"] == "Bearer from-env"
    assert server.requests[0].json()["model"] == "claude-mine"


def test_an_address_that_is_none_is_a_configuration_error():
    with pytest.raises(ConfigurationError):
        AnthropicProvider(api_key="key", base_url="http://host:notaport")


async def test_models_are_listed(server, provider):
    listed = {
        "data": [
            {
                "type": "model",
                "id": "claude-a",
                "display_name": "A",
                "created_at": "2026-01-01T00:00:00Z",
            }
        ],
        "has_more": False,
    }
    server.play(error_answer(200, listed), error_answer(401, refusal("authentication_error")))

    assert list(await provider.models()) == ["claude-a"]
    with pytest.raises(AuthenticationError):
        await provider.models()


def test_it_is_a_provider_and_says_what_it_can(provider):
    assert isinstance(provider, Provider)
    assert provider.name == "anthropic"
    assert provider.capabilities.tools
    assert provider.capabilities.thinking
    assert provider.capabilities.json_schema
