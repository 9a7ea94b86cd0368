"""OpenAI, and every server that speaks its protocols: chat completions and responses.

The official SDK sends the request: authentication, base URL, proxies, its error types. Its retries
are off (`atlas.providers.resilience` has them) and its event models are not used: the adapter
decodes the event stream itself, which costs a sixth of the processor time per token and notices
what the SDK does not (a stream cut off, broken JSON, a call's index used twice).

Which of the two protocols is spoken: ``api="responses"`` at OpenAI itself, since only it shows
the model's reasoning and takes it back; ``api="chat"`` at any other address, since that is what
compatible servers offer. Both can be set.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence

# Any: vendor JSON is read as it comes and checked where it is used.
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

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
    RefusalDelta,
    ResponseStarted,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    UsageDelta,
)
from atlas.providers.http import NO_KEY, error_from, hide_secrets, note_refusal, transport_error
from atlas.providers.http_body import closed_error, drain, raw_body
from atlas.providers.messages import (
    ChatMessage,
    FinishReason,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
    Usage,
)
from atlas.providers.wire import SseDecoder, SseEvent

try:
    import httpx2
    import openai
except ImportError as error:
    raise MissingDependencyError(
        "The provider 'openai' needs the package openai; "
        "install it with `pip install 'atlas[openai]'`.",
        extra="openai",
    ) from error

__all__ = ["OpenAIProvider"]

_OFFICIAL_URL = "https://api.openai.com/v1"
_OFFICIAL_MODEL = "gpt-5-mini"
_ENOUGH_TO_QUOTE = 65_536  # bytes of an answer that is no stream


class OpenAIProvider:
    """Models of OpenAI, or of a server compatible with it.

    One instance serves any number of streams at once on one event loop, over one pool of
    connections.

    Args:
        model: Default model. At OpenAI itself there is a default; elsewhere name one.
        api_key: Default: ``OPENAI_API_KEY``. At another address than OpenAI's it may be missing.
        base_url: Default: ``OPENAI_BASE_URL``, else OpenAI itself.
        api: ``"responses"`` or ``"chat"``; default: responses at OpenAI itself, else chat.
        headers: Headers to send with every request.
        include_usage: Ask for token counts in chat streams; a few servers refuse the option.
        require_done: Take a chat stream for whole only if it ends with ``[DONE]``. Without it a
            finish reason suffices, for servers that leave the marker out.
        client: An SDK client of your own (Azure, a custom transport) instead of ``api_key``,
            ``base_url`` and ``headers``; it is closed with the provider.

    Raises:
        MissingCredentialsError: No key is given, and the address is OpenAI's.
        ConfigurationError: The key cannot be sent in a header.
    """

    name = "openai"

    def __init__(
        self,
        *,
        model: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        api: Literal["chat", "responses"] | None = None,
        headers: Mapping[str, str] | None = None,
        include_usage: bool = True,
        require_done: bool = True,
        client: openai.AsyncOpenAI | None = None,
    ) -> None:
        if client is None:
            base_url = base_url or os.environ.get("OPENAI_BASE_URL") or _OFFICIAL_URL
            client = openai.AsyncOpenAI(
                api_key=_key(api_key, base_url),
                base_url=base_url,
                default_headers=headers,
                http_client=openai.DefaultAsyncHttpxClient(
                    event_hooks={"request": [hide_secrets], "response": [note_refusal]}
                ),
            )
        self._client = client.with_options(max_retries=0)
        self._address = str(client.base_url)
        self._official = _is_official(self._address)
        self._api: Literal["chat", "responses"] = api or ("responses" if self._official else "chat")
        self._default_model = model or (_OFFICIAL_MODEL if self._official else "")
        self._include_usage = include_usage
        self._require_done = require_done

    @property
    def capabilities(self) -> Capabilities:
        """What the protocol can carry; whether a given model does is the model's affair."""
        return Capabilities(tools=True, thinking=True, json_schema=True)

    @property
    def api(self) -> Literal["chat", "responses"]:
        """Which of the two protocols is spoken."""
        return self._api

    @property
    def default_model(self) -> str:
        """The model asked when a request names none; empty when there is none either."""
        return self._default_model

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Ask the model and yield deltas as they arrive; see `atlas.providers.base.Provider`."""
        model = self._model(request)
        translator = self._translator(model)
        decoder = SseDecoder()
        async with self._answer(request, model) as answer:
            body = raw_body(answer)
            try:
                async with contextlib.aclosing(body):
                    await self._check_content(answer, body, model)
                    async for chunk in body:
                        for event in decoder.feed(chunk):
                            for delta in translator.feed(event):
                                yield delta
                        if translator.finished:
                            await drain(body, httpx2.HTTPError)
                            return
            except httpx2.HTTPError as error:
                raise self._transport_error(error, request, model) from error
            except ProviderError as error:
                error.request_id = error.request_id or answer.headers.get("x-request-id")
                raise
        for delta in translator.end(decoder.finish()):
            yield delta

    async def models(self) -> Sequence[str]:
        """Return the names of the models that can be asked, sorted."""
        try:
            # Raw: the SDK's models let an answer of the wrong shape out as an AttributeError.
            answer = await self._client.models.with_raw_response.list(timeout=30.0)
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._neutral(error) from error
        try:
            return tuple(sorted(str(entry["id"]) for entry in json.loads(answer.content)["data"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise error_from(
                answer.content,
                status=answer.status_code,
                headers=answer.headers,
                provider=self.name,
            ) from error

    async def aclose(self) -> None:
        """Close the pool of connections; a stream still open fails. Idempotent."""
        await self._client.close()

    # -- asking -----------------------------------------------------------------------------

    def _model(self, request: ChatRequest) -> str:
        model = request.model or self._default_model
        if not model:
            raise BadRequestError(
                f"No model is named for the server at {self._address}; give one with the request "
                f"or as the provider's default model.",
                provider=self.name,
            )
        return model

    def _translator(self, model: str) -> _Translator:
        if self._api == "responses":
            return _ResponsesStream(model)
        return _ChatStream(model, require_done=self._require_done)

    @contextlib.asynccontextmanager
    async def _answer(self, request: ChatRequest, model: str) -> AsyncIterator[httpx2.Response]:
        """Send the request; the connection is released at the end of the block."""
        if self._client.is_closed():
            raise closed_error(self.name, model)
        timeout = httpx2.Timeout(None, connect=request.connect_timeout)
        if self._api == "responses":
            sending = self._client.responses.with_streaming_response.create(
                **_responses_body(request, model), stream=True, timeout=timeout
            )
        else:
            body = _chat_body(
                request, model, official=self._official, include_usage=self._include_usage
            )
            sending = self._client.chat.completions.with_streaming_response.create(
                **body, stream=True, timeout=timeout
            )
        async with contextlib.AsyncExitStack() as stack:
            try:
                response = await stack.enter_async_context(sending)
            except (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise self._neutral(error, request, model) from error
            except (TypeError, ValueError) as error:
                raise BadRequestError(
                    f"The request cannot be sent to openai: {error}. Check its texts and `extra`.",
                    provider=self.name,
                    model=model,
                ) from error
            yield response.http_response

    async def _check_content(
        self, answer: httpx2.Response, body: AsyncIterator[bytes], model: str
    ) -> None:
        """Refuse an answer that says of itself that it is no event stream."""
        content_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not content_type.endswith(("json", "html", "xml")):
            return
        start = b""
        async for chunk in body:
            start += chunk
            if len(start) > _ENOUGH_TO_QUOTE:
                break
        raise error_from(
            start,
            status=None if _says_error(start) else answer.status_code,
            headers=answer.headers,
            provider=self.name,
            model=model,
        )

    # -- naming what goes wrong -------------------------------------------------------------

    def _neutral(
        self, error: Exception, request: ChatRequest | None = None, model: str = ""
    ) -> ProviderError:
        if isinstance(error, openai.APIStatusError):
            return error_from(
                error.response.content,
                status=error.status_code,
                headers=error.response.headers,
                provider=self.name,
                model=model,
            )
        return self._transport_error(error, request, model)

    def _transport_error(
        self, error: Exception, request: ChatRequest | None, model: str
    ) -> ProviderError:
        return transport_error(
            error,
            provider=self.name,
            model=model,
            address=self._address,
            connect_timeout=request.connect_timeout if request else None,
        )


def _key(api_key: str | None, base_url: str) -> str:
    key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
    if not key and _is_official(base_url):
        raise MissingCredentialsError(
            "The openai provider needs a key: set OPENAI_API_KEY, or give api_key=."
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigurationError(
            "The key for openai has characters that cannot be sent; copy it again, without quotes."
        )
    return key or NO_KEY  # a server of one's own rarely asks for one; the SDK must send something


def _is_official(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def _says_error(body: bytes) -> bool:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and bool(parsed.get("error"))


# -- requests -------------------------------------------------------------------------------------


def _chat_body(
    request: ChatRequest, model: str, *, official: bool, include_usage: bool
) -> dict[str, Any]:
    limit = "max_completion_tokens" if official else "max_tokens"
    body = _given(
        model=model,
        messages=[entry for message in request.messages for entry in _chat_messages(message)],
        tools=[{"type": "function", "function": _function(tool)} for tool in request.tools],
        tool_choice=request.tool_choice if request.tools else None,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=list(request.stop),
        reasoning_effort=_effort(request.thinking_tokens),
        stream_options={"include_usage": True} if include_usage else None,
        extra_body=_extra(request),
        **{limit: request.max_tokens},
    )
    if request.json_schema is not None:
        schema = {"name": "answer", "schema": json.loads(request.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _responses_body(request: ChatRequest, model: str) -> dict[str, Any]:
    for name, given in (("stop strings", request.stop), ("a seed", request.seed is not None)):
        if given:
            raise BadRequestError(
                f"OpenAI's responses API takes no {name.removeprefix('a ')}; leave it out, or make "
                f"the provider with api='chat'.",
                provider="openai",
                model=model,
            )
    effort = _effort(request.thinking_tokens)
    body = _given(
        model=model,
        input=[entry for message in request.messages for entry in _response_items(message)],
        tools=[{"type": "function", **_function(tool), "strict": False} for tool in request.tools],
        tool_choice=request.tool_choice if request.tools else None,
        max_output_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        reasoning={"effort": effort, "summary": "auto"} if effort else None,
        store=False,
        extra_body=_extra(request),
    )
    if request.json_schema is not None:
        schema = {"name": "answer", "schema": json.loads(request.json_schema), "strict": True}
        body["text"] = {"format": {"type": "json_schema", **schema}}
    return body


# Any: what an SDK call takes as keyword arguments.
def _given(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that say something: neither None nor an empty list or mapping."""
    return {k: v for k, v in arguments.items() if v is not None and v not in ([], {})}


