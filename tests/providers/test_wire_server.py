"""The scripted server itself: what it plays and what it sees."""

from __future__ import annotations

import httpx2
import pytest

from support.wire import CUT, DROP, HANG, RESET, Answer, Gate, Repeat, WireServer, error_answer, sse


async def body_of(client: httpx2.AsyncClient, url: str) -> bytes:
    async with client.stream("POST", url, json={"q": 1}) as response:
        return b"".join([chunk async for chunk in response.aiter_raw()])


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_it_plays_answers_in_order_and_records_requests(framing) -> None:
    with WireServer() as server:
        server.play(Answer(b"a", b"b", framing=framing), error_answer(429, {"error": "slow"}))
        async with httpx2.AsyncClient() as client:
            assert await body_of(client, server.url + "/one") == b"ab"
            assert await body_of(client, server.url + "/two") == b'{"error": "slow"}'

        assert [request.path for request in server.requests] == ["/one", "/two"]
        assert server.requests[0].json() == {"q": 1}
        assert server.connections[0].frames_written >= 2


@pytest.mark.parametrize("end", [DROP, RESET])
async def test_it_breaks_off(end) -> None:
    with WireServer() as server:
        server.play(Answer(b"a", end))
        async with httpx2.AsyncClient() as client:
            with pytest.raises(httpx2.TransportError):
                await body_of(client, server.url)


async def test_it_waits_at_gates_and_sees_the_client_leave() -> None:
    with WireServer() as server:
        gate = Gate()
        server.play(Answer(sse("1"), gate, sse("2"), CUT), Answer(b"x", HANG))
        async with httpx2.AsyncClient() as client:
            async with client.stream("POST", server.url) as response:
                chunks = response.aiter_raw()
                assert await anext(chunks) == b"data: 1\n\n"
                await gate.reached()
                gate.open()
                assert [chunk async for chunk in chunks] == [b"data: 2\n\n"]
            await server.connections[0].wait_closed()
            async with client.stream("POST", server.url) as response:
                chunks = response.aiter_raw()
                assert await anext(chunks) == b"x"
                assert server.open_connections == 1
                await chunks.aclose()
            await server.connections[-1].wait_closed()


async def test_it_repeats_until_the_client_leaves() -> None:
    with WireServer() as server:
        server.play(Answer(Repeat(b": ping\n\n")))
        async with httpx2.AsyncClient() as client:
            async with client.stream("POST", server.url) as response:
                async for _ in response.aiter_raw():
                    break
            await server.connections[0].wait_closed()
