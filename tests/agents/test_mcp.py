"""Tools of MCP servers, and ours as one. Skipped where the package ``mcp`` is not installed."""

from __future__ import annotations

import json
import sys

import pytest

from atlas import Atlas
from atlas.agents import Controller, scripted_agent, tool
from atlas.errors import ValidationError
from atlas.providers.messages import ToolCallPart

mcp = pytest.importorskip("mcp", exc_type=ImportError)

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
        with pytest.raises(ValidationError, match="x"):
            far.parse("{}")
        with pytest.raises(Exception, match="ValueError: no"):
            await far.perform({"x": -1}, lambda _: None)
        with pytest.raises(Exception, match="'four'"):
            await far.perform({"x": "four"}, lambda _: None)

    assert called == [4, -1]


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
import asyncio, sys
sys.path[:] = {sys.path!r}
from mcp.server.stdio import stdio_server
from atlas.agents import tool
from atlas.agents.mcp import mcp_server

@tool
async def double(x: int) -> int:
    "Double a number."
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