def _chat_messages(message: ChatMessage) -> Iterator[dict[str, Any]]:
    """Yield the entries for one turn; thinking is not sent back, since this API takes none."""
    calls: list[dict[str, Any]] = []
    words: list[str] = []
    for part in message.parts:
        if isinstance(part, ToolResultPart):
            yield {"role": "tool", "tool_call_id": part.call_id, "content": _result(part)}
        elif isinstance(part, ToolCallPart):
            function = {"name": part.name, "arguments": part.arguments or "{}"}
            calls.append({"id": part.id, "type": "function", "function": function})
        elif isinstance(part, TextPart | RefusalPart):
            words.append(part.text)
    if calls:
        yield {"role": "assistant", "content": "".join(words) or None, "tool_calls": calls}
    elif words or message.role != "tool":
        role = "user" if message.role == "tool" else message.role
        yield {"role": role, "content": "".join(words)}


def _response_items(message: ChatMessage) -> Iterator[dict[str, Any]]:
    for part in message.parts:
        if isinstance(part, ToolResultPart):
            output = _result(part)
            yield {"type": "function_call_output", "call_id": part.call_id, "output": output}
        elif isinstance(part, ToolCallPart):
            arguments = part.arguments or "{}"
            call = {"call_id": part.id, "name": part.name, "arguments": arguments}
            yield {"type": "function_call", **call}
        elif isinstance(part, ThinkingPart):
            if (item := _reasoning_item(part)) is not None:
                yield item
        elif message.role == "assistant":
            yield {"type": "message", "role": "assistant", "content": [_spoken(part)]}
        else:
            role = "user" if message.role == "tool" else message.role
            yield {"type": "message", "role": role, "content": part.text}


