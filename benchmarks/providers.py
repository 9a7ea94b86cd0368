"""What a streamed token costs through Atlas and through the bare SDK: ``python benchmarks/providers.py``.

A server in a process of its own sends an answer of 5,000 tokens as fast as it can, one HTTP chunk
each. The contestants take turns in this process; processor time per token is what counts, since
the wall clock depends on who else is on the machine. Medians are compared, always within one run.

To add a contestant write an async context manager that takes the server's URL and yields a
function returning an async iterator of texts, and list it in `CONTESTANTS`; to add a protocol add
its bytes to `PROTOCOLS`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

TOKENS = 5_000
QUESTION = "Tell me something long."

Ask = Callable[[], AsyncIterator[str]]


# -- the server -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bytes:
    """An answer in one protocol: what comes first, for each token, and last."""

    head: list[str]
    token: Callable[[int], str]
    tail: list[str]


def chat_chunk(delta: dict, finish: str | None = None, **fields) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {
        "id": "chatcmpl-CabcdefghijklmnopqrstuvwxyzAB",
        "object": "chat.completion.chunk",
        "created": 1_770_000_000,
        "model": "gpt-benchmark-2026-01-01",
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
        "choices": [choice],
        "usage": None,
        **fields,
    }
    return f"data: {json.dumps(body)}\n\n"


def openai_bytes(count: int) -> Bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": count + 9}
    return Bytes(
        head=[chat_chunk({"role": "assistant", "content": ""})],
        token=lambda n: chat_chunk({"content": f" word{n % 97}"}),
        tail=[
            chat_chunk({}, "stop"),
            chat_chunk({}, choices=[], usage=usage),
            "data: [DONE]\n\n",
        ],
    )


def anthropic_event(kind: str, **fields) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def anthropic_bytes(count: int) -> Bytes:
    message = {
        "id": "msg_01abcdefghijklmnopqrstuv",
        "type": "message",
        "role": "assistant",
        "model": "claude-benchmark",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 1},
    }
    block = {"type": "text", "text": ""}
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    return Bytes(
        head=[
            anthropic_event("message_start", message=message),
            anthropic_event("content_block_start", index=0, content_block=block),
        ],
        token=lambda n: anthropic_event(
            "content_block_delta", index=0, delta={"type": "text_delta", "text": f" word{n % 97}"}
        ),
        tail=[
            anthropic_event("content_block_stop", index=0),
            anthropic_event("message_delta", delta=stop, usage={"output_tokens": count}),
            anthropic_event("message_stop"),
        ],
    )


PROTOCOLS: dict[str, Callable[[int], Bytes]] = {
    "anthropic": anthropic_bytes,
    "openai": openai_bytes,
}


def http_chunk(text: str) -> bytes:
    data = text.encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def recorded(protocol: str, count: int) -> list[bytes]:
    """Return the answer as it goes over the wire: head with the first words, tokens, tail."""
    said = PROTOCOLS[protocol](count)
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return [
        head + b"".join(map(http_chunk, said.head)),
        *(http_chunk(said.token(n)) for n in range(count)),
        b"".join(map(http_chunk, said.tail)) + b"0\r\n\r\n",
    ]


async def answer(
    pieces: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().partition(b": ")[::2] for line in request.split(b"\r\n"))
            await reader.readexactly(int(fields.get(b"content-length", 0)))
            holds = b"/hold/" in request.split(b"\r\n")[0]
            for piece in pieces[:2] if holds else pieces:
                writer.write(piece)
                await writer.drain()
            if holds:
                await reader.read()  # until the client leaves
    writer.close()


async def serve(protocol: str, count: int) -> None:
    pieces = recorded(protocol, count)
    server = await asyncio.start_server(
        lambda reader, writer: answer(pieces, reader, writer), "127.0.0.1", 0, backlog=512
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def served(protocol: str, count: int) -> Iterator[str]:
    """Run the server in a process of its own and yield its URL."""
    arguments = ["--serve", protocol, "--tokens", str(count)]
    with subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


# -- the contestants ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def openai_sdk(url: str) -> AsyncIterator[Ask]:
    import openai

    async with openai.AsyncOpenAI(api_key="key", base_url=f"{url}/v1") as client:

        async def ask() -> AsyncIterator[str]:
            async with await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": QUESTION}],
                stream=True,
                stream_options={"include_usage": True},
            ) as stream:
                async for chunk in stream:
                    if chunk.choices and chunk.choices[0].delta.content:
                        yield chunk.choices[0].delta.content

        yield ask


@contextlib.asynccontextmanager
async def anthropic_sdk(url: str) -> AsyncIterator[Ask]:
    import anthropic

    async with anthropic.AsyncAnthropic(api_key="key", base_url=url) as client:

        async def ask() -> AsyncIterator[str]:
            async with await client.messages.create(
                model="m",
                max_tokens=10_000,
                messages=[{"role": "user", "content": QUESTION}],
                stream=True,
            ) as stream:
                async for event in stream:
                    if event.type == "content_block_delta" and event.delta.type == "text_delta":
                        yield event.delta.text

        yield ask


@contextlib.asynccontextmanager
async def raw_httpx(url: str) -> AsyncIterator[Ask]:
    import httpx2

    async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=1000)) as client:

        async def ask() -> AsyncIterator[str]:
            body = {"messages": [{"role": "user", "content": QUESTION}]}
            sending = client.stream("POST", f"{url}/v1/answers", json=body, timeout=None)
            async with sending as response, contextlib.aclosing(response.aiter_raw()) as chunks:
                async for _ in chunks:
                    yield "not decoded"

        yield ask


def provider_at(protocol: str, url: str):
    """Return our adapter of a protocol, pointed at the server."""
    if protocol == "anthropic":
        from atlas.providers.anthropic import AnthropicProvider

        return AnthropicProvider(model="m", api_key="key", base_url=url)
    from atlas.providers.openai import OpenAIProvider

    return OpenAIProvider(model="m", api_key="key", base_url=f"{url}/v1")


@contextlib.asynccontextmanager
async def atlas_provider(protocol: str, url: str) -> AsyncIterator[Ask]:
    provider = provider_at(protocol, url)
    try:
        yield lambda: atlas_stream(provider)
    finally:
        await provider.aclose()


@contextlib.asynccontextmanager
async def atlas_application(protocol: str, url: str) -> AsyncIterator[Ask]:
    """The whole application: bus, one subscriber to every token, metrics, live state, buffer."""
    from atlas import Atlas
    from atlas.providers.messages import StreamToken

    provider = provider_at(protocol, url)
    seen: list[int] = [0]

    def count(event: StreamToken) -> None:
        seen[0] += 1

    async with Atlas(provider=provider) as app:
        app.bus.subscribe(StreamToken, count)

        async def ask() -> AsyncIterator[str]:
            async with app.chat(QUESTION) as reply:
                async for text in reply:
                    yield text

        yield ask
    await provider.aclose()


async def atlas_stream(provider) -> AsyncIterator[str]:
    """Ask any provider as the application does: deadlines, retries, assembly, an event a token."""
    from atlas.providers.assembler import Assembler
    from atlas.providers.base import ChatRequest
    from atlas.providers.messages import ChatMessage, StreamToken, TextPart
    from atlas.providers.resilience import resilient_stream

    request = ChatRequest(messages=(ChatMessage("user", (TextPart(QUESTION),)),), model="")
    assembler = Assembler(provider=provider.name, reply="reply")
    async with resilient_stream(provider, request) as deltas:
        async for delta in deltas:
            event = assembler.feed(delta)
            if type(event) is StreamToken:
                yield event.text
    assembler.completion()


@dataclass(frozen=True)
class Contestant:
    """One way to read a stream; the ``bare SDK`` of its protocol is what it is compared with."""

    name: str
    protocol: str
    # Given the server's URL, without a path.
    open: Callable[[str], AbstractAsyncContextManager[Ask]]
    is_baseline: bool = False


def contestants(protocol: str, sdk: Callable[[str], AbstractAsyncContextManager[Ask]]) -> list:
    return [
        Contestant(f"{protocol}: bare SDK", protocol, sdk, is_baseline=True),
        Contestant(f"{protocol}: raw httpx, not decoded", protocol, raw_httpx),
        Contestant(f"{protocol}: Atlas provider", protocol, partial(atlas_provider, protocol)),
        Contestant(
            f"{protocol}: Atlas application", protocol, partial(atlas_application, protocol)
        ),
    ]


CONTESTANTS = [*contestants("anthropic", anthropic_sdk), *contestants("openai", openai_sdk)]


# -- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    cpu: float  # seconds of processor time
    first: float  # seconds to the first token, the mean of the streams
    tokens: int


async def read_all(ask: Ask) -> tuple[float, int]:
    started = time.perf_counter()
    first, tokens = 0.0, 0
    async with contextlib.aclosing(ask()) as texts:
        async for _ in texts:
            if not tokens:
                first = time.perf_counter() - started
            tokens += 1
    return first, tokens


async def sample(ask: Ask, streams: int) -> Sample:
    gc.collect()
    started = time.process_time()
    results = await asyncio.gather(*(read_all(ask) for _ in range(streams)))
    cpu = time.process_time() - started
    return Sample(cpu, statistics.fmean(r[0] for r in results), sum(r[1] for r in results))


async def compare(protocol: str, streams: int, tokens: int, rounds: int) -> dict[str, dict]:
    """Let the contestants of a protocol take turns; each has its client open and warm."""
    own = [c for c in CONTESTANTS if c.protocol == protocol]
    samples: dict[str, list[Sample]] = {c.name: [] for c in own}
    with served(protocol, tokens) as url:
        async with contextlib.AsyncExitStack() as stack:
            asks = {c.name: await stack.enter_async_context(c.open(url)) for c in own}
            for ask in asks.values():
                await sample(ask, streams)
            for _ in range(rounds):
                for name, ask in asks.items():
                    samples[name].append(await sample(ask, streams))
    base = next(c.name for c in own if c.is_baseline)
    return {name: summary(taken, samples[base]) for name, taken in samples.items()}


def summary(taken: list[Sample], baseline: list[Sample]) -> dict[str, float]:
    cpu = statistics.median(s.cpu / s.tokens for s in taken)
    return {
        "us_per_token": cpu * 1e6,
        "ratio": cpu / statistics.median(s.cpu / s.tokens for s in baseline),
        "first_token_ms": statistics.median(s.first for s in taken) * 1e3,
    }


async def memory(contestant: Contestant, streams: int) -> float:
    """Return the bytes of Python memory that an open stream, held after its first token, takes."""
    with served(contestant.protocol, 2) as url:
        async with contestant.open(f"{url}/hold") as ask, contextlib.AsyncExitStack() as stack:

            async def hold() -> None:
                texts = await stack.enter_async_context(contextlib.aclosing(ask()))
                await anext(texts)

            await hold()
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            await asyncio.gather(*(hold() for _ in range(streams)))
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
    return taken / streams


def measured(protocol: str, count: int, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the tables of one protocol: by title, contestant and figure."""
    tables = {}
    for streams in (1, 10, 100):
        table = asyncio.run(compare(protocol, streams, max(50, count // streams), rounds))
        for row in table.values():
            # In a flood the first token waits for its reader's turn: it is measured alone.
            del row["first_token_ms"]
        tables[f"{protocol}, {streams} at once"] = table
    alone = tables[f"{protocol}, 1 at once"]
    single = asyncio.run(compare(protocol, 1, 1, rounds * 10))  # one token, then the end
    for contestant in (c for c in CONTESTANTS if c.protocol == protocol):
        row = alone[contestant.name]
        row["first_token_ms"] = single[contestant.name]["first_token_ms"]
        row["kib_per_open_stream"] = asyncio.run(memory(contestant, 100)) / 1024
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), action="append")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(options.serve, options.tokens))
        return
    results = {}
    for protocol in options.protocol or sorted(PROTOCOLS):
        results |= measured(protocol, options.tokens, options.rounds)
    if options.json:
        print(json.dumps(results))
        return
    print(f"Python {sys.version.split()[0]}, median of {options.rounds} rounds")
    for title, table in results.items():
        print(f"\n{title:34}{'CPU/token':>12}{'ratio':>8}{'first token':>14}{'memory':>14}")
        for name, row in table.items():
            first, kib = row.get("first_token_ms"), row.get("kib_per_open_stream")
            print(
                f"{name:34}{row['us_per_token']:>9.1f} us{row['ratio']:>7.2f}x"
                f"{f'{first:.2f} ms' if first else '':>14}{f'{kib:.0f} KiB' if kib else '':>14}"
            )


if __name__ == "__main__":
    main()
