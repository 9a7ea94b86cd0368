"""Tools of MCP servers for agents, and tools of ours for MCP clients, by the official ``mcp`` package.

Asking a server which tools it has is an effect, and so is each call: a recorded run is replayed without
the server. The connection is made when it is first needed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import takewhile
from types import TracebackType
from typing import Any, Self, get_args
from urllib.parse import urlsplit

from atlas.agents.messages import Permission
from atlas.agents.settings import check, is_number
from atlas.agents.tools import Shape, Tool
from atlas.core.effects import Effect, perform
from atlas.core.inner_loop import outside_context
from atlas.core.schema.codec import Nothing
from atlas.errors import (
    AgentError,
    ConfigurationError,
    MissingDependencyError,
    ValidationError,
)
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

logger = logging.getLogger(__name__)


class McpTools:
    """The tools of an MCP server: an async context manager, which closes the connection.

    ::

        async with McpTools(["uvx", "some-server"]) as server:
            agent = Agent("helper", tools=await server.tools())

    Whatever goes wrong between here and the server is an `AgentError` that names the server and the
    cause; a model that called is told. A connection that broke is made anew for the next call.

    Args:
        server: A URL (streamable HTTP), a command with its arguments (stdio), or whatever
            ``mcp.Client`` takes.
        permission: What its tools may do; nobody knows, so ``"network"``.
        approval: Whether a person is asked before each call.
        prefix: Put before the names of its tools.
        timeout: Seconds for a call.
        connect_timeout: Seconds until the server must have answered, and have told its tools.

    Raises:
        ConfigurationError: The server is neither a URL nor a command.
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
        connect_timeout: float = 30.0,
    ) -> None:
        for what, given, holds, wanted in (
            ("permission", permission, permission in get_args(Permission), "a permission of tools"),
            ("approval", approval, isinstance(approval, bool), "True or False"),
            (
                "prefix",
                prefix,
                _fitting(str(prefix)) == prefix,
                "letters, digits, _ and -, the first no digit",
            ),
            (
                "timeout",
                timeout,
                timeout is None or is_number(timeout, 1e-9),
                "seconds above 0, or None",
            ),
            (
                "connect_timeout",
                connect_timeout,
                is_number(connect_timeout, 1e-9),
                "seconds above 0",
            ),
        ):
            check(what, given, holds, wanted)
        self._server = _checked(server)
        self._permission: Permission = permission
        self._approval = approval
        self._prefix = prefix
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._connection: _Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._drop()

    # Any: a tool takes and gives whatever it does
    async def tools(self) -> list[Tool[..., Any]]:
        """Return the server's tools. In a run, as an effect of it.

        Vendors take fewer letters in names than servers do: ``files.read`` is known as ``files_read``.

        Raises:
            AgentError: The server cannot be reached, or does not speak the protocol.
        """
        listed = await perform(Effect("mcp.tools", self._prefix, "pure"), self._listed)
        names = _distinct([_fitting(f"{self._prefix}{name}") for name, _, _ in listed])
        return [self._tool(known, *each) for known, each in zip(names, listed, strict=True)]

    async def _listed(self) -> list[tuple[str, str, dict[str, JSON]]]:
        client = await self._connected()
        found: list[tuple[str, str, dict[str, JSON]]] = []
        cursor: str | None = None
        while True:
            page = await self._asked(
                client.list_tools(cursor=cursor), "listing its tools", self._connect_timeout
            )
            found += [(each.name, each.description or "", each.input_schema) for each in page.tools]
            cursor = page.next_cursor
            if not cursor:
                return found

    # Any: see above
    def _tool(
        self, known: str, name: str, description: str, schema: dict[str, JSON]
    ) -> Tool[..., Any]:
        async def call(**arguments: JSON) -> str:
            client = await self._connected()
            given = await self._asked(client.call_tool(name, arguments), f"its tool {name!r}", None)
            texts = [_text_of(part) for part in given.content]
            if given.is_error:
                raise AgentError("\n".join(texts) or f"The MCP tool {name!r} failed.")
            return "\n".join(texts)

        return Tool(
            call,
            name=known,
            description=description,
            permission=self._permission,
            approval=self._approval,
            timeout=self._timeout,
            schema=_GivenShape(known, schema),
        )

    # -- the connection ---------------------------------------------------------------------------

    # Any: the client of the package
    async def _connected(self) -> Any:
        if self._connection is None or self._connection.is_over:
            self._connection = _Connection(self._server, self._connect_timeout)
        connection = self._connection
        try:
            return await asyncio.shield(connection.client)
        except (AgentError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise self._failed("connecting", error) from error

    # Any: whatever the client gives
    async def _asked(self, asked: Awaitable[Any], what: str, seconds: float | None) -> Any:
        """Ask the server something; an error of the protocol, or of the wire, is one of ours."""
        try:
            async with asyncio.timeout(seconds):
                return await asked
        except Exception as error:
            if not isinstance(error, mcp.MCPError) or error.code == types.CONNECTION_CLOSED:
                await self._drop()
            raise self._failed(what, error) from error

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _failed(self, what: str, error: Exception) -> AgentError:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):  # the package wraps what happens in its tasks
            cause = cause.exceptions[0]
        if isinstance(cause, TimeoutError):
            told = f"no answer within {self._connect_timeout:g} s"
        else:
            told = f"{type(cause).__name__}: {cause}".rstrip(": ")
        return AgentError(
            f"The MCP server {_shown(self._server)} failed at {what} ({told}). Check that it runs, and "
            f"that it speaks MCP there."
        )