def _spoken(part: TextPart | RefusalPart) -> dict[str, Any]:
    if isinstance(part, RefusalPart):
        return {"type": "refusal", "refusal": part.text}
    return {"type": "output_text", "text": part.text}


def _reasoning_item(part: ThinkingPart) -> dict[str, Any] | None:
    """Return the reasoning item kept in the signature; None for another vendor's thinking."""
    try:
        item = json.loads(part.signature or "null")
    except ValueError:
        return None
    return item if isinstance(item, dict) and item.get("type") == "reasoning" else None


def _result(part: ToolResultPart) -> str:
    return f"Error: {part.content}" if part.is_error else part.content


def _function(tool: ToolSpec) -> dict[str, Any]:
    parameters = json.loads(tool.parameters)
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def _extra(request: ChatRequest) -> dict[str, Any]:
    if request.extra.get("n") not in (None, 1):
        raise BadRequestError(
            f"n={request.extra['n']!r} asks for several answers in one stream; Atlas reads one. "
            f"Ask several times instead.",
            provider="openai",
            model=request.model,
        )
    return dict(request.extra)


def _effort(thinking_tokens: int | None) -> str | None:
    """Return the effort nearest to a budget, since OpenAI takes no number of tokens."""
    if thinking_tokens is None:
        return None
    if thinking_tokens <= 2_048:
        return "low"
    return "medium" if thinking_tokens <= 8_192 else "high"


