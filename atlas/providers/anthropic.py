"""Claude, by Anthropic's messages API.

The official SDK makes the request (keys, base URL, proxies, its error types); the event stream is
decoded here, which costs a fraction of the SDK's event models and lets no foreign error out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, Final

from atlas.errors import (
    BadRequestError,
    ConfigurationError,
    IncompleteStreamError,
    InvalidResponseError,
    MissingCredentialsError,
    MissingDependencyError,
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
from atlas.providers.http import (
    error_from,
    hide_secrets,
    note_refusal,
    transport_error,
    vendor_error,
)
from atlas.providers.http_body import closed_error, drain, raw_body
from atlas.providers.messages import (
    ChatMessage,
    FinishReason,
    Part,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    Usage,
)
from atlas.providers.wire import SseDecoder, SseEvent
from atlas.typing import JSON

try:
    import anthropic
    import httpx2
except ImportError as error:
    raise MissingDependencyError(
        "The provider 'anthropic' needs the package anthropic; "
        "install it with `pip install 'atlas[anthropic]'`.",
        extra="anthropic",
    ) from error

__all__ = ["AnthropicProvider"]

_NAME: Final = "anthropic"
_DEFAULT_MODEL: Final = "claude-sonnet-5-5"
_LISTING: Final = 30.0  # seconds for one page of the list of models
_BODY_SHOWN: Final = 65_536  # bytes read of an answer that is no event stream
_NEEDS_KEY: Final = (
    "The provider 'anthropic' needs a key: set ANTHROPIC_API_KEY, or give `api_key`."
)

_FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "max_tokens": "length",
    "stop_sequence": "stop_sequence",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_window",
}

_TOOL_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}


class AnthropicProvider:
    """Answers by Claude.

    Any number of streams may run at once on one instance, on one event loop. Closing a stream, or
    cancelling the task that reads it, closes its connection before it returns. The vendor knows no
    ``seed``: a request that has one is refused.

    Args:
        model: For requests that name none. Default: ``"claude-sonnet-5-5"``.
        api_key: Default: what the SDK finds, ``ANTHROPIC_API_KEY`` first.
        base_url: Default: ``ANTHROPIC_BASE_URL``, else the vendor's.
        max_tokens: For requests that do not say; the vendor demands a limit. A request's thinking
            budget is added to it.
        context_window: Tokens that prompt and answer may have together, as far as you know; only
            reported in `capabilities`.

    Raises:
        MissingCredentialsError: There is no key.
        ConfigurationError: The SDK refuses the settings.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        max_tokens: int = 8192,
        context_window: int | None = 200_000,
    ) -> None:
        self._model = model or _DEFAULT_MODEL
        self._max_tokens = max_tokens
        self._capabilities = Capabilities(
            tools=True, thinking=True, json_schema=True, context_window=context_window
        )
        self._client = _client(api_key, base_url)
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
        """What the vendor's current models can do."""
        return self._capabilities

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Ask Claude and yield its deltas; see `atlas.providers.base.Provider.stream`.

        Raises:
            ProviderError: The call failed; the subclass says how.
        """
        model = request.model or self._model
        translator = _Translator(model)
        translate = translator.translate
        decoder = SseDecoder()
        with self._neutral_errors(model, request.connect_timeout):
            async with self._request(request, model) as response:
                http = response.http_response
                translator.headers = http.headers
                await _check_event_stream(http, model)
                async with contextlib.aclosing(raw_body(http)) as chunks:
                    async for chunk in chunks:
                        for event in decoder.feed(chunk):
                            for delta in translate(event.data):
                                yield delta
                        if translator.finished is not None:
                            await drain(chunks, httpx2.HTTPError)
                            break
        yield translator.end(decoder.finish())

    async def models(self) -> Sequence[str]:
        """Return the ids of the models that this key may ask."""
        with self._neutral_errors("", _LISTING):
            try:
                page = self._client.models.list(timeout=_LISTING)
                return tuple([model.id async for model in page])
            except (AttributeError, TypeError, ValueError) as error:
                raise InvalidResponseError(
                    f"The list of models of {_NAME} is not what its protocol promises ({error!r}); "
                    f"check `base_url` and any proxy on the way.",
                    provider=_NAME,
                ) from error

    async def aclose(self) -> None:
        """Close all connections; streams that still run end in `ConnectionFailedError`."""
        self._closed = True
        await self._client.close()

    # Any: the SDK's response type is generic in a type that the raw path does not use.
    def _request(
        self, request: ChatRequest, model: str
    ) -> contextlib.AbstractAsyncContextManager[Any]:
        turns = list(_turns(request.messages))
        return self._client.messages.with_streaming_response.create(
            model=model,
            max_tokens=request.max_tokens or self._max_tokens + (request.thinking_tokens or 0),
            # The SDK's typed dictionaries say the same in 30 classes.
            messages=turns,  # type: ignore[arg-type]
            stream=True,
            extra_body=_options(request, model),
            # Only the connection: the other deadlines are kept around the adapter.
            timeout=httpx2.Timeout(None, connect=request.connect_timeout),
        )

    @contextlib.contextmanager
    def _neutral_errors(self, model: str, connect_timeout: float | None) -> Iterator[None]:
        """Let nothing out of the SDK, httpx or the decoders but a `ProviderError`."""
        if self._closed:
            raise closed_error(_NAME, model)
        try:
            yield
        except anthropic.APIStatusError as error:
            raise error_from(
                error.body if error.body is not None else error.response.text,
                status=error.status_code,
                headers=error.response.headers,
                provider=_NAME,
                model=model,
            ) from error
        except (anthropic.APIConnectionError, httpx2.HTTPError, httpx2.StreamError) as error:
            raise self._transport_error(error, model, connect_timeout) from error
        except (anthropic.AnthropicError, httpx2.InvalidURL, TypeError, ValueError) as error:
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
        return transport_error(
            error,
            provider=_NAME,
            model=model,
            address=str(self._client.base_url),
            connect_timeout=connect_timeout,
        )


def _client(api_key: str | None, base_url: str | None) -> anthropic.AsyncAnthropic:
    try:
        # Retries are Atlas's: the SDK's would hide attempts and wait up to 49 days.
        client = anthropic.AsyncAnthropic(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            http_client=anthropic.DefaultAsyncHttpxClient(
                event_hooks={"request": [hide_secrets], "response": [note_refusal]}
            ),
        )
    except anthropic.CredentialsError as error:
        raise MissingCredentialsError(f"{_NEEDS_KEY} {error}") from error
    except (anthropic.AnthropicError, httpx2.InvalidURL, ValueError) as error:
        raise ConfigurationError(
            f"The provider 'anthropic' cannot be set up: {error} Check its environment variables "
            f"(ANTHROPIC_...), `api_key` and `base_url`."
        ) from error
    if not (client.api_key or client.auth_token or client.credentials):
        raise MissingCredentialsError(_NEEDS_KEY)
    key = client.api_key or client.auth_token or ""
    if not key.isascii() or not key.isprintable():
        raise ConfigurationError(
            "The key for 'anthropic' has characters that cannot be sent; copy it again, without "
            "quotes or line ends."
        )
    return client


async def _check_event_stream(http: httpx2.Response, model: str) -> None:
    """Refuse an answer that says of itself that it is no event stream."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.endswith(("json", "html", "xml")):
        return
    body = b""
    async with contextlib.aclosing(raw_body(http)) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > _BODY_SHOWN:
                break
    status = None if vendor_error(body).type else http.status_code
    raise error_from(body, status=status, headers=http.headers, provider=_NAME, model=model)


