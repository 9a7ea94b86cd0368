"""The application through the official SDKs and real sockets: what the vendor's server sees."""

import asyncio
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import pytest

from atlas import Atlas
from atlas.errors import ConnectionFailedError, DeadlineExceededError, IncompleteStreamError
from atlas.providers import Deadlines, Provider, RetryPolicy
from atlas.providers.messages import StreamFailed

from support import anthropic_cases, ollama_cases, openai_cases
from support.wire import CUT, DROP, HANG, Answer, Repeat, Step, WireServer, error_answer

anthropic = pytest.importorskip("atlas.providers.anthropic", reason="anthropic is not installed")
ollama = pytest.importorskip("atlas.providers.ollama", reason="ollama is not installed")
openai = pytest.importorskip("atlas.providers.openai", reason="openai is not installed")


@dataclass(frozen=True)
class Protocol:
    """How one vendor begins an answer, pings, and how its adapter is pointed at a server."""

    provider_at: Callable[[str], Provider]
    begun: tuple[bytes, ...]  # two pieces of text: "Hello", " world"
    ping: bytes
    whole: Callable[[], Answer]
    content_type: str = "text/event-stream"

    def answer(self, *more: Step) -> Answer:
        return Answer(*self.begun, *more, content_type=self.content_type)


PROTOCOLS = {
    "openai": Protocol(
        lambda url: openai.OpenAIProvider(model="m", api_key="k", base_url=f"{url}/v1"),
        openai_cases.HELLO[:-2],
        b": ping\n\n",
        lambda: Answer(*openai_cases.HELLO),
    ),
    "anthropic": Protocol(
        lambda url: anthropic.AnthropicProvider(model="m", api_key="k", base_url=url),
        anthropic_cases.HELLO[:-1],
        anthropic_cases.event("ping"),
        lambda: Answer(*anthropic_cases.HELLO),
    ),
    "ollama": Protocol(
        lambda url: ollama.OllamaProvider(model="m", base_url=url),
        tuple(ollama_cases.words("Hello", " world")),
        b"\n",
        lambda: ollama_cases.answer(*ollama_cases.words("Hello", " world")),
        "application/x-ndjson",
    ),
}


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return PROTOCOLS[request.param]


def own_threads() -> set[str]:
    """Return the threads there are, but for the loop's own pool, which ends with the loop."""
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if not name.startswith("asyncio_")}


async def two_pieces(reply) -> None:
    """Read until both pieces of the begun answer are there, and go on waiting."""
    async for _ in reply:
        if reply.text == "Hello world":
            return


@pytest.mark.parametrize("way", ["cancel", "break", "task", "close"])
async def test_the_server_sees_the_connection_close(protocol: Protocol, way: str) -> None:
    with WireServer() as server:
        server.play(protocol.answer(HANG))
        provider = protocol.provider_at(server.url)
        async with Atlas(provider=provider) as app:
            reply = app.chat("Hi")
            if way == "task":
                reader = asyncio.create_task(two_pieces(reply))
                await asyncio.wait([reader])
                waiting = asyncio.ensure_future(reply)
                await asyncio.sleep(0)
                waiting.cancel()
            else:
                await two_pieces(reply)  # its end is a break out of the loop
            if way == "cancel":
                await reply.cancel()
            if way == "close":
                await app.aclose()
            await server.connections[0].wait_closed()
        await provider.aclose()

    assert reply.status == "cancelled"
    assert reply.text == "Hello world"


async def test_a_clean_cut_is_not_taken_for_a_whole_answer(protocol: Protocol) -> None:
    with WireServer() as server:
        server.play(protocol.answer(CUT))
        provider = protocol.provider_at(server.url)
        async with Atlas(provider=provider) as app:
            failures: list[StreamFailed] = []
            app.bus.subscribe(StreamFailed, failures.append)
            with pytest.raises(IncompleteStreamError) as raised:
                await app.chat("Hi")
        await provider.aclose()

    assert raised.value.partial == "Hello world"
    assert [(f.kind, f.partial) for f in failures] == [("incomplete_stream", "Hello world")]
    assert len(server.requests) == 1


async def test_a_dropped_connection_after_the_first_token_is_not_retried(
    protocol: Protocol,
) -> None:
    with WireServer() as server:
        server.play(protocol.answer(DROP))
        provider = protocol.provider_at(server.url)
        async with Atlas(provider=provider, retries=RetryPolicy(base_delay=0)) as app:
            with pytest.raises(ConnectionFailedError) as raised:
                await app.chat("Hi")
        await provider.aclose()

    assert raised.value.partial == "Hello world"
    assert len(server.requests) == 1


async def test_what_fails_before_the_first_token_is_tried_again(protocol: Protocol) -> None:
    with WireServer() as server:
        server.play(error_answer(503, {"error": {"message": "busy"}}))
        server.play(Answer(DROP))
        server.play(protocol.whole())
        provider = protocol.provider_at(server.url)
        async with Atlas(provider=provider, retries=RetryPolicy(base_delay=0)) as app:
            reply = app.chat("Hi")
            completion = await reply
        await provider.aclose()

    assert completion.text == "Hello world"
    assert reply.timing.attempts == len(server.requests) == 3


async def test_pings_for_ever_end_at_the_total_deadline(protocol: Protocol) -> None:
    with WireServer() as server:
        server.play(protocol.answer(Repeat(protocol.ping)))
        provider = protocol.provider_at(server.url)
        deadlines = Deadlines(first_token=None, gap=None, total=1.5)
        async with Atlas(provider=provider, deadlines=deadlines) as app:
            with pytest.raises(DeadlineExceededError) as raised:
                await app.chat("Hi")
            await server.connections[0].wait_closed()
        await provider.aclose()

    assert raised.value.deadline == "total"
    assert raised.value.partial == "Hello world"


async def test_twenty_streams_at_once_leave_nothing_behind(protocol: Protocol) -> None:
    process = psutil.Process()
    # The SDKs close a forgotten client in a task when it is collected: let those of other tests go
    # first, so that what is counted below is this test's own.
    gc.collect()
    before = asyncio.all_tasks()
    with WireServer() as server:
        for _ in range(20):
            server.play(protocol.whole())
        provider = protocol.provider_at(server.url)
        threads = own_threads()
        connections = len(process.net_connections())
        async with Atlas(provider=provider) as app:
            replies = [app.chat(f"Hi {n}") for n in range(20)]
            texts = {(await reply).text for reply in replies}
        await provider.aclose()
        for connection in server.connections:
            await connection.wait_closed()
        gc.collect()
        tasks = asyncio.all_tasks() - before

        assert texts == {"Hello world"}
        assert tasks == set()
        assert len(process.net_connections()) <= connections
        assert own_threads() == threads