# -- streams --------------------------------------------------------------------------------------


class _Translator(Protocol):
    """Turns the events of one answer into deltas."""

    finished: bool

    def feed(self, event: SseEvent) -> Sequence[Delta]: ...

    def end(self, last: SseEvent | None) -> Sequence[Delta]:
        """Return what the end of the body is worth; raise if the answer may not be whole."""
        ...


# Any: vendor JSON.
def _parsed(event: SseEvent, model: str) -> dict[str, Any]:
    """Return the event's object; raise if it is none, or says that something failed."""
    try:
        parsed = json.loads(event.data)
    except (ValueError, RecursionError) as error:
        raise _invalid(event, model, "is not JSON") from error
    if type(parsed) is not dict:
        raise _invalid(event, model, "is not an object")
    if parsed.get("error") or event.event == "error" or parsed.get("type") == "error":
        raise error_from(parsed, provider="openai", model=model)
    return parsed


def _invalid(event: SseEvent, model: str, problem: str) -> InvalidResponseError:
    shown = event.data if len(event.data) <= 200 else f"{event.data[:197]}..."
    return InvalidResponseError(
        f"openai sent an event that {problem}: {shown!r}. Check that the server at the base URL "
        f"speaks OpenAI's protocol, and any proxy before it.",
        provider="openai",
        model=model,
    )


def _incomplete(model: str, problem: str) -> IncompleteStreamError:
    return IncompleteStreamError(
        f"openai ended its stream {problem}; what arrived may not be the whole answer. Ask again.",
        provider="openai",
        model=model,
    )