class _Connection:
    """One connection to a server. One task of its own opens and closes it, whoever uses it."""

    # Any: a server or a transport of the package
    def __init__(self, server: Any, patience: float) -> None:
        loop = asyncio.get_running_loop()
        # Any: the client of the package
        self.client: asyncio.Future[Any] = loop.create_future()
        self.client.add_done_callback(_looked_at)
        self._stop = asyncio.Event()
        self._owner = loop.create_task(self._hold(server, patience), context=outside_context())

    @property
    def is_over(self) -> bool:
        """Whether it broke, or was never there."""
        return self._owner.done()

    async def close(self) -> None:
        """Close it, or give up making it."""
        self._stop.set()
        if not self.client.done():
            self._owner.cancel()
        await asyncio.wait([self._owner])

    # Any: a server or a transport of the package
    async def _hold(self, server: Any, patience: float) -> None:
        if not isinstance(server, str) and isinstance(server, Sequence):
            server = mcp.StdioServerParameters(command=server[0], args=list(server[1:]))
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(patience):
                    connected = await stack.enter_async_context(mcp.Client(server))
                self.client.set_result(connected)
                await self._stop.wait()
        # Whatever a server, or the package, may come up with is told to who asks.
        except Exception as error:  # noqa: BLE001
            if not self.client.done():
                self.client.set_exception(error)
            # Else it broke in use: whoever was asking has been told, and the next call connects anew.
            elif not self._stop.is_set():
                logger.warning("The connection to an MCP server broke: %r", error)
        finally:
            if not self.client.done():
                self.client.set_exception(
                    AgentError("The connection to the MCP server was closed.")
                )


# Any: the client of the package
def _looked_at(client: asyncio.Future[Any]) -> None:
    """Look at the error of a connection that nobody waits for any more, so that none complains."""
    client.exception()


def _fitting(name: str) -> str:
    """Return a name as vendors take it."""
    fitting = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]
    return f"_{fitting}"[:64] if fitting[:1].isdigit() or fitting[:1] == "-" else fitting


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names no two of which are the same."""
    made: list[str] = []
    for name in names:
        known, number = name, 2
        while known in made:
            known, number = f"{name[:60]}_{number}", number + 1
        made.append(known)
    return made


# Any: a server or a transport of the package
def _checked(server: Any) -> Any:
    if isinstance(server, str):
        if not server.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"{server!r} is no URL. Give http://... or https://..., or a command as a list: "
                f"{server.split()!r}."
            )
        return server
    if isinstance(server, Sequence):
        if not server or not all(isinstance(each, str) for each in server):
            raise ConfigurationError(
                f"{server!r} is no command. Give a list of its name and its arguments."
            )
        return tuple(server)
    if server is None or isinstance(server, int | float | Mapping):
        raise ConfigurationError(
            f"{server!r} is no MCP server. Give a URL, or a command as a list."
        )
    return server


def _shown(server: object) -> str:
    """Return a server's name for errors: no option, and nothing of a URL in which a secret may be."""
    if isinstance(server, tuple):
        return " ".join(takewhile(lambda each: not each.startswith("-"), server))
    if isinstance(server, str):
        parts = urlsplit(server)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return type(server).__name__


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
                raise ValidationError(self.name, str(name), Nothing(), "a value")
        if isinstance(properties, dict) and self._given.get("additionalProperties") is False:
            for name in given.keys() - properties.keys():
                raise ValidationError(self.name, name, given[name], "a known argument")
        return given


# Any, twice: tools take and give whatever they do, servers have any lifespan
def mcp_server(*tools: Tool[..., Any] | Callable[..., Any], name: str = "atlas") -> Server[Any]:
    """Return an MCP server that offers tools of ours; run it as the ``mcp`` package says.

    By HTTP its ``streamable_http_app()`` is an ASGI application, for uvicorn and its like. Arguments
    are validated here; what goes wrong is told to the client as a failed call. A tool that needs
    approval is not offered: nobody is here who could give it.

    Args:
        tools: The tools: made by `tool`, or plain annotated functions.
        name: What the server is called.
    """
    check("name", name, name and isinstance(name, str), "what the server is called")
    made = [each if isinstance(each, Tool) else Tool(each) for each in tools]
    offered = {each.name: each for each in made if not each.needs_approval}
    names = [each.name for each in made]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"Two tools have one name: {', '.join(names)}. Give one of them name=."
        )

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
