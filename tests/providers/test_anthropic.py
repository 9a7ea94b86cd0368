"""The anthropic adapter: the official SDK against a server that plays the wire byte by byte."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import socket
import sys
import threading
from contextlib import aclosing

import pytest

from atlas.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    IncompleteStreamError,
    InvalidResponseError,
    MissingCredentialsError,
    MissingDependencyError,
    OverloadedError,
    ProviderError,
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
from atlas.testing.providers import check_provider

from support.anthropic_cases import (
    ERROR_ROWS,
    STREAM_ROWS,
    block,
    delta,
    end,
    event,
    refusal,
    start,
    stop,
    text,
)
from support.cases import CASES, Row
from support.checking import check_row
from support.wire import (
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

EVERY_LINE_END = "A\u0085B\u2028C\u2029D\x0b\x0c\x1cE 🎉 日本"


def ask(text: str = "Hi", **options) -> ChatRequest:
    messages = options.pop("messages", (ChatMessage(role="user", parts=(TextPart(text),)),))
    return ChatRequest(messages=messages, model=options.pop("model", "claude-test"), **options)


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


# -- the cases that all protocols share -----------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(r, id=r.case) for r in (*STREAM_ROWS, *ERROR_ROWS)])
async def test_case(case: Row):
    await check_row(case, lambda url: AnthropicProvider(api_key="key", base_url=url))


def test_the_cases_left_out_are_those_that_the_protocol_cannot_say():
    assert set(CASES) - {row.case for row in (*STREAM_ROWS, *ERROR_ROWS)} == {
        "content-filter-cut",
        "content-filter",
        "tool-index-missing",
        "tool-id-missing",
        "tool-id-and-name-repeated",
        "tool-id-late",
    }


class Claude(WireServer):
    """Answers with the same words, and knows one model."""

    def next_answer(self, request):
        if request.method == "GET":
            return error_answer(200, {"data": [], "has_more": False})
        if request.json()["model"] != "claude-test":
            return error_answer(404, refusal("not_found_error", "model: nobody"))
        return Answer(*pieces(said("Hello", " there", "!"), 40))


async def test_it_keeps_the_promises_of_a_provider():
    with Claude() as server:
        await check_provider(
            lambda: AnthropicProvider(model="claude-test", api_key="key", base_url=server.url),
            failing=ask(model="nobody"),
        )


# -- answers --------------------------------------------------------------------------------------


async def test_text_usage_and_the_end_arrive(server, provider):
    server.play(Answer(said("Hel", "lo")))

    answer = await answer_of(provider)

    assert answer.text == "Hello"
    assert (answer.finish_reason, answer.raw_finish_reason) == ("stop", "end_turn")
    assert (answer.response_id, answer.model) == ("msg_1", "test-model")
    assert answer.usage == Usage(input_tokens=5, output_tokens=2)


async def test_every_line_end_of_the_specification_is_understood(server, provider):
    wire = said("one", "two").replace(b"\n", b"\r\n")
    server.play(Answer(*pieces(wire, 5)), Answer(*pieces(said("x").replace(b"\n", b"\r"), 3)))

    assert (await answer_of(provider)).text == "onetwo"
    assert (await answer_of(provider)).text == "x"


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

    assert [call.arguments for call in (await answer_of(provider)).tool_calls] == ["", '{"x": 1}']


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

    assert (usage.input_tokens, usage.output_tokens) == (5, 8)


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


async def test_a_seed_is_refused_since_the_vendor_knows_none(server, provider):
    assert isinstance(await failure_of(provider, ask(seed=1)), BadRequestError)
    assert server.requests == []


async def test_text_that_cannot_be_encoded_is_a_bad_request(provider):
    assert isinstance(await failure_of(provider, ask("half a \ud83d")), BadRequestError)


# -- failures -------------------------------------------------------------------------------------


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


async def test_a_stop_reason_without_the_end_marker_is_incomplete(server, provider):
    server.play(Answer(said("a").removesuffix(event("message_stop"))))

    assert type(await failure_of(provider)) is IncompleteStreamError


@pytest.mark.parametrize("ending", [DROP, RESET])
async def test_a_connection_dropped_in_mid_token_is_a_connection_error(server, provider, ending):
    server.play(Answer(start() + text("a") + text("🎉")[:-20], ending))

    assert type(await failure_of(provider)) is ConnectionFailedError


async def test_a_connection_dropped_before_the_answer_is_a_connection_error(server, provider):
    server.play(Answer(RESET, framing="length"))

    assert type(await failure_of(provider)) in {ConnectionFailedError, IncompleteStreamError}


@pytest.mark.parametrize(
    "broken",
    [
        b"event: content_block_delta\ndata: {not json}\n\n",
        sse("[1, 2]"),
        sse("null"),
        sse("42"),
        sse(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 7}}
        ),
        sse("[" * 100_000),
        sse({"type": "content_block_delta", "index": 0}),
        sse({"type": "content_block_delta", "index": 0, "delta": None}),
        sse({"type": "content_block_delta", "index": [0], "delta": {"type": "text_delta"}}),
        sse({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}),
        sse({"type": "message_start", "message": "words"}),
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

    with pytest.raises(ProviderError, match="closed"):
        await asyncio.wait_for(reading, 5)
    with pytest.raises(ProviderError, match="closed"):
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


@pytest.mark.parametrize("key", ["sk-“quoted”", "two\nlines"])
def test_a_key_that_cannot_be_sent_is_a_configuration_error(key):
    with pytest.raises(ConfigurationError, match="copy it again"):
        AnthropicProvider(api_key=key)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"data": [1]}', b'{"data": null}', b"[]"])
async def test_a_list_of_models_that_is_none_leaks_nothing_foreign(server, provider, body):
    server.play(error_answer(200, body))

    try:
        models = await provider.models()
    except InvalidResponseError as error:
        models = error

    assert isinstance(models, InvalidResponseError) or list(models) == []


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


def test_without_its_package_it_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anthropic", None)
    spec = importlib.util.find_spec("atlas.providers.anthropic")

    with pytest.raises(MissingDependencyError, match=r"atlas\[anthropic\]") as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    assert caught.value.extra == "anthropic"