# -- the request ----------------------------------------------------------------------------------


def _options(request: ChatRequest, model: str) -> dict[str, JSON]:
    if request.seed is not None:
        raise BadRequestError(
            "Anthropic's API takes no seed; leave it out.", provider=_NAME, model=model
        )
    options: dict[str, JSON] = {}
    system = "\n\n".join(
        filter(None, (message.text for message in request.messages if message.role == "system"))
    )
    if system:
        options["system"] = system
    if request.tools:
        options["tools"] = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": json.loads(tool.parameters),
            }
            for tool in request.tools
        ]
    if request.tool_choice is not None:
        options["tool_choice"] = {"type": _TOOL_CHOICES[request.tool_choice]}
    if request.temperature is not None:
        options["temperature"] = request.temperature
    if request.top_p is not None:
        options["top_p"] = request.top_p
    if request.stop:
        options["stop_sequences"] = list(request.stop)
    if request.thinking_tokens is not None:
        options["thinking"] = {"type": "enabled", "budget_tokens": request.thinking_tokens}
    if request.json_schema is not None:
        schema = json.loads(request.json_schema)
        options["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return {**options, **request.extra}


def _turns(messages: Sequence[ChatMessage]) -> Iterator[dict[str, JSON]]:
    """Say the conversation in turns that alternate; a tool's result is the user's to give."""
    role, content = "", list[JSON]()
    for message in messages:
        if message.role == "system":
            continue
        speaker = "assistant" if message.role == "assistant" else "user"
        if speaker != role and content:
            yield {"role": role, "content": _results_first(content)}
            content = []
        role = speaker
        content += [block for part in message.parts if (block := _content_block(part)) is not None]
    if content:
        yield {"role": role, "content": _results_first(content)}


def _results_first(content: list[JSON]) -> JSON:
    # The vendor refuses a turn in which a tool's result follows text. The sort is stable.
    return sorted(content, key=lambda b: isinstance(b, dict) and b["type"] != "tool_result")


def _content_block(part: Part) -> JSON:
    match part:
        case TextPart(text) | RefusalPart(text):
            return {"type": "text", "text": text} if text else None  # empty ones are refused
        case ThinkingPart(redacted=str(data)):
            return {"type": "redacted_thinking", "data": data}
        case ThinkingPart(text, signature=str(signature)) if not signature.startswith("{"):
            return {"type": "thinking", "thinking": text, "signature": signature}
        case ThinkingPart():
            return None  # unsigned, or signed by another vendor: it would be refused
        case ToolCallPart(call_id, name, arguments):
            return {"type": "tool_use", "id": call_id, "name": name, "input": _input(arguments)}
        case ToolResultPart(call_id, text, is_error):
            result: dict[str, JSON] = {
                "type": "tool_result",
                "tool_use_id": call_id,
                "content": text,
            }
            return result | ({"is_error": True} if is_error else {})


def _input(arguments: str) -> JSON:
    """Return a call's arguments as the object that the vendor demands, also where they are none."""
    try:
        parsed: JSON = json.loads(arguments or "{}")
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"invalid_arguments": arguments}


