"""Models served by Ollama, on this machine or another.

The official SDK's client makes the connection (host, headers, key); the stream is decoded here:
the SDK splits it at U+0085, U+2028 and U+2029 too, which are ordinary characters inside a token,
drops the ids of tool calls and knows no deadline.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any, Final

from atlas.errors import (
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    IncompleteStreamError,
    InvalidResponseError,
    MissingDependencyError,
    ModelNotFoundError,
    ProviderError,
)
from atlas.providers.base import (
    Capabilities,
    ChatRequest,
    Delta,
    Finished,
    ResponseStarted,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    UsageDelta,
)
from atlas.providers.http import error_from, hide_secrets, transport_error
from atlas.providers.http_body import closed_error, drain, raw_body
from atlas.providers.messages import (
    ChatMessage,
    FinishReason,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    Usage,
)
from atlas.providers.wire import NdjsonDecoder
from atlas.typing import JSON

try:
    import httpx
    import ollama
except ImportError as error:
    raise MissingDependencyError(
        "The provider 'ollama' needs the package ollama; "
        "install it with `pip install 'atlas[ollama]'`.",
        extra="ollama",
    ) from error

__all__ = ["OllamaProvider"]

_NAME: Final = "ollama"
_DEFAULT_MODEL: Final = "llama3.2"
_LISTING: Final = 30.0  # seconds for the list of models, which the server has at hand

_FINISH_REASONS: Final[dict[str, FinishReason]] = {"": "stop", "stop": "stop", "length": "length"}


class OllamaProvider:
    """Answers by a model that an Ollama server runs.

    Any number of streams may run at once on one instance, on one event loop. Closing a stream, or
    cancelling the task that reads it, closes its connection before it returns, upon which the
    server stops generating.

    Args:
        model: For requests that name none. Default: ``"llama3.2"``.
        api_key: For a server that asks for one. Default: ``OLLAMA_API_KEY``.
        base_url: The server. Default: ``OLLAMA_HOST``, else port 11434 of this machine.
        keep_alive: How long the server keeps the model in memory afterwards, in seconds or in
            words (``"10m"``); None: the server's own way.
        context_window: Tokens that prompt and answer may have together, as far as you know; only
            reported in `capabilities`. To set it, give ``extra={"options": {"num_ctx": ...}}``.

    Raises:
        ConfigurationError: The address is none.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        keep_alive: float | str | None = None,
        context_window: int | None = None,
    ) -> None:
        self._model = model or _DEFAULT_MODEL
        self._keep_alive = keep_alive
        self._capabilities = Capabilities(
            tools=True, thinking=True, json_schema=True, context_window=context_window
        )
        self._http = _client(api_key, base_url)
        self._closed = False

    @property
    def name(self) -> str:
        """The name under which the provider is registered."""
        return _NAME

    @property
    def default_model(self) -> str:
        """The model that answers a request which names none."""
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do; whether a model can, it says when it is asked."""
        return self._capabilities

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Ask the model and yield its deltas; see `atlas.providers.base.Provider.stream`.

        Raises:
            ProviderError: The call failed; the subclass says how.
        """
        model = request.model or self._model
        translator = _Translator(model)
        decoder = NdjsonDecoder()
        with self._neutral_errors(model, request.connect_timeout):
            async with self._request(request, model) as response:
                await self._check_answer(response, model)
                async with contextlib.aclosing(raw_body(response)) as chunks:
                    async for chunk in chunks:
                        for line in decoder.feed(chunk):
                            for delta in translator.translate(line):
                                yield delta
                        if translator.finished is not None:
                            await drain(chunks, httpx.HTTPError)
                            break
        for delta in translator.end(decoder.finish()):
            yield delta

    async def models(self) -> Sequence[str]:
        """Return the names of the models that the server has."""
        with self._neutral_errors("", _LISTING):
            response = await self._http.get("/api/tags", timeout=_LISTING)
            await self._check_answer(response, "")
            try:
                return tuple(
                    str(model.get("model") or model["name"]) for model in response.json()["models"]
                )
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise _not_ollama(f"{response.text[:200]!r}", "") from error

    async def aclose(self) -> None:
        """Close all connections; streams that still run end in `ConnectionFailedError`."""
        self._closed = True
        await self._http.aclose()

    def _request(
        self, request: ChatRequest, model: str
    ) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        return self._http.stream(
            "POST",
            "/api/chat",
            json=_body(request, model, self._keep_alive),
            # Only the connection: the other deadlines are kept around the adapter.
            timeout=httpx.Timeout(None, connect=request.connect_timeout),
        )

    async def _check_answer(self, response: httpx.Response, model: str) -> None:
        """Refuse an error, and a web page that says it is none."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code == 200 and not kind.endswith(("html", "xml")):
            return
        body = b""
        with contextlib.suppress(httpx.HTTPError):  # a body cut off: its status still counts
            async for chunk in response.aiter_bytes():
                body += chunk
        failure = error_from(
            body,
            status=response.status_code,
            headers=response.headers,
            provider=_NAME,
            model=model,
        )
        if isinstance(failure, ModelNotFoundError):
            raise ModelNotFoundError(
                f"Ollama at {self._address} does not have the model {model!r}; get it with "
                f"`ollama pull {model}`.",
                provider=_NAME,
                model=model,
                status=failure.status,
                code=failure.code,
                request_id=failure.request_id,
            )
        raise failure

    @property
    def _address(self) -> str:
        return str(self._http.base_url).rstrip("/")

    @contextlib.contextmanager
    def _neutral_errors(self, model: str, connect_timeout: float | None) -> Iterator[None]:
        """Let nothing out of httpx or the decoders but a `ProviderError`."""
        if self._closed:
            raise closed_error(_NAME, model)
        try:
            yield
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise self._transport_error(error, model, connect_timeout) from error
        except (TypeError, ValueError) as error:
            if isinstance(error, ProviderError):
                raise
            raise BadRequestError(
                f"The request cannot be sent to {_NAME}: {error}", provider=_NAME, model=model
            ) from error

    def _transport_error(
        self, error: Exception, model: str, connect_timeout: float | None
    ) -> ProviderError:
        if self._closed:
            return closed_error(_NAME, model)
        if isinstance(error, httpx.ConnectError):
            return ConnectionFailedError(
                f"No Ollama answers at {self._address} ({error}); is `ollama serve` running "
                f"there? Start it, or set OLLAMA_HOST or `base_url`.",
                provider=_NAME,
                model=model,
            )
        return transport_error(
            error,
            provider=_NAME,
            model=model,
            address=self._address,
            connect_timeout=connect_timeout,
        )


def _client(api_key: str | None, base_url: str | None) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else None
    try:
        # The SDK's one door to the bytes as they arrive is its own httpx client, which is private:
        # all its public methods decode the stream themselves, wrongly (see the module).
        client: httpx.AsyncClient = ollama.AsyncClient(base_url, headers=headers)._client
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigurationError(
            f"The provider 'ollama' cannot be set up: {error}; check OLLAMA_HOST, `base_url` and "
            f"the key."
        ) from error
    client.event_hooks["request"].append(hide_secrets)
    return client


def _not_ollama(shown: str, model: str) -> InvalidResponseError:
    return InvalidResponseError(
        f"The answer is not what Ollama's protocol promises: {shown}; check OLLAMA_HOST, "
        f"`base_url` and any proxy on the way.",
        provider=_NAME,
        model=model,
    )


# -- the request ----------------------------------------------------------------------------------


def _body(request: ChatRequest, model: str, keep_alive: float | str | None) -> dict[str, JSON]:
    body: dict[str, JSON] = {
        "model": model,
        "messages": list(_turns(request.messages)),
        "stream": True,
    }
    if request.tool_choice == "required":
        raise BadRequestError(
            "Ollama cannot be made to call a tool; leave `tool_choice` out.",
            provider=_NAME,
            model=model,
        )
    if request.tools and request.tool_choice != "none":
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json.loads(tool.parameters),
                },
            }
            for tool in request.tools
        ]
    if request.json_schema is not None:
        body["format"] = json.loads(request.json_schema)
    if request.thinking_tokens is not None:
        body["think"] = True  # a budget the server knows none of
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    extra = dict(request.extra)
    options = _options(request, extra.pop("options", None))
    if options:
        body["options"] = options
    return body | extra


def _options(request: ChatRequest, extra: JSON) -> dict[str, JSON]:
    options: dict[str, JSON] = {
        "num_predict": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": list(request.stop) or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return given | (extra if isinstance(extra, dict) else {})


def _turns(messages: Sequence[ChatMessage]) -> Iterator[dict[str, JSON]]:
    """Say the conversation; a tool's result is a turn of its own that names the tool."""
    tools: dict[str, str] = {}  # names by the ids of their calls
    for message in messages:
        said: dict[str, JSON] = {"role": message.role}
        texts = [part.text for part in message.parts if isinstance(part, TextPart | RefusalPart)]
        thoughts = [part.text for part in message.parts if isinstance(part, ThinkingPart)]
        calls: list[JSON] = []
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                tools[part.id] = part.name
                function: JSON = {"name": part.name, "arguments": _arguments(part.arguments)}
                calls.append({"id": part.id, "function": function})
            elif isinstance(part, ToolResultPart):
                yield {
                    "role": "tool",
                    "content": part.content,
                    "tool_name": tools.get(part.call_id, ""),
                    "tool_call_id": part.call_id,
                }
        if texts or calls:
            said["content"] = "".join(texts)
            if thought := "".join(thoughts):
                said["thinking"] = thought
            if calls:
                said["tool_calls"] = calls
            yield said


