"""Tools of MCP servers, and ours as one. Skipped where the package ``mcp`` is not installed."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from atlas import Atlas, EventBus
from atlas.agents import Controller, scripted_agent, tool
from atlas.errors import AgentError, ConfigurationError, ValidationError
from atlas.providers.messages import ToolCallPart

mcp = pytest.importorskip("mcp", exc_type=ImportError)

from mcp import types  # noqa: E402
from mcp.server.lowlevel import Server  # noqa: E402

from atlas.agents.mcp import McpTools, mcp_server  # noqa: E402

called: list[int] = []


@tool
async def double(x: int) -> int:
    """Double a number."""
    called.append(x)
    if x < 0:
        raise ValueError("no")
    return 2 * x


@tool(permission="dangerous")
async def erase() -> None:
    """Not to be offered."""


async def test_our_tools_are_offered_and_used_through_mcp() -> None:
    called.clear()
    async with McpTools(mcp_server(double, erase), prefix="far_") as server:
        (far,) = await server.tools()

        assert (far.name, far.description, far.declared) == (
            "far_double",
            "Double a number.",
            "external",
        )
        assert await far.perform(far.parse('{"x": 4}'), lambda _: None) == "8"
        with pytest.raises(ValidationError, match=r"far_double\.x: nothing was given"):
            far.parse("{}")
        with pytest.raises(Exception, match="ValueError: no"):
            await far.perform({"x": -1}, lambda _: None)
        with pytest.raises(Exception, match="'four'"):
            await far.perform({"x": "four"}, lambda _: None)

    assert called == [4, -1]


async def test_names_that_no_vendor_takes_are_made_to_fit() -> None:
    # Any, twice: parameters of the package
    async def list_tools(_context: Any, _params: Any) -> types.ListToolsResult:
        names = ["files.read", "files/read", "1st", "é" * 70]
        shape = {"type": "object"}
        return types.ListToolsResult(tools=[types.Tool(name=n, input_schema=shape) for n in names])

    # Any, twice: parameters of the package
    async def call_tool(_context: Any, params: Any) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text=params.name)])

    odd = Server("odd", on_list_tools=list_tools, on_call_tool=call_tool)
    async with McpTools(odd) as server:
        tools = await server.tools()
        said = [await each.perform({}, print) for each in tools]

    assert [each.name for each in tools] == ["files_read", "files_read_2", "_1st", "_" * 64]
    assert said == ["files.read", "files/read", "1st", "é" * 70]


def test_plain_functions_are_offered_and_other_things_refused() -> None:
    def add(one: int, other: int) -> int:
        return one + other

    assert mcp_server(add).name == "atlas"
    with pytest.raises(ConfigurationError, match="5 is no tool"):
        mcp_server(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="Two tools have one name"):
        mcp_server(add, add)


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("permission", "all"),
        ("approval", "yes"),
        ("prefix", "a b"),
        ("timeout", "1"),
        ("connect_timeout", 0),
    ],
)
def test_what_makes_no_sense_for_a_server_is_refused(setting: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{setting} is "):
        McpTools("https://example.org/mcp", **{setting: wrong})


async def test_a_run_with_tools_of_a_server_is_replayed_without_it() -> None:
    called.clear()

    async def ask(app: Atlas, server: McpTools) -> str:
        call = ToolCallPart("c", "double", json.dumps({"x": 21}))
        agent = scripted_agent("one", [[call], "42."], tools=await server.tools())
        return (await Controller([agent], bus=app.bus).delegate("Twice 21?")).text

    async with Atlas(provider="scripted") as app:
        async with McpTools(mcp_server(double)) as server:
            async with app.recording("far", strict=True) as run:
                assert await ask(app, server) == "42."
        async with McpTools("http://nowhere.invalid/mcp") as gone:
            async with app.replaying(run.id):
                assert await ask(app, gone) == "42."

    assert called == [21]


PROGRAM = f"""
import asyncio, os, sys
sys.path[:] = {sys.path!r}
from mcp.server.stdio import stdio_server
from atlas.agents import tool
from atlas.agents.mcp import mcp_server

@tool
async def double(x: int) -> int:
    "Double a number."
    if x == 13:
        os._exit(1)
    return 2 * x

async def main():
    server = mcp_server(double)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())

asyncio.run(main())
"""


async def test_a_server_in_another_process_is_used_by_standard_input() -> None:
    async with McpTools([sys.executable, "-c", PROGRAM]) as server:
        (double_,) = await server.tools()

        assert await double_.perform({"x": 5}, lambda _: None) == "10"


async def test_a_server_that_dies_in_mid_call_is_told_by_name_and_begun_again() -> None:
    async with McpTools([sys.executable, "-c", PROGRAM]) as server:
        (double_,) = await server.tools()
        with pytest.raises(AgentError, match=r"python.* failed at its tool 'double' \(MCPError"):
            await double_.perform({"x": 13}, lambda _: None)

        assert await double_.perform({"x": 5}, lambda _: None) == "10"


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serve an application by HTTP on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        finally:
            server.should_exit = True
            await task


async def test_a_server_is_used_by_http() -> None:
    called.clear()
    async with served(mcp_server(double).streamable_http_app()) as url, McpTools(url) as server:
        (double_,) = await server.tools()
        answers = await asyncio.gather(
            *(double_.perform({"x": n}, lambda _: None) for n in range(1, 6))
        )
        with pytest.raises(AgentError, match="ValueError: no"):
            await double_.perform({"x": -1}, lambda _: None)
        agent = scripted_agent(
            "one", [[ToolCallPart("c", "double", '{"x": 21}')], "42."], tools=[double_]
        )
        outcome = await Controller([agent], bus=EventBus()).delegate("Twice 21?")

    assert answers == ["2", "4", "6", "8", "10"]
    assert outcome.text == "42."
    assert sorted(called) == [-1, 1, 2, 3, 4, 5, 21]


async def html(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n"
    writer.write(head + b"Hey!")
    writer.close()


async def test_servers_that_are_dead_or_talk_garbage_are_errors_that_name_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = f"http://127.0.0.1:{taken.getsockname()[1]}/mcp"
    web = await asyncio.start_server(html, "127.0.0.1", 0)
    async with web:
        for server, named in (
            (["/no/such/program"], "/no/such/program failed at connecting .FileNotFoundError"),
            ([sys.executable, "-c", "raise SystemExit(3)"], "failed at connecting .*closed"),
            (free, f"{free} failed at connecting .ConnectError"),
            (f"http://127.0.0.1:{web.sockets[0].getsockname()[1]}/", "text/html"),
        ):
            async with McpTools(server) as dead:
                with pytest.raises(AgentError, match=named):
                    await dead.tools()


async def test_a_server_that_says_nothing_is_given_up() -> None:
    program = "import sys; print('hello', flush=True); sys.stdin.read()"
    async with McpTools([sys.executable, "-c", program], connect_timeout=1.0) as mute:
        with pytest.raises(AgentError, match="no answer within 1 s"):
            await mute.tools()


@pytest.mark.parametrize("wrong", ["some-server --stdio", [], [1], 5, None])
def test_what_is_no_server_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"no URL|no command|no MCP server"):
        McpTools(wrong)