def _text(value: object) -> str:
    """Return a text of the vendor's; absent or null is empty, anything else is refused."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where text belongs")
    return value


def _count(value: object) -> int | None:
    return value if type(value) is int else None


# Any: vendor JSON.
def _usage(usage: Mapping[str, Any]) -> Usage:
    """Read token counts of either protocol; both count cached and reasoning tokens as parts."""
    given = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    made = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    return Usage(
        input_tokens=_count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        output_tokens=_count(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached_tokens=_count(given.get("cached_tokens")),
        cache_write_tokens=_count(given.get("cache_write_tokens")),
        reasoning_tokens=_count(made.get("reasoning_tokens")),
    )


_CHAT_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class _ChatStream:
    """Translates the chunks of one chat completion."""

    def __init__(self, model: str, *, require_done: bool) -> None:
        self.finished = False
        self._model = model
        self._require_done = require_done
        self._started = False
        self._reason: str | None = None
        self._refused = False
        self._has_content = False
        self._calls = _ToolCalls()

    def feed(self, event: SseEvent) -> Sequence[Delta]:
        if self.finished or not event.data:
            return ()
        if event.data == "[DONE]":
            return self._finish()
        chunk = _parsed(event, self._model)
        try:
            return self._deltas(chunk)
        except (AttributeError, TypeError, KeyError, IndexError) as error:
            raise _invalid(event, self._model, "has not the shape of a chunk") from error

    def end(self, last: SseEvent | None) -> Sequence[Delta]:
        if last is not None and last.data.strip() == "[DONE]":
            return self._finish()
        if self._require_done:
            raise _incomplete(self._model, "without its end marker [DONE]")
        return self._finish()

    def _deltas(self, chunk: dict[str, Any]) -> list[Delta]:
        deltas: list[Delta] = []
        if not self._started:
            self._started = True
            deltas.append(
                ResponseStarted(_text(chunk.get("id")) or None, _text(chunk.get("model")) or None)
            )
        choices = chunk.get("choices")
        if choices:
            self._choice(choices[0], deltas)
        usage = chunk.get("usage")
        if usage:
            deltas.append(UsageDelta(_usage(usage)))
        return deltas

    def _choice(self, choice: dict[str, Any], deltas: list[Delta]) -> None:
        if choice.get("index"):
            return  # a further answer, which nobody asked for
        delta = choice.get("delta")
        if delta:
            content = delta.get("content")
            if content:
                self._has_content = True
                deltas.append(TextDelta(_text(content)))
            if len(delta) > 1 or not content:
                self._rest(delta, deltas)
        reason = choice.get("finish_reason")
        if reason:
            self._reason = _text(reason)

    def _rest(self, delta: dict[str, Any], deltas: list[Delta]) -> None:
        thinking = delta.get("reasoning_content") or delta.get("reasoning")
        if thinking:
            self._has_content = True
            deltas.insert(0, ThinkingDelta(_text(thinking)))
        refusal = delta.get("refusal")
        if refusal:
            self._has_content = self._refused = True
            deltas.append(RefusalDelta(_text(refusal)))
        for fragment in delta.get("tool_calls") or ():
            deltas += self._calls.feed(fragment)
        if delta.get("function_call"):
            deltas += self._calls.feed({"index": 0, "function": delta["function_call"]})

    def _finish(self) -> Sequence[Delta]:
        raw = self._reason
        if raw is None and not (self._require_done and (self._has_content or self._calls)):
            raise _incomplete(self._model, "without a finish reason")
        self.finished = True
        reason = _CHAT_REASONS.get(raw or "", "unknown")
        if reason == "stop" and self._calls:
            reason = "tool_calls"
        elif reason == "stop" and self._refused:
            reason = "refusal"
        return (*self._calls.unsent(), Finished(reason, raw))


class _Call:
    """One tool call, as far as it is known."""

    def __init__(self, number: int, call_id: str) -> None:
        self.number = number
        self.id = call_id
        self.name = ""
        self.pieces: list[str] = []
        self._sent_id = ""
        self._sent_name = ""
        self._sent = False

    def is_complete(self) -> bool:
        """Whether the arguments so far are a whole JSON value."""
        try:
            json.loads("".join(self.pieces))
        except (ValueError, RecursionError):
            return False
        return True

    def take(self, arguments: str) -> ToolCallDelta:
        """Append arguments, and tell id and name as far as they are not told yet."""
        if arguments:
            self.pieces.append(arguments)
        new_id = "" if self._sent_id else self.id
        new_name = "" if self._sent_name else self.name
        self._sent_id, self._sent_name, self._sent = self.id, self.name, True
        return ToolCallDelta(self.number, new_id, new_name, arguments)

    @property
    def is_told(self) -> bool:
        """Whether everything known has been told."""
        return self._sent and bool(self._sent_id) == bool(self.id)


class _ToolCalls:
    """Finds out which call a fragment belongs to, whatever the server makes of index and id.

    By the protocol a call has an index of its own, and its first fragment carries id and name.
    Servers are seen that use one index for all calls, leave the index out, repeat id and name in
    every fragment, give the id late, or not at all.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int | None, _Call] = {}  # the latest call; None: without an index
        self._by_id: dict[str, _Call] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def feed(self, fragment: dict[str, Any]) -> Sequence[ToolCallDelta]:
        function = fragment.get("function") or {}
        index = _count(fragment.get("index"))
        name = _text(function.get("name"))
        arguments = function.get("arguments")
        if isinstance(arguments, dict | list):
            arguments = json.dumps(arguments)
        arguments = _text(arguments)
        known = len(self._calls)
        call = self._owner(index, _text(fragment.get("id")), name, arguments)
        if name and name != call.name and not call.pieces:
            call.name += name
        if arguments:
            return (call.take(arguments),)
        # The name may still grow; told at once is only the call's place before those that follow.
        return (ToolCallDelta(call.number),) if call.number == known else ()

    def unsent(self) -> list[ToolCallDelta]:
        """Return what is known of calls and not told yet: calls without arguments, late ids."""
        return [call.take("") for call in self._calls if not call.is_told]

    def _owner(self, index: int | None, call_id: str, name: str, arguments: str) -> _Call:
        current = self._current(index)
        known = self._by_id.get(call_id) if call_id else None
        if known is not None and (known is current or not name):
            return known
        if current is None:
            return self._new(index, "" if known else call_id)
        if call_id and current.id:
            return self._new(index, "" if known else call_id)
        if name and current.name and _is_another(current, name, arguments):
            return self._new(index, call_id)
        if call_id:
            current.id = call_id
            self._by_id[call_id] = current
        return current

    def _current(self, index: int | None) -> _Call | None:
        if index is None:
            return self._calls[-1] if self._calls else None
        return self._by_index.get(index)

    def _new(self, index: int | None, call_id: str) -> _Call:
        call = _Call(len(self._calls), call_id)
        self._calls.append(call)
        self._by_index[index] = call
        if call_id:
            self._by_id[call_id] = call
        return call


