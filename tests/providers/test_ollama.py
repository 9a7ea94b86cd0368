"""The ollama adapter: the official SDK's client against a server written from Ollama's API."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import socket
import sys
import threading
from contextlib import aclosing

import ollama
import pytest

from atlas.errors import (
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidResponseError,
    MissingDependencyError,
    ModelNotFoundError,
    ProviderError,
    ServerError,
)
from atlas.providers.assembler import Assembler
from atlas.providers.base import ChatRequest, Provider, TextDelta
from atlas.providers.messages import (
    ChatMessage,
    Completion,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
    Usage,
)
from atlas.providers.ollama import OllamaProvider
from atlas.providers.resilience import Deadlines, RetryPolicy, resilient_stream
from atlas.testing.providers import check_provider

from support.cases import CASES, Row
from support.checking import check_row
from support.ollama_cases import ERROR_ROWS, STREAM_ROWS
from support.ollama_server import Call, Failure, Model, OllamaServer, Thought
from support.wire import (
    DROP,
    HANG,
    RESET,
    Answer,
    Gate,
    Repeat,
    error_answer,
    ndjson,
    pieces,
)

EVERY_LINE_END = "A\u0085B\u2028C\u2029D\x0b\x0c\x1cE 🎉 日本 <&>"


def ask(text: str = "Hi", **options) -> ChatRequest:
    messages = options.pop("messages", (ChatMessage(role="user", parts=(TextPart(text),)),))
    return ChatRequest(messages=messages, model=options.pop("model", "tiny"), **options)


def said(*words: str, **ending) -> list[dict]:
    lines = [
        {"model": "tiny", "message": {"role": "assistant", "content": word}, "done": False}
        for word in words
    ]
    last = {"model": "tiny", "message": {"role": "assistant", "content": ""}, "done": True}
    return [*lines, {**last, "done_reason": "stop", "eval_count": len(words), **ending}]


def lines(*steps, **options) -> Answer:
    return Answer(*steps, content_type="application/x-ndjson", **options)


def threads() -> set[str]:
    """Threads beside those in which the event loop resolves names: they are the loop's to end."""
    return {each.name for each in threading.enumerate() if not each.name.startswith("asyncio")}


@pytest.fixture
def server():
    with OllamaServer(Model("tiny"), Model("other:1b")) as server:
        yield server


@pytest.fixture
async def provider(server):
    provider = OllamaProvider(base_url=server.url)
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
    assert caught.value.provider == "ollama"
    return caught.value


def scripted(server: OllamaServer, *script) -> None:
    server.models["tiny:latest"].answer = lambda _request: script


# -- the test server is Ollama to Ollama's own SDK ------------------------------------------------


async def test_the_official_sdk_understands_the_test_server(server):
    scripted(server, Thought("Hm."), "Hel", "lo", Call("look", {"x": 1}))
    client = ollama.AsyncClient(server.url)
    turn = [{"role": "user", "content": "Hi"}]

    whole = await client.chat("tiny", turn, think=True)
    streamed = [part async for part in await client.chat("tiny", turn, stream=True)]
    listed, shown = await client.list(), await client.show("other:1b")
    with pytest.raises(ollama.ResponseError) as caught:
        await client.chat("nobody", turn)

    await client.close()
    assert (whole.message.content, whole.message.thinking) == ("Hello", "Hm.")
    assert whole.message.tool_calls[0].function.arguments == {"x": 1}
    assert whole.prompt_eval_count
    assert [part.message.content for part in streamed] == ["Hel", "lo", "", ""]
    assert streamed[-1].done_reason == "stop"
    assert streamed[-1].prompt_eval_count is None
    assert [model.model for model in listed.models] == ["tiny:latest", "other:1b"]
    assert "tools" in shown.capabilities
    assert (caught.value.status_code, caught.value.error) == (404, "model 'nobody' not found")


# -- the cases that all protocols share -----------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(r, id=r.case) for r in (*STREAM_ROWS, *ERROR_ROWS)])
async def test_case(case: Row):
    await check_row(case, lambda url: OllamaProvider(base_url=url))


def test_the_cases_left_out_are_those_that_the_protocol_cannot_say():
    assert set(CASES) - {row.case for row in (*STREAM_ROWS, *ERROR_ROWS)} == {
        "refusal",
        "content-filter-cut",
        "content-filter",
        "quota",
        "interleaved-tool-calls",
        "tool-index-missing",
        "tool-id-and-name-repeated",
        "tool-id-late",
        "error-first-in-stream",
    }


async def test_it_keeps_the_promises_of_a_provider(server):
    await check_provider(
        lambda: OllamaProvider(model="tiny", base_url=server.url), failing=ask(model="nobody")
    )


# -- answers --------------------------------------------------------------------------------------