# -- the answer -----------------------------------------------------------------------------------


class _Block:
    """A content block on its way; ``number`` counts the blocks of the answer from 0."""

    __slots__ = ("arguments", "kind", "number")

    def __init__(self, kind: str, number: int, arguments: str) -> None:
        self.kind = kind
        self.number = number
        self.arguments = arguments  # a call's, as its start had them: valid when none follow


class _Translator:
    """The vendor's events, as JSON text, into deltas."""

    def __init__(self, model: str) -> None:
        self.headers: httpx2.Headers | None = None
        self.finished: Finished | None = None
        self._model = model
        self._blocks: dict[int, _Block] = {}  # by the vendor's index
        self._count = 0
        self._stop_reason: str | None = None
        self._calls_tools = False
        self._usage: dict[str, int] = {}

    def translate(self, text: str) -> Sequence[Delta]:
        """Return what one event says.

        Raises:
            ProviderError: It is an error event, or none of this protocol.
        """
        try:
            # Any: decoded JSON; where its shape is another than promised, the handler below says so.
            data: Any = json.loads(text)
            kind = data.get("type")
            if kind == "content_block_delta":
                delta = data["delta"]
                block = self._block(data.get("index", 0))
                if delta["type"] == "text_delta":
                    said = _text(delta.get("text"))
                    return (TextDelta(said, block.number),) if said else ()
                return self._other_delta(delta, block)
            handle = _HANDLERS.get(kind)
            return handle(self, data) if handle else ()
        except json.JSONDecodeError as error:
            raise self._invalid("is not JSON", text) from error
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if isinstance(error, ProviderError):
                raise
            raise self._invalid(f"is not what its protocol promises ({error!r})", text) from error

    def end(self, cut_off: SseEvent | None) -> Finished:
        """Return the end of the answer; ``cut_off`` is the event that lacks its last blank line.

        Raises:
            ProviderError: The stream ended without its end marker.
        """
        if self.finished is None and cut_off is not None:
            with contextlib.suppress(InvalidResponseError):
                self.translate(cut_off.data)
        if self.finished is not None:
            return self.finished
        raise IncompleteStreamError(
            f"The answer of {_NAME} ended without its end marker (message_stop): what arrived may "
            f"not be the whole answer; ask again.",
            provider=_NAME,
            model=self._model,
        )

    def _invalid(self, problem: str, text: str) -> InvalidResponseError:
        return InvalidResponseError(
            f"An event of {_NAME} {problem}: {text[:200]!r}; check `base_url` and any proxy on the "
            f"way.",
            provider=_NAME,
            model=self._model,
        )

    def _block(self, index: int) -> _Block:
        return self._blocks.get(index) or self._new_block(index, "")

    def _new_block(self, index: int, kind: str, arguments: str = "") -> _Block:
        block = self._blocks[index] = _Block(kind, self._count, arguments)
        self._count += 1
        return block

    def _other_delta(self, delta: dict[str, Any], block: _Block) -> Sequence[Delta]:
        kind = delta["type"]
        if kind == "thinking_delta":
            return (ThinkingDelta(_text(delta.get("thinking")), block.number),)
        if kind == "signature_delta":
            return (ThinkingDelta("", block.number, signature=_text(delta["signature"])),)
        if kind == "input_json_delta" and block.kind == "tool_use":
            piece = _text(delta.get("partial_json"))
            block.arguments = "" if piece else block.arguments
            return (ToolCallDelta(block.number, arguments=piece),)
        return ()  # citations, the input of the vendor's own tools, and what is yet to come

    def _message_start(self, data: dict[str, Any]) -> Sequence[Delta]:
        message = data.get("message") or {}
        started = ResponseStarted(
            _text(message.get("id")) or None, _text(message.get("model")) or None
        )
        return (started, *self._counted(message.get("usage")))

    def _block_start(self, data: dict[str, Any]) -> Sequence[Delta]:
        content = data["content_block"]
        kind = content["type"]
        if kind == "tool_use":
            given = json.dumps(content["input"]) if content.get("input") else ""
            block = self._new_block(data.get("index", 0), kind, given)
            self._calls_tools = True
            return (ToolCallDelta(block.number, _text(content["id"]), _text(content["name"])),)
        number = self._new_block(data.get("index", 0), kind).number
        if kind == "text" and content.get("text"):
            return (TextDelta(_text(content["text"]), number),)
        if kind == "redacted_thinking":
            return (ThinkingDelta("", number, redacted=_text(content["data"])),)
        if kind == "thinking" and (content.get("thinking") or content.get("signature")):
            signature = _text(content.get("signature")) or None
            return (ThinkingDelta(_text(content.get("thinking")), number, signature=signature),)
        return ()

    def _block_stop(self, data: dict[str, Any]) -> Sequence[Delta]:
        block = self._block(data.get("index", 0))
        arguments, block.arguments = block.arguments, ""
        return (ToolCallDelta(block.number, arguments=arguments),) if arguments else ()

    def _message_delta(self, data: dict[str, Any]) -> Sequence[Delta]:
        self._stop_reason = (data.get("delta") or {}).get("stop_reason") or self._stop_reason
        return self._counted(data.get("usage"))

    def _message_stop(self, data: dict[str, Any]) -> Sequence[Delta]:
        raw = self._stop_reason
        reason = _FINISH_REASONS.get(raw or "", "unknown")
        if reason == "stop" and self._calls_tools:
            reason = "tool_calls"
        self.finished = Finished(reason, raw)
        return ()

    def _error(self, data: dict[str, Any]) -> Sequence[Delta]:
        raise error_from(data, headers=self.headers, provider=_NAME, model=self._model)

    def _counted(self, counts: dict[str, Any] | None) -> Sequence[Delta]:
        """Take in counts, which are cumulative; the vendor counts cached input apart."""
        if not counts:
            return ()
        details = counts.get("output_tokens_details") or {}
        for name, count in (*counts.items(), *details.items()):
            if type(count) is int:
                self._usage[name] = max(count, self._usage.get(name, 0))
        known = self._usage.get
        total = known("input_tokens")
        written = known("cache_creation_input_tokens")
        cached = known("cache_read_input_tokens")
        if total is not None:
            total += (written or 0) + (cached or 0)
        usage = Usage(
            input_tokens=total,
            output_tokens=known("output_tokens"),
            cached_tokens=cached,
            cache_write_tokens=written,
            reasoning_tokens=known("thinking_tokens"),
        )
        return (UsageDelta(usage),)


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"{value!r} is given where text is expected")


_HANDLERS: Final[dict[str, Callable[[_Translator, dict[str, Any]], Sequence[Delta]]]] = {
    "message_start": _Translator._message_start,
    "content_block_start": _Translator._block_start,
    "content_block_stop": _Translator._block_stop,
    "message_delta": _Translator._message_delta,
    "message_stop": _Translator._message_stop,
    "error": _Translator._error,
}