def _arguments(arguments: str) -> JSON:
    """Return a call's arguments as the object that the server demands, also where they are none."""
    try:
        parsed: JSON = json.loads(arguments or "{}")
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"invalid_arguments": arguments}


# -- the answer -----------------------------------------------------------------------------------


class _Translator:
    """The server's lines, as JSON text, into deltas."""

    def __init__(self, model: str) -> None:
        self.finished: Finished | None = None
        self._model = model
        self._started = False
        self._calls = 0

    def translate(self, line: str) -> Sequence[Delta]:
        """Return what one line says.

        Raises:
            ProviderError: It is an error, or nothing of this protocol.
        """
        try:
            # Any: decoded JSON; where its shape is another than promised, the handler below says so.
            data: Any = json.loads(line)
            if data.get("error"):
                raise error_from(data, provider=_NAME, model=self._model)
            return self._deltas(data)
        except json.JSONDecodeError as error:
            raise _not_ollama(f"{line[:200]!r} is not JSON", self._model) from error
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if isinstance(error, ProviderError):
                raise
            raise _not_ollama(f"{line[:200]!r}", self._model) from error

    def end(self, last_line: str | None) -> Sequence[Delta]:
        """Return the rest of the answer; ``last_line`` is the one that lacks its line end.

        Raises:
            ProviderError: The stream ended without its end marker.
        """
        rest: Sequence[Delta] = ()
        if self.finished is None and last_line is not None:
            with contextlib.suppress(InvalidResponseError):
                rest = self.translate(last_line)
        if self.finished is not None:
            return (*rest, self.finished)
        raise IncompleteStreamError(
            "Ollama's answer ended without its end marker (done): what arrived may not be the "
            "whole answer; ask again.",
            provider=_NAME,
            model=self._model,
        )

    def _deltas(self, data: dict[str, Any]) -> list[Delta]:
        deltas: list[Delta] = []
        if not self._started:
            self._started = True
            deltas.append(ResponseStarted(None, _text(data.get("model")) or None))
        if "message" not in data and "done" not in data:
            raise LookupError("neither message nor done")
        message = data.get("message") or {}
        if message.get("thinking"):
            deltas.append(ThinkingDelta(_text(message["thinking"])))
        if message.get("content"):
            deltas.append(TextDelta(_text(message["content"])))
        deltas += [self._call(call) for call in message.get("tool_calls") or ()]
        if data.get("done"):
            deltas.append(UsageDelta(_usage(data)))
            self.finished = self._finish(data.get("done_reason"))
        return deltas

    def _call(self, call: dict[str, Any]) -> ToolCallDelta:
        # Counted here: calls come whole, and the server's index may be 0 for each of them.
        number = self._calls
        self._calls += 1
        function = call["function"]
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False) if arguments is not None else ""
        return ToolCallDelta(number, _text(call.get("id")), _text(function["name"]), arguments)

    def _finish(self, raw: str | None) -> Finished:
        reason = _FINISH_REASONS.get(raw or "", "unknown")
        if self._calls and reason == "stop":
            reason = "tool_calls"
        return Finished(reason, raw)


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"{value!r} is given where text is expected")


def _usage(counts: Mapping[str, Any]) -> Usage:
    """Read the counts; the prompt's is missing where the server had the whole prompt cached."""
    return Usage(
        input_tokens=counts.get("prompt_eval_count"), output_tokens=counts.get("eval_count")
    )