async def test_text_usage_and_the_end_arrive(provider):
    answer = await answer_of(provider, ask("one two three"))

    assert answer.text == "one two three"
    assert (answer.finish_reason, answer.raw_finish_reason) == ("stop", "stop")
    assert answer.model == "tiny"
    assert answer.usage.output_tokens == 3
    assert answer.usage.input_tokens > 0


async def test_a_prompt_in_the_cache_has_no_count(provider):
    await answer_of(provider, ask("again"))

    assert (await answer_of(provider, ask("again"))).usage == Usage(output_tokens=1)


async def test_the_limit_ends_an_answer_with_the_reason_length(provider):
    answer = await answer_of(provider, ask("one two three", max_tokens=2))

    assert (answer.text, answer.finish_reason) == ("one two", "length")


async def test_characters_that_the_sdk_takes_for_line_ends_arrive(server, provider):
    scripted(server, EVERY_LINE_END)

    assert (await answer_of(provider)).text == EVERY_LINE_END


async def test_a_compressed_answer_is_read(server, provider):
    body = gzip.compress(ndjson(*said("packed")))
    server.play(lines(*pieces(body, 9), headers={"content-encoding": "gzip"}))

    assert (await answer_of(provider)).text == "packed"


async def test_thinking_is_told_apart_from_text(server, provider):
    scripted(server, Thought("Let me "), Thought("see."), "Yes")

    answer = await answer_of(provider, ask(thinking_tokens=100))
    silent = await answer_of(provider)

    assert answer.parts == (ThinkingPart("Let me see."), TextPart("Yes"))
    assert silent.parts == (TextPart("Yes"),)


async def test_parallel_tool_calls_are_told_apart_though_their_index_is_the_same(server, provider):
    scripted(server, "Wait", Call("look", {"q": "déjà 🎉"}, id="call_a"), Call("look", {"q": 2}))

    answer = await answer_of(provider)

    assert answer.finish_reason == "tool_calls"
    assert answer.tool_calls[0].id == "call_a"
    assert [json.loads(call.arguments) for call in answer.tool_calls] == [
        {"q": "déjà 🎉"},
        {"q": 2},
    ]
    assert len({call.id for call in answer.tool_calls}) == 2


async def test_several_calls_in_one_line_and_arguments_as_text_are_understood(server, provider):
    calls = [
        {"function": {"name": "now"}},
        {"function": {"name": "look", "arguments": '{"x": oops'}},
    ]
    first = {"message": {"role": "assistant", "tool_calls": calls}, "done": False}
    server.play(lines(ndjson(first, *said())))

    assert [(call.name, call.arguments) for call in (await answer_of(provider)).tool_calls] == [
        ("now", ""),
        ("look", '{"x": oops'),
    ]


@pytest.mark.parametrize(
    ("raw", "neutral"),
    [("stop", "stop"), ("length", "length"), ("", "stop"), (None, "stop"), ("load", "unknown")],
)
async def test_stop_reasons_are_neutral_and_the_vendors_word_is_kept(
    server, provider, raw, neutral
):
    server.play(lines(ndjson(*said("a", done_reason=raw))))

    answer = await answer_of(provider)

    assert (answer.finish_reason, answer.raw_finish_reason) == (neutral, raw)


async def test_the_last_line_counts_without_its_line_end(server, provider):
    server.play(lines(ndjson(*said("a")).rstrip()))

    assert (await answer_of(provider)).finish_reason == "stop"


async def test_text_in_the_last_line_is_kept(server, provider):
    last = {"message": {"role": "assistant", "content": "!"}, "done": True}
    server.play(lines(ndjson(*said("a")[:-1], last)))

    assert (await answer_of(provider)).text == "a!"


async def test_a_finished_answer_leaves_its_connection_for_the_next(server, provider):
    await answer_of(provider)
    await answer_of(provider)

    assert len(server.connections) == 1


async def test_a_server_that_hangs_after_the_end_marker_holds_nobody(server, provider):
    server.play(lines(ndjson(*said("a")), HANG))

    assert (await answer_of(provider)).text == "a"
    await server.connections[0].wait_closed()


# -- what is sent ---------------------------------------------------------------------------------


