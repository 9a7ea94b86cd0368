"""The OpenAI adapter against a server that plays the awkward cases byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import threading

import openai
import pytest

from atlas.errors import (
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidResponseError,
    MissingCredentialsError,
    OverloadedError,
    ProviderError,
)
from atlas.providers.base import Finished, Provider, TextDelta
from atlas.providers.messages import (
    ChatMessage,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
)
from atlas.providers.openai import OpenAIProvider
from atlas.providers.resilience import Deadlines, RetryPolicy, resilient_stream

from support.cases import CASES, Row
from support.checking import ask, check_row, request
from support.openai_cases import (
    CHAT_ROWS,
    ERROR_ROWS,
    RESPONSES_ROWS,
    chat_answer,
    chunk,
    fragment,
    responses_answer,
    tool_answer,
    words,
)
from support.wire import HANG, RESET, Answer, Gate, Repeat, WireServer, pieces, sse


def chat_at(url: str, **options) -> OpenAIProvider:
    return OpenAIProvider(api_key="key", base_url=f"{url}/v1", **options)


def responses_at(url: str, **options) -> OpenAIProvider:
    return chat_at(url, api="responses", **options)


def named(rows):
    return [pytest.param(row, id=row.case) for row in rows]


@pytest.mark.parametrize("row", named((*CHAT_ROWS, *ERROR_ROWS)))
async def test_chat(row: Row) -> None:
    await check_row(row, chat_at)


@pytest.mark.parametrize("row", named((*RESPONSES_ROWS, *ERROR_ROWS)))
async def test_responses(row: Row) -> None:
    await check_row(row, responses_at)


def test_chat_has_a_row_for_every_case() -> None:
    assert {row.case for row in (*CHAT_ROWS, *ERROR_ROWS)} == set(CASES)


# -- ends -----------------------------------------------------------------------------------------


async def test_a_missing_done_is_allowed_on_request_if_a_finish_reason_came() -> None:
    with WireServer() as server:
        server.play(
            Answer(*words("Hello"), chunk({}, "stop")),
            Answer(*words("Hello")),
        )
        provider = chat_at(server.url, require_done=False)

        assert (await ask(provider)).text == "Hello"
        with pytest.raises(ProviderError) as caught:
            await ask(provider)
        assert caught.value.kind == "incomplete_stream"
        await provider.aclose()


async def test_parallel_calls_keep_the_order_in_which_they_began() -> None:
    def begun(number: int, name: str) -> dict[str, object]:
        return fragment(number, f"call_{number}", name, "")

    with WireServer() as server:
        server.play(
            tool_answer(
                *(begun(0, "first"), begun(1, "second")),
                *(fragment(1, None, None, "{}"), fragment(0, None, None, "{}")),
            )
        )
        provider = chat_at(server.url)

        assert [call.name for call in (await ask(provider)).tool_calls] == ["first", "second"]
        await provider.aclose()


async def test_parallel_calls_of_the_responses_api_keep_their_order() -> None:
    def begun(number: int, name: str) -> dict[str, object]:
        item = {"type": "function_call", "call_id": f"call_{number}", "name": name, "arguments": ""}
        return {"type": "response.output_item.added", "output_index": number, "item": item}

    def arguments(number: int) -> dict[str, object]:
        kind = "response.function_call_arguments.delta"
        return {"type": kind, "output_index": number, "delta": "{}"}

    with WireServer() as server:
        server.play(
            Answer(
                sse(begun(0, "first"), begun(1, "second"), arguments(1), arguments(0)),
                sse({"type": "response.completed", "response": {"id": "r"}}),
            )
        )
        provider = responses_at(server.url)

        assert [call.name for call in (await ask(provider)).tool_calls] == ["first", "second"]
        await provider.aclose()


async def test_an_answer_nested_too_deep_to_read_is_no_foreign_error() -> None:
    with WireServer() as server:
        server.play(Answer(b"[" * 60_000, content_type="application/json"))
        provider = chat_at(server.url)

        with pytest.raises(ProviderError) as caught:
            await ask(provider)
        assert caught.value.kind == "invalid_response"
        await provider.aclose()


async def test_done_without_a_last_blank_line_counts() -> None:
    with WireServer() as server:
        server.play(Answer(*words("Hello"), chunk({}, "stop"), b"data: [DONE]"))
        provider = chat_at(server.url)

        assert (await ask(provider)).finish_reason == "stop"
        await provider.aclose()


async def test_done_without_anything_before_it_is_no_answer() -> None:
    with WireServer() as server:
        server.play(Answer(sse("[DONE]")))
        provider = chat_at(server.url)

        with pytest.raises(ProviderError, match="finish reason"):
            await ask(provider)
        await provider.aclose()


async def test_the_connection_is_used_again_after_a_whole_answer() -> None:
    with WireServer() as server:
        server.play(*[chat_answer(*words("Hello"))] * 3)
        provider = chat_at(server.url)
        for _ in range(3):
            await ask(provider)
        await provider.aclose()

        assert len(server.connections) == 1


async def test_a_server_that_keeps_the_connection_open_after_done_does_not_hold_the_reader() -> (
    None
):
    with WireServer() as server:
        server.play(Answer(*words("Hello"), chunk({}, "stop"), sse("[DONE]"), HANG))
        provider = chat_at(server.url)

        assert (await ask(provider)).text == "Hello"
        await server.connections[0].wait_closed()
        await provider.aclose()


async def test_a_reset_connection_is_a_typed_error() -> None:
    with WireServer() as server:
        gate = Gate()
        server.play(Answer(*words("Hello"), gate, RESET))
        provider = chat_at(server.url)
        async with resilient_stream(provider, request()) as deltas:
            async for delta in deltas:
                if isinstance(delta, TextDelta):
                    break
            gate.open()
            with pytest.raises(ConnectionFailedError) as caught:
                await anext(deltas)

        assert caught.value.partial == "Hello"
        await provider.aclose()


async def test_an_encoded_body_is_decoded_and_a_broken_one_is_named() -> None:
    whole = gzip.compress(b"".join((*words("Hello"), chunk({}, "stop"), sse("[DONE]"))))
    headers = {"content-encoding": "gzip"}
    with WireServer() as server:
        server.play(Answer(*pieces(whole, 9), headers=headers), Answer(b"data", headers=headers))
        provider = chat_at(server.url)

        assert (await ask(provider)).text == "Hello"
        with pytest.raises(InvalidResponseError, match="decompressing"):
            await ask(provider)
        await provider.aclose()


async def test_an_error_inside_a_stream_knows_its_request() -> None:
    failure = sse({"error": {"message": "busy", "code": 503}})
    with WireServer() as server:
        server.play(Answer(*words("Hello"), failure, headers={"x-request-id": "req_7"}))
        provider = chat_at(server.url)

        with pytest.raises(ProviderError) as caught:
            await ask(provider)
        assert (caught.value.kind, caught.value.request_id) == ("overloaded", "req_7")
        await provider.aclose()


# -- leaving --------------------------------------------------------------------------------------


def endless() -> Answer:
    return Answer(*words("Hello"), HANG)


@pytest.mark.parametrize("at", [chat_at, responses_at])
async def test_breaking_out_of_the_loop_closes_the_socket(at) -> None:
    with WireServer() as server:
        gate = Gate()
        server.play(
            chat_answer(*words("Hello"), gate)
            if at is chat_at
            else responses_answer(sse({"type": "response.output_text.delta", "delta": "x"}), gate)
        )
        provider = at(server.url)
        async with resilient_stream(provider, request()) as deltas:
            async for delta in deltas:
                if isinstance(delta, TextDelta):
                    break

        await server.connections[0].wait_closed()
        await provider.aclose()


async def test_closing_the_bare_generator_closes_the_socket() -> None:
    with WireServer() as server:
        server.play(endless())
        provider = chat_at(server.url)
        deltas = provider.stream(request())
        await anext(deltas)
        await deltas.aclose()

        await server.connections[0].wait_closed()
        await provider.aclose()


async def test_cancelling_the_reader_closes_the_socket_and_stays_a_cancellation() -> None:
    with WireServer() as server:
        gate = Gate()
        server.play(Answer(*words("Hello"), gate, HANG))
        provider = chat_at(server.url)
        reader = asyncio.create_task(ask(provider))
        await gate.reached()
        reader.cancel()

        with pytest.raises(asyncio.CancelledError):
            await reader
        await server.connections[0].wait_closed()
        await provider.aclose()


async def test_cancelling_before_the_answer_begins_closes_the_socket() -> None:
    with WireServer() as server:
        gate = Gate()
        server.play(Answer(gate, HANG))
        provider = chat_at(server.url)
        reader = asyncio.create_task(ask(provider))
        await gate.reached()
        reader.cancel()

        with pytest.raises(asyncio.CancelledError):
            await reader
        await server.connections[0].wait_closed()
        await provider.aclose()


async def test_closing_from_another_task_ends_the_reader_and_closes_the_socket() -> None:
    with WireServer() as server:
        gate = Gate()
        server.play(Answer(*words("Hello"), gate, HANG))
        provider = chat_at(server.url)
        deltas = resilient_stream(provider, request())
        seen = []

        async def read() -> None:
            async for delta in deltas:
                seen.append(delta)

        reader = asyncio.create_task(read())
        await gate.reached()
        while not any(isinstance(delta, TextDelta) for delta in seen):
            await asyncio.sleep(0)
        await deltas.aclose()
        await reader

        await server.connections[0].wait_closed()
        assert not any(isinstance(delta, Finished) for delta in seen)
        await provider.aclose()


async def test_closing_the_provider_ends_open_streams_with_a_typed_error() -> None:
    with WireServer() as server:
        gate = Gate()
        server.play(Answer(*words("Hello"), gate, HANG))
        provider = chat_at(server.url)
        reader = asyncio.create_task(ask(provider))
        await gate.reached()
        await provider.aclose()
        await provider.aclose()

        await server.connections[0].wait_closed()
        with pytest.raises(ConnectionFailedError) as caught:
            await reader
        assert caught.value.partial == "Hello"
        with pytest.raises(ProviderError, match="is closed"):
            await ask(provider)


async def test_many_streams_at_once_on_one_client_leave_nothing_behind() -> None:
    tasks_before = asyncio.all_tasks()
    with WireServer(always=chat_answer(*words("Hello", " world"))) as server:
        provider = chat_at(server.url)
        threads_before = set(threading.enumerate())
        answers = await asyncio.gather(*(ask(provider) for _ in range(50)))
        await provider.aclose()
        for connection in server.connections:
            await connection.wait_closed()

        assert [answer.text for answer in answers] == ["Hello world"] * 50
        assert asyncio.all_tasks() == tasks_before
        # The SDK asks for the platform's name once, in the loop's own default executor.
        left = {t for t in set(threading.enumerate()) - threads_before if "asyncio" not in t.name}
        assert not left


async def test_a_reader_that_stops_reading_holds_the_server_back() -> None:
    written = threading.Event()
    big = chunk({"content": "x" * 10_000})
    with WireServer() as server:
        server.play(Answer(Repeat(big, 20_000, on_each=lambda n: n == 20_000 and written.set())))
        provider = chat_at(server.url)
        async with resilient_stream(provider, request()) as deltas:
            async for delta in deltas:
                if isinstance(delta, TextDelta):
                    break
            before = -1
            while before != server.connections[0].bytes_written:
                before = server.connections[0].bytes_written
                await asyncio.sleep(0.2)  # the kernel's buffers fill up, then nothing moves

            assert not written.is_set()
            assert before < 50_000_000
        await provider.aclose()


# -- deadlines ------------------------------------------------------------------------------------


async def test_pings_for_ever_do_not_hold_off_the_deadlines() -> None:
    with WireServer() as server:
        server.play(Answer(Repeat(b": ping\n\n")), Answer(*words("Hello"), Repeat(b": ping\n\n")))
        provider = chat_at(server.url)
        for limits, name, partial in (
            (Deadlines(first_token=0.2), "first_token", ""),
            (Deadlines(gap=0.2), "gap", "Hello"),
        ):
            with pytest.raises(DeadlineExceededError) as caught:
                async with resilient_stream(
                    provider, request(), deadlines=limits, retries=RetryPolicy(attempts=1)
                ) as deltas:
                    async for _ in deltas:
                        pass
            assert (caught.value.deadline, caught.value.partial) == (name, partial)
            await server.connections[-1].wait_closed()
        await provider.aclose()


async def test_rate_limits_are_waited_out_and_the_answer_comes() -> None:
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with WireServer() as server:
        limited = next(row.answer for row in ERROR_ROWS if row.case == "rate-limited-milliseconds")
        server.play(limited, limited, chat_answer(*words("Hello")))
        provider = chat_at(server.url)
        retries = []
        async with resilient_stream(
            provider, request(), sleep=sleep, on_retry=retries.append
        ) as deltas:
            texts = [delta.text async for delta in deltas if isinstance(delta, TextDelta)]

        assert texts == ["Hello"]
        assert [retry.attempt for retry in retries] == [1, 2]
        assert all(delay >= 1.5 for delay in slept)
        assert len(server.requests) == 3
        await provider.aclose()


# -- reaching the server --------------------------------------------------------------------------


async def test_a_refused_connection_says_so() -> None:
    with WireServer() as server:
        url = server.url
    provider = chat_at(url)

    with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1.*refused the connection"):
        await ask(provider)
    await provider.aclose()


async def test_a_server_that_accepts_nobody_breaks_the_connect_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, contextlib.ExitStack() as stack:
        for _ in range(2):  # the kernel takes the first ones for the server
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        provider = chat_at(f"http://127.0.0.1:{deaf.getsockname()[1]}")

        with pytest.raises(DeadlineExceededError, match=r"no connection within 0\.2 s") as caught:
            async with resilient_stream(
                provider,
                request(),
                deadlines=Deadlines(connect=0.2),
                retries=RetryPolicy(attempts=1),
            ) as deltas:
                await anext(deltas)
        assert caught.value.deadline == "connect"
        await provider.aclose()


async def test_a_failed_tls_handshake_says_so() -> None:
    with WireServer() as server:
        provider = chat_at(server.url.replace("http:", "https:"))

        with pytest.raises(ConnectionFailedError, match="TLS"):
            await ask(provider)
        await provider.aclose()


async def test_redirects_without_end_say_so() -> None:
    with WireServer() as server:
        server.always(
            Answer(status=307, headers={"location": f"{server.url}/again"}, framing="length")
        )
        provider = chat_at(server.url)

        with pytest.raises(InvalidResponseError, match="redirects without end"):
            await ask(provider)
        await provider.aclose()


@pytest.mark.parametrize(
    "url", ["nonsense", "http://", "ftp://127.0.0.1", "http://127.0.0.1:99999"]
)
async def test_an_address_that_is_none_says_so(url: str) -> None:
    provider = OpenAIProvider(api_key="key", base_url=url)

    with pytest.raises(ProviderError):
        await ask(provider)
    await provider.aclose()


# -- what is sent ---------------------------------------------------------------------------------

CONVERSATION = (
    ChatMessage("system", (TextPart("Be brief."),)),
    ChatMessage("user", (TextPart("Weather?"),)),
    ChatMessage(
        "assistant",
        (
            ThinkingPart("hm", '{"type":"reasoning","id":"rs_1","summary":[]}'),
            ThinkingPart("hm", "another vendor's"),
            TextPart("Let me look."),
            ToolCallPart("call_1", "weather", '{"city":"A"}'),
            ToolCallPart("call_2", "now", ""),
        ),
    ),
    ChatMessage(
        "tool", (ToolResultPart("call_1", "sunny"), ToolResultPart("call_2", "broken", True))
    ),
    ChatMessage("assistant", (RefusalPart("No."),)),
)
TOOL = ToolSpec("weather", "Weather of a city", '{"type": "object"}')
CALLS = [
    {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"A"}'},
    },
    {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]


async def sent(provider_at, answer: Answer, **fields):
    with WireServer() as server:
        server.play(answer)
        provider = provider_at(server.url)
        await ask(provider, request(**fields))
        await provider.aclose()
        return server.requests[0]


async def test_a_conversation_in_chat_completions() -> None:
    asked = await sent(chat_at, chat_answer(*words("Hello")), messages=CONVERSATION, tools=(TOOL,))

    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer key"
    assert asked.json() == {
        "model": "test-model",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "Let me look.", "tool_calls": CALLS},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "call_2", "content": "Error: broken"},
            {"role": "assistant", "content": "No."},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Weather of a city",
                    "parameters": {"type": "object"},
                },
            }
        ],
    }


async def test_a_conversation_in_the_responses_api() -> None:
    asked = await sent(
        responses_at, responses_answer(), messages=CONVERSATION, tools=(TOOL,), max_tokens=5
    )

    assert asked.path == "/v1/responses"
    assert asked.json() == {
        "model": "test-model",
        "stream": True,
        "store": False,
        "max_output_tokens": 5,
        "input": [
            {"type": "message", "role": "system", "content": "Be brief."},
            {"type": "message", "role": "user", "content": "Weather?"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Let me look."}],
            },
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "weather",
                "arguments": '{"city":"A"}',
            },
            {"type": "function_call", "call_id": "call_2", "name": "now", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            {"type": "function_call_output", "call_id": "call_2", "output": "Error: broken"},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "refusal", "refusal": "No."}],
            },
        ],
        "tools": [
            {
                "type": "function",
                "name": "weather",
                "description": "Weather of a city",
                "parameters": {"type": "object"},
                "strict": False,
            }
        ],
    }


async def test_every_option_reaches_the_server() -> None:
    asked = await sent(
        chat_at,
        chat_answer(*words("Hello")),
        max_tokens=7,
        temperature=0.0,
        top_p=0.5,
        seed=0,
        stop=("END",),
        thinking_tokens=4000,
        json_schema='{"type": "object"}',
        tools=(TOOL,),
        tool_choice="required",
        extra={"top_k": 3, "odd": {"nested": [1, {"a": None}]}},
    )
    body = asked.json()

    assert {
        k: body[k] for k in ("max_tokens", "temperature", "top_p", "seed", "stop", "top_k")
    } == {
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 0,
        "stop": ["END"],
        "top_k": 3,
    }
    assert body["odd"] == {"nested": [1, {"a": None}]}
    assert body["tool_choice"] == "required"
    assert body["reasoning_effort"] == "medium"
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize("fields", [{"extra": {"n": 2}}, {"model": ""}])
async def test_what_cannot_be_asked_is_a_bad_request(fields) -> None:
    with WireServer() as server:
        provider = chat_at(server.url)

        with pytest.raises(BadRequestError):
            await ask(provider, request(**fields))
        assert not server.requests
        await provider.aclose()


@pytest.mark.parametrize("fields", [{"stop": ("END",)}, {"seed": 1}])
async def test_what_the_responses_api_lacks_is_a_bad_request(fields) -> None:
    provider = responses_at("http://127.0.0.1:9")

    with pytest.raises(BadRequestError, match="api='chat'"):
        await ask(provider, request(**fields))
    await provider.aclose()


async def test_models_are_listed_sorted_and_failures_are_named() -> None:
    with WireServer() as server:
        server.play(
            Answer(
                b'{"object": "list", "data": [{"id": "b"}, {"id": "a"}]}',
                content_type="application/json",
                framing="length",
            ),
            next(row.answer for row in ERROR_ROWS if row.case == "unauthorized"),
            Answer(b"<html>login</html>", content_type="text/html"),
            Answer(b'{"data": [7]}', content_type="application/json"),
        )
        provider = chat_at(server.url)

        assert await provider.models() == ("a", "b")
        with pytest.raises(ProviderError, match="key"):
            await provider.models()
        for _ in range(2):
            with pytest.raises(InvalidResponseError, match="base URL"):
                await provider.models()
        await provider.aclose()


async def test_a_text_that_no_encoding_has_is_a_bad_request() -> None:
    provider = chat_at("http://127.0.0.1:9")

    with pytest.raises(BadRequestError, match="cannot be sent"):
        await ask(provider, request("half a pair: \ud800"))
    await provider.aclose()


async def test_a_client_of_ones_own_is_used_without_its_retries() -> None:
    with WireServer() as server:
        server.play(next(row.answer for row in ERROR_ROWS if row.case == "overloaded-503"))
        client = openai.AsyncOpenAI(
            api_key="key", base_url=server.url, default_headers={"x-own": "1"}
        )
        provider = OpenAIProvider(client=client)

        with pytest.raises(OverloadedError):
            await ask(provider)
        assert [asked.headers["x-own"] for asked in server.requests] == ["1"]
        await provider.aclose()
        assert client.is_closed()


# -- configuring ----------------------------------------------------------------------------------


def test_a_missing_key_names_the_variable(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    with pytest.raises(MissingCredentialsError, match="OPENAI_API_KEY"):
        OpenAIProvider()


def test_a_key_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="characters"):
        OpenAIProvider(api_key="“key”")


async def test_defaults_depend_on_the_address(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    own = OpenAIProvider()
    official = OpenAIProvider(api_key="key", base_url="https://api.openai.com/v1")

    assert (own.default_model, own.api) == ("", "chat")
    assert official.default_model
    assert official.api == "responses"
    assert isinstance(own, Provider)
    await own.aclose()
    await official.aclose()
