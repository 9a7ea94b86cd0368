"""Tools of MCP servers for agents, and tools of ours for MCP clients, by the official ``mcp`` package.

Asking a server which tools it has is an effect, and so is each call: a recorded run is replayed without
the server. The connection is made when it is first needed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from atlas.agents.messages import Permission
from atlas.agents.tools import Shape, Tool
from atlas.core.effects import Effect, perform
from atlas.core.inner_loop import outside_context
from atlas.errors import AgentError, MissingDependencyError, ValidationError
from atlas.typing import JSON

try:
    import mcp
    from mcp import types
    from mcp.server.lowlevel import Server
except ImportError as error:
    raise MissingDependencyError(
        f"Tools of MCP servers need the package mcp, which cannot be imported ({error}); install it "
        f"with `pip install 'atlas[mcp]'`.",
        extra="mcp",
    ) from error

__all__ = ["McpTools", "mcp_server"]


class McpTools:
    """The tools of an MCP server: an async context manager, which closes the connection.

    ::

        async with McpTools(["uvx", "some-server"]) as server:
            agent = Agent("helper", tools=await server.tools())

    Args:
        server: A URL (streamable HTTP), a command with its arguments (stdio), or whatever
            ``mcp.Client`` takes.
        permission: What its tools may do; nobody knows, so ``"network"``.
        approval: Whether a person is asked before each call.
        prefix: Put before the names of its tools.
        timeout: Seconds for a call.
    """

    def __init__(
        self,
        # Any: a server or a transport of the package
        server: str | Sequence[str] | Any,
        *,
        permission: Permission = "network",
        approval: bool = False,
        prefix: str = "",
        timeout: float | None = 120.0,
    ) -> None:
        self._server = server
        self._permission: Permission = permission
        self._approval = approval
        self._prefix = prefix
        self._timeout = timeout
        self._stop = asyncio.Event()
        # Any: the client of the package
        self._client: asyncio.Future[Any] | None = None
        self._owner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._owner is not None:
            await asyncio.wait([self._owner])

    # Any: a tool takes and gives whatever it does
    async def tools(self) -> list[Tool[..., Any]]:
        """Return the server's tools. In a run, as an effect of it."""
        listed = await perform(Effect("mcp.tools", self._prefix, "pure"), self._listed)
        return [self._tool(*each) for each in listed]

    async def _listed(self) -> list[tuple[str, str, dict[str, JSON]]]:
        client = await self._connected()
        found: list[tuple[str, str, dict[str, JSON]]] = []
        page = await client.list_tools()
        while True:
            found += [(each.name, each.description or "", each.input_schema) for each in page.tools]
            if not page.next_cursor:
                return found
            page = await client.list_tools(cursor=page.next_cursor)

    # Any: see above
    def _tool(self, name: str, description: str, schema: dict[str, JSON]) -> Tool[..., Any]:
        async def call(**arguments: JSON) -> str:
            client = await self._connected()
            given = await client.call_tool(name, arguments)
            texts = [_text_of(part) for part in given.content]
            if given.is_error:
                raise AgentError("\n".join(texts) or f"The MCP tool {name!r} failed.")
            return "\n".join(texts)

        return Tool(
            call,
            name=f"{self._prefix}{name}",
            description=description,
            permission=self._permission,
            approval=self._approval,
            timeout=self._timeout,
            schema=_GivenShape(name, schema),
        )

    # Any: the client of the package
    async def _connected(self) -> Any:
        if self._client is None:
            loop = asyncio.get_running_loop()
            self._client = loop.create_future()
            # One task opens and closes the connection, whoever uses it.
            self._owner = loop.create_task(self._hold(self._client), context=outside_context())
        return await asyncio.shield(self._client)

    # Any: the client of the package
    async def _hold(self, client: asyncio.Future[Any]) -> None:
        server = self._server
        if not isinstance(server, str) and isinstance(server, Sequence):
            server = mcp.StdioServerParameters(command=server[0], args=list(server[1:]))
        try:
            async with mcp.Client(server) as connected:
                client.set_result(connected)
                await self._stop.wait()
        except Exception as error:
            if client.done():
                raise
            client.set_exception(error)


# Any: a part of a result, of any kind
def _text_of(part: Any) -> str:
    if getattr(part, "type", "") == "text":
        return str(part.text)
    return json.dumps(part.model_dump(mode="json"), ensure_ascii=False)


class _GivenShape(Shape):
    """A JSON Schema that somebody else wrote, and checks; we look at the names only."""

    __slots__ = ("_given",)

    def __init__(self, name: str, schema: dict[str, JSON]) -> None:
        self.name = name
        self._given = schema
        self._text = json.dumps(schema, ensure_ascii=False)

    @property
    def schema(self) -> dict[str, JSON]:
        """The JSON Schema of all parameters together."""
        return self._given

    # Any: whatever the arguments are
    def checked(self, given: JSON) -> dict[str, Any]:
        """Return the arguments, if none is missing or unknown."""
        if not isinstance(given, dict):
            raise ValidationError(self.name, "", given, "a JSON object with the arguments")
        required, properties = self._given.get("required"), self._given.get("properties")
        for name in required if isinstance(required, list) else ():
            if name not in given:
                raise ValidationError(self.name, str(name), "nothing", "a value")
        if isinstance(properties, dict) and self._given.get("additionalProperties") is False:
            for name in given.keys() - properties.keys():
                raise ValidationError(self.name, name, given[name], "a known argument")
        return given


# Any, twice: tools take and give whatever they do, servers have any lifespan
def mcp_server(*tools: Tool[..., Any], name: str = "atlas") -> Server[Any]:
    """Return an MCP server that offers tools of ours; run it as the ``mcp`` package says.

    Arguments are validated here; what goes wrong is told to the client as a failed call. A tool that
    needs approval is not offered: nobody is here who could give it.

    Args:
        tools: The tools.
        name: What the server is called.
    """
    offered = {each.name: each for each in tools if not each.needs_approval}

    # Any, twice: parameters of the package
    async def list_tools(_context: Any, _params: Any) -> types.ListToolsResult:
        told = [
            types.Tool(name=each.name, description=each.description, input_schema=each.schema)
            for each in offered.values()
        ]
        return types.ListToolsResult(tools=told)

    # Any, twice: parameters of the package
    async def call_tool(_context: Any, params: Any) -> types.CallToolResult:
        found = offered.get(params.name)
        if found is None:
            return _result(f"There is no tool {params.name!r}.", failed=True)
        try:
            arguments = found.parse(json.dumps(params.arguments or {}))
            return _result(await found.perform(arguments, lambda _text: None))
        except Exception as error:  # noqa: BLE001  whatever the tool raises is told to the client
            return _result(f"{type(error).__name__}: {error}", failed=True)

    return Server(name, on_list_tools=list_tools, on_call_tool=call_tool)


def _result(text: str, *, failed: bool = False) -> types.CallToolResult:
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], is_error=failed
    )