async def test_a_request_is_said_in_the_servers_words(server):
    provider = OllamaProvider(base_url=server.url, keep_alive="10m", api_key="secret")
    request = ask(
        messages=(
            ChatMessage(role="system", parts=(TextPart("Be kind."),)),
            ChatMessage(role="user", parts=(TextPart("Hi "), TextPart("there"))),
            ChatMessage(
                role="assistant",
                parts=(
                    ThinkingPart("hm"),
                    ToolCallPart("c1", "look", '{"q": 1}'),
                    ToolCallPart("c2", "see", "{broken"),
                ),
            ),
            ChatMessage(
                role="tool", parts=(ToolResultPart("c1", "found"), ToolResultPart("c2", "seen"))
            ),
        ),
        tools=(ToolSpec("look", "Look up.", '{"type": "object"}'),),
        max_tokens=100,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=("END",),
        json_schema='{"type": "object"}',
        thinking_tokens=10,
        extra={"options": {"num_ctx": 8192}, "logprobs": True},
    )

    await answer_of(provider, request)

    await provider.aclose()
    sent = server.requests[0]
    assert (sent.method, sent.path) == ("POST", "/api/chat")
    assert sent.headers["authorization"] == "Bearer secret"
    call = {"id": "c1", "function": {"name": "look", "arguments": {"q": 1}}}
    broken = {
        "id": "c2",
        "function": {"name": "see", "arguments": {"invalid_arguments": "{broken"}},
    }
    function = {"name": "look", "description": "Look up.", "parameters": {"type": "object"}}
    assert sent.json() == {
        "model": "tiny",
        "stream": True,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi there"},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call, broken]},
            {"role": "tool", "content": "found", "tool_name": "look", "tool_call_id": "c1"},
            {"role": "tool", "content": "seen", "tool_name": "see", "tool_call_id": "c2"},
        ],
        "tools": [{"type": "function", "function": function}],
        "format": {"type": "object"},
        "think": True,
        "keep_alive": "10m",
        "logprobs": True,
        "options": {
            "num_predict": 100,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 7,
            "stop": ["END"],
            "num_ctx": 8192,
        },
    }


async def test_what_is_not_said_is_left_to_the_server(server, provider):
    server.play(lines(ndjson(*said("a"))))

    await answer_of(provider, ask(model=""))

    assert server.requests[0].json() == {
        "model": provider.default_model,
        "stream": True,
        "messages": [{"role": "user", "content": "Hi"}],
    }


@pytest.mark.parametrize(
    "options",
    [{"tool_choice": "required"}],
)
async def test_what_cannot_be_asked_is_refused_before_anything_is_sent(server, provider, options):
    assert isinstance(await failure_of(provider, ask(**options)), BadRequestError)
    assert server.requests == []


async def test_tools_are_left_out_where_none_may_be_called(server, provider):
    tool = ToolSpec("look", "Look up.", '{"type": "object"}')

    await answer_of(provider, ask(tools=(tool,), tool_choice="none"))

    assert "tools" not in server.requests[0].json()


async def test_text_that_cannot_be_encoded_is_a_bad_request(provider):
    assert isinstance(await failure_of(provider, ask("half a \ud83d")), BadRequestError)


# -- failures -------------------------------------------------------------------------------------


async def test_a_missing_model_is_named_with_the_command_that_gets_it(server, provider):
    error = await failure_of(provider, ask(model="nobody"))

    assert type(error) is ModelNotFoundError
    assert "`ollama pull nobody`" in str(error)
    assert (error.status, error.model) == (404, "nobody")


async def test_nobody_at_the_address_is_named_with_the_mend():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    provider = OllamaProvider(base_url=f"127.0.0.1:{port}")

    error = await failure_of(provider)

    with pytest.raises(ConnectionFailedError):
        await provider.models()
    await provider.aclose()
    assert type(error) is ConnectionFailedError
    assert "`ollama serve` running there" in str(error)
    assert f"http://127.0.0.1:{port}" in str(error)


@pytest.mark.parametrize(
    ("option", "ability"), [("tools", "tools"), ("thinking_tokens", "thinking")]
)
async def test_what_a_model_cannot_is_a_bad_request_in_its_words(server, provider, option, ability):
    server.models["tiny:latest"].capabilities = ("completion",)
    asked = {"tools": (ToolSpec("look", "", "{}"),), "thinking_tokens": 5}

    error = await failure_of(provider, ask(**{option: asked[option]}))

    assert type(error) is BadRequestError
    assert f"does not support {ability}" in str(error)


async def test_an_error_in_mid_stream_is_a_neutral_error(server, provider):
    scripted(server, "a", Failure("an error was encountered while running the model"))

    error = await failure_of(provider)

    assert type(error) is ServerError
    assert "while running the model" in str(error)


@pytest.mark.parametrize("ending", [DROP, RESET])
async def test_a_connection_dropped_in_mid_token_is_a_connection_error(server, provider, ending):
    server.play(lines(ndjson(*said("a", "🎉"))[:-120], ending))

    assert type(await failure_of(provider)) is ConnectionFailedError


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html; charset=utf-8", b"<html><body>Please log in</body></html>\n"),
        ("application/x-ndjson", b"<html><body>Please log in</body></html>\n"),
        ("application/json", b'"words"\n'),
    ],
)
async def test_an_answer_that_is_none_of_ollamas_is_invalid(server, provider, content_type, body):
    server.play(Answer(body, content_type=content_type))

    error = await failure_of(provider)

    assert type(error) is InvalidResponseError
    assert "any proxy" in str(error)