def _is_another(current: _Call, name: str, arguments: str) -> bool:
    """Whether a fragment with a name, and nothing else to go by, begins a call after ``current``.

    A repeated name, or a name in pieces, does not; a name with arguments after whole ones does.
    """
    if not current.pieces:
        return False
    return name != current.name or (bool(arguments) and current.is_complete())


_INCOMPLETE_REASONS: dict[str, FinishReason] = {
    "max_output_tokens": "length",
    "content_filter": "content_filter",
}


class _ResponsesStream:
    """Translates the events of one answer of the responses API."""

    def __init__(self, model: str) -> None:
        self.finished = False
        self._model = model
        self._started = False
        self._refused = False
        self._blocks: dict[object, int] = {}
        self._calls: dict[object, _Call] = {}

    def feed(self, event: SseEvent) -> Sequence[Delta]:
        if self.finished or not event.data or event.data == "[DONE]":
            return ()
        parsed = _parsed(event, self._model)
        kind = parsed.get("type") or event.event
        handle = _RESPONSE_EVENTS.get(kind)
        if handle is None:
            return ()
        try:
            return handle(self, parsed)
        except (AttributeError, TypeError, KeyError, IndexError) as error:
            raise _invalid(event, self._model, "has not the shape of its type") from error

    def end(self, last: SseEvent | None) -> Sequence[Delta]:
        if last is not None:
            with contextlib.suppress(InvalidResponseError):
                deltas = self.feed(last)
                if self.finished:
                    return deltas
        raise _incomplete(self._model, "before the response was completed")

    def on_created(self, event: dict[str, Any]) -> Sequence[Delta]:
        if self._started:
            return ()
        self._started = True
        response = event.get("response") or {}
        return (
            ResponseStarted(
                _text(response.get("id")) or None, _text(response.get("model")) or None
            ),
        )

    # -- words ------------------------------------------------------------------------------

    def on_text(self, event: dict[str, Any]) -> Sequence[Delta]:
        block = self._block("text", event.get("output_index"), event.get("content_index"))
        return (TextDelta(_text(event.get("delta")), block),)

    def on_text_done(self, event: dict[str, Any]) -> Sequence[Delta]:
        key = ("text", event.get("output_index"), event.get("content_index"))
        if key in self._blocks:
            return ()
        return (TextDelta(_text(event.get("text")), self._block(*key)),)

    def on_refusal(self, event: dict[str, Any]) -> Sequence[Delta]:
        self._refused = True
        block = self._block("refusal", event.get("output_index"), event.get("content_index"))
        return (RefusalDelta(_text(event.get("delta")), block),)

    def on_thinking(self, event: dict[str, Any]) -> Sequence[Delta]:
        block = self._block("thinking", event.get("output_index"))
        return (ThinkingDelta(_text(event.get("delta")), block),)

    def on_thinking_part(self, event: dict[str, Any]) -> Sequence[Delta]:
        if not event.get("summary_index"):
            return ()
        return (ThinkingDelta("\n\n", self._block("thinking", event.get("output_index"))),)

    # -- items ------------------------------------------------------------------------------

    def on_item(self, event: dict[str, Any]) -> Sequence[Delta]:
        item = event.get("item") or {}
        if item.get("type") != "function_call":
            return ()
        call = self._call(event, item)
        return (call.take(""),) if call.name and not call.is_told else ()

    def on_arguments(self, event: dict[str, Any]) -> Sequence[Delta]:
        arguments = _text(event.get("delta"))
        return (self._call(event).take(arguments),) if arguments else ()

    def on_arguments_done(self, event: dict[str, Any]) -> Sequence[Delta]:
        return self._complete(self._call(event), event)

    def on_item_done(self, event: dict[str, Any]) -> Sequence[Delta]:
        item = event.get("item") or {}
        if item.get("type") == "function_call":
            return self._complete(self._call(event, item), item)
        if item.get("type") == "reasoning" and (item.get("encrypted_content") or item.get("id")):
            return (self._reasoning(event, item),)
        return ()

    def _reasoning(self, event: dict[str, Any], item: dict[str, Any]) -> ThinkingDelta:
        """Keep the whole item as the signature: it must go back exactly as it came."""
        key = ("thinking", event.get("output_index"))
        shown = key in self._blocks
        parts = item.get("summary") or item.get("content") or ()
        text = "" if shown else "\n\n".join(_text(part.get("text")) for part in parts)
        signature = json.dumps(item, ensure_ascii=False, separators=(",", ":"))
        return ThinkingDelta(text, self._block(*key), signature)

    def _complete(self, call: _Call, said: dict[str, Any]) -> Sequence[Delta]:
        """Tell what of a call's arguments was not streamed; some servers stream nothing."""
        whole = _text(said.get("arguments"))
        so_far = "".join(call.pieces)
        rest = whole[len(so_far) :] if whole.startswith(so_far) else ""
        return () if call.is_told and not rest else (call.take(rest),)

    def _call(self, event: dict[str, Any], item: Mapping[str, Any] | None = None) -> _Call:
        key = event.get("output_index", event.get("item_id"))
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _Call(len(self._calls), "")
        if item is not None:
            call.id = call.id or _text(item.get("call_id")) or _text(item.get("id"))
            call.name = call.name or _text(item.get("name"))
        return call

    def _block(self, *key: object) -> int:
        return self._blocks.setdefault(key, len(self._blocks))

    # -- ends -------------------------------------------------------------------------------

    def on_completed(self, event: dict[str, Any]) -> Sequence[Delta]:
        reason: FinishReason = "stop"
        if self._calls:
            reason = "tool_calls"
        elif self._refused:
            reason = "refusal"
        return self._finish(event, reason, "completed")

    def on_incomplete(self, event: dict[str, Any]) -> Sequence[Delta]:
        details = (event.get("response") or {}).get("incomplete_details") or {}
        raw = _text(details.get("reason")) or "incomplete"
        return self._finish(event, _INCOMPLETE_REASONS.get(raw, "unknown"), raw)

    def on_failed(self, event: dict[str, Any]) -> Sequence[Delta]:
        response = event.get("response") or {}
        raise error_from(response, provider="openai", model=self._model)

    def _finish(self, event: dict[str, Any], reason: FinishReason, raw: str) -> Sequence[Delta]:
        self.finished = True
        response = event.get("response") or {}
        usage = response.get("usage")
        started = self.on_created(event)
        counted = (UsageDelta(_usage(usage)),) if usage else ()
        unsent = [call.take("") for call in self._calls.values() if not call.is_told]
        return (*started, *unsent, *counted, Finished(reason, raw))


# Any: vendor JSON.
_RESPONSE_EVENTS: dict[str, Callable[[_ResponsesStream, dict[str, Any]], Sequence[Delta]]] = {
    "response.created": _ResponsesStream.on_created,
    "response.in_progress": _ResponsesStream.on_created,
    "response.output_text.delta": _ResponsesStream.on_text,
    "response.output_text.done": _ResponsesStream.on_text_done,
    "response.refusal.delta": _ResponsesStream.on_refusal,
    "response.reasoning_summary_text.delta": _ResponsesStream.on_thinking,
    "response.reasoning_text.delta": _ResponsesStream.on_thinking,
    "response.reasoning_summary_part.added": _ResponsesStream.on_thinking_part,
    "response.output_item.added": _ResponsesStream.on_item,
    "response.output_item.done": _ResponsesStream.on_item_done,
    "response.function_call_arguments.delta": _ResponsesStream.on_arguments,
    "response.function_call_arguments.done": _ResponsesStream.on_arguments_done,
    "response.completed": _ResponsesStream.on_completed,
    "response.incomplete": _ResponsesStream.on_incomplete,
    "response.failed": _ResponsesStream.on_failed,
}