@pytest.mark.parametrize(
    "broken",
    [
        b"{not json}\n",
        b"[1, 2]\n",
        b"null\n",
        b"42\n",
        b"[" * 100_000 + b"\n",
        ndjson({"message": "words", "done": False}),
        ndjson({"message": {"tool_calls": [{"function": {}}]}, "done": False}),
        ndjson({"message": {"tool_calls": 5}, "done": False}),
        ndjson({"message": {}, "done": True, "done_reason": ["stop"]}),
        b"\xff\xfe\x00{\n",
    ],
)
async def test_a_broken_line_is_an_invalid_response(server, provider, broken):
    server.play(lines(ndjson(*said("a")[:-1]) + broken + ndjson(*said("b"))))

    assert type(await failure_of(provider)) is InvalidResponseError


async def test_a_body_that_cannot_be_decompressed_is_an_invalid_response(server, provider):
    server.play(lines(ndjson(*said("a")), headers={"content-encoding": "gzip"}))

    assert type(await failure_of(provider)) is InvalidResponseError


async def test_lines_without_content_for_ever_end_at_the_total_deadline(server, provider):
    nothing = ndjson(*said("")[:-1])
    server.play(lines(nothing, Repeat(nothing)))
    stream = resilient_stream(
        provider,
        ask(),
        deadlines=Deadlines(first_token=None, gap=None, total=0.3),
        retries=RetryPolicy(attempts=1),
    )

    with pytest.raises(DeadlineExceededError) as caught:
        async with aclosing(stream):
            _ = [each async for each in stream]

    assert caught.value.deadline == "total"
    await server.connections[0].wait_closed()


# -- leaving, and several at once -----------------------------------------------------------------


async def test_leaving_the_loop_closes_the_connection(server, provider):
    server.play(lines(Repeat(ndjson(*said("word ")[:-1]))))

    async with aclosing(provider.stream(ask())) as stream:
        async for each in stream:
            if isinstance(each, TextDelta):
                break

    await server.connections[0].wait_closed()


async def test_cancelling_the_reader_closes_the_connection(server, provider):
    gate = Gate()
    scripted(server, "a", gate, "never")
    reading = asyncio.create_task(answer_of(provider))
    await gate.reached()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    await server.connections[0].wait_closed()


async def test_closing_the_provider_ends_its_streams_with_a_neutral_error(server):
    provider = OllamaProvider(base_url=server.url)
    server.play(lines(ndjson(*said("a")[:-1]), HANG))
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
    with OllamaServer(Model("tiny")) as server:
        provider = OllamaProvider(base_url=server.url)

        answers = await asyncio.gather(*(answer_of(provider, ask(f"a b c {n}")) for n in range(30)))

        await provider.aclose()
        for connection in server.connections:
            await connection.wait_closed()
    assert [answer.text for answer in answers] == [f"a b c {n}" for n in range(30)]
    assert (asyncio.all_tasks(), threads()) == before


# -- settings -------------------------------------------------------------------------------------


async def test_the_address_comes_from_the_environment(monkeypatch, server):
    monkeypatch.setenv("OLLAMA_HOST", server.url.removeprefix("http://"))
    provider = OllamaProvider(model="other:1b")

    answer = await answer_of(provider, ask("from there", model=""))

    await provider.aclose()
    assert answer.text == "from there"
    assert server.requests[0].json()["model"] == "other:1b"


@pytest.mark.parametrize("address", ["http://host:notaport", "host:99999999"])
def test_an_address_that_is_none_is_a_configuration_error(address):
    with pytest.raises(ConfigurationError, match="OLLAMA_HOST"):
        OllamaProvider(base_url=address)


async def test_models_are_listed(server, provider):
    assert list(await provider.models()) == ["tiny:latest", "other:1b"]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"models": [1]}', b'{"models": null}'])
async def test_a_list_of_models_that_is_none_is_an_invalid_response(server, provider, body):
    server.play(error_answer(200, body))

    with pytest.raises(InvalidResponseError):
        await provider.models()


def test_it_is_a_provider_and_says_what_it_can(provider):
    assert isinstance(provider, Provider)
    assert provider.name == "ollama"
    assert provider.default_model == "llama3.2"
    assert provider.capabilities.json_schema


def test_without_its_package_it_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ollama", None)
    spec = importlib.util.find_spec("atlas.providers.ollama")

    with pytest.raises(MissingDependencyError, match=r"atlas\[ollama\]") as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    assert caught.value.extra == "ollama"
