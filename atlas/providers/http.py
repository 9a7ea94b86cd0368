"""What an HTTP error answer means, in neutral terms: shared by every adapter that speaks HTTP.

Vendors word the same fact differently (a status, a ``code``, a ``type``, a sentence). `error_from`
reads them all and returns the one `ProviderError` subclass that says it, with the vendor's facts
as attributes and one sentence that names the mend. It knows words, not vendors, so that servers
compatible with some vendor's protocol are understood as well. `transport_error` does the same for
what an HTTP client raises when there is no answer at all.
"""

from __future__ import annotations

import json
import math
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, MutableMapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from atlas.core.effects import hide
from atlas.errors import (
    AuthenticationError,
    BadRequestError,
    ConnectionFailedError,
    ContentFilteredError,
    ContextLengthError,
    DeadlineExceededError,
    InvalidResponseError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ProviderError,
    QuotaExceededError,
    RateLimitedError,
    ServerError,
)

__all__ = [
    "NO_KEY",
    "VendorError",
    "error_from",
    "hide_secrets",
    "hide_sent",
    "note_refusal",
    "retry_after_seconds",
    "transport_error",
    "vendor_error",
]

_REFUSAL = "atlas.refusal"

_NAMES_OF_SECRETS = ("authorization", "cookie", "key", "token", "secret")

NO_KEY = "none"
"""Sent as the key to servers that ask for none, by clients that have to send one."""


class VendorError(NamedTuple):
    """What a vendor's error body says: its sentence and its words for the kind of error."""

    message: str = ""
    code: str = ""
    type: str = ""


# Words seen in `code` and `type`, of the vendors and of the servers compatible with them.
_KINDS: dict[str, type[ProviderError]] = {
    "invalid_api_key": AuthenticationError,
    "authentication_error": AuthenticationError,
    "invalid_authentication": AuthenticationError,
    "account_deactivated": AuthenticationError,
    "permission_error": PermissionDeniedError,
    "permission_denied": PermissionDeniedError,
    "unsupported_country_region_territory": PermissionDeniedError,
    "insufficient_quota": QuotaExceededError,
    "billing_error": QuotaExceededError,
    "billing_hard_limit_reached": QuotaExceededError,
    "billing_not_active": QuotaExceededError,
    "credit_balance_too_low": QuotaExceededError,
    "rate_limit_exceeded": RateLimitedError,
    "rate_limit_error": RateLimitedError,
    "requests": RateLimitedError,
    "tokens": RateLimitedError,
    "overloaded_error": OverloadedError,
    "overloaded": OverloadedError,
    "server_is_overloaded": OverloadedError,
    "engine_overloaded": OverloadedError,
    "slow_down": OverloadedError,
    "unavailable_error": OverloadedError,
    "model_not_found": ModelNotFoundError,
    "model_not_found_error": ModelNotFoundError,
    "deploymentnotfound": ModelNotFoundError,
    "context_length_exceeded": ContextLengthError,
    "exceed_context_size_error": ContextLengthError,
    "string_above_max_length": ContextLengthError,
    "request_too_large": ContextLengthError,
    "content_filter": ContentFilteredError,
    "content_policy_violation": ContentFilteredError,
    "responsibleaipolicyviolation": ContentFilteredError,
    "moderation_blocked": ContentFilteredError,
    "image_content_policy_violation": ContentFilteredError,
}

# What only the sentence tells: each needle is looked for in the lower-cased message.
_PHRASES: tuple[tuple[str, type[ProviderError]], ...] = (
    ("maximum context length", ContextLengthError),
    ("context size", ContextLengthError),
    ("context window", ContextLengthError),
    ("context length", ContextLengthError),
    ("prompt is too long", ContextLengthError),
    ("credit balance is too low", QuotaExceededError),
    ("exceeded your current quota", QuotaExceededError),
    ("content management policy", ContentFilteredError),
    ("content filtering policy", ContentFilteredError),
)

# An error inside a stream has no status of its own; its word says which one it would have had.
_STATUS_OF_WORD: dict[str, int] = {
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "bad_request": 400,
    "not_found_error": 404,
}

_STATUSES: dict[int, type[ProviderError]] = {
    401: AuthenticationError,
    402: QuotaExceededError,
    403: PermissionDeniedError,
    408: ServerError,
    409: OverloadedError,
    413: ContextLengthError,
    425: OverloadedError,
    429: RateLimitedError,
    503: OverloadedError,
    529: OverloadedError,
}

_SAID: dict[type[ProviderError], str] = {
    AuthenticationError: "does not accept the API key; check the key and the account it belongs to",
    PermissionDeniedError: "does not let this key do this; ask for access or use another key",
    QuotaExceededError: "says that the account's credit is used up; add credit or change provider",
    RateLimitedError: "was asked too often; wait before the next try or ask for a higher limit",
    OverloadedError: "has no capacity at the moment; try again later or use another model",
    ServerError: "failed on its side; try again",
    ModelNotFoundError: "does not offer the model {model!r}, at least not with this key; check the name",
    ContextLengthError: (
        "cannot fit the prompt and its answer into the model's context window; shorten the "
        "conversation or choose a model with a larger one"
    ),
    ContentFilteredError: "refused the prompt by its content filter; word it differently",
    BadRequestError: "refuses the request as it stands; correct it by what the vendor says",
    InvalidResponseError: (
        "gave an answer that is not of the protocol expected; check the base URL and any proxy"
    ),
}

_NOTHING_HERE = "has nothing at this address; check the base URL, and that the server has this API"


def retry_after_seconds(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return how long the server asks to wait, in seconds, or None when it does not say.

    Reads ``retry-after-ms`` (milliseconds), then ``retry-after`` as seconds or as an HTTP date.
    What cannot be read counts as not said; a time in the past counts as 0.

    Args:
        headers: The answer's headers, looked up by lower-case name.
        now: Unix time to measure an HTTP date against, in seconds; default: the system's.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    said = headers.get("retry-after")
    seconds = _number(said)
    if seconds is not None or not said:
        return seconds
    try:
        when = parsedate_to_datetime(said).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, when - (time.time() if now is None else now))


def vendor_error(body: object) -> VendorError:
    """Read a vendor's error body, whatever its form: JSON text, decoded JSON, HTML or words.

    Understands ``{"error": {"message", "code", "type"}}``, ``{"error": "words"}``, the same fields
    at the top, ``{"detail": ...}`` and plain text; a web page is summed up, not quoted.
    """
    if isinstance(body, bytes | bytearray):
        body = bytes(body).decode("utf-8", "replace")
    if isinstance(body, str):
        body = _parsed(body)
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, Mapping):
        return VendorError(_shown(body))
    error = body.get("error")
    if not isinstance(error, Mapping):
        error = body if error is None else {**body, "message": error}
    return VendorError(
        message=_shown(error.get("message") or error.get("detail") or ""),
        code=_word(error.get("code")),
        type=_word(error.get("type")).removeprefix("error"),
    )


def error_from(
    body: object,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    provider: str = "",
    model: str = "",
    partial: str = "",
    now: float | None = None,
) -> ProviderError:
    """Return the neutral error for a vendor's error answer, or for an error event in a stream.

    Args:
        body: The answer's body or the event's data: bytes, text or decoded JSON.
        status: The HTTP status of the answer; None for an error inside a stream.
        headers: The answer's headers, looked up by lower-case name.
        provider: Name of the provider asked.
        model: Name of the model asked.
        partial: Text that had arrived.
        now: Unix time against which a ``retry-after`` date is measured.
    """
    headers = headers or {}
    said = vendor_error(body)
    if status is None and said.code.isdigit():
        status = int(said.code)
    word = said.type if said.code.isdigit() else said.code or said.type
    kind = _kind(status, said)
    return kind(
        _sentence(kind, said, word=word, status=status, provider=provider, model=model),
        provider=provider,
        model=model,
        status=status,
        code=word or None,
        request_id=_request_id(headers, body),
        retry_after=retry_after_seconds(headers, now=now),
        partial=partial,
    )


def transport_error(
    error: BaseException,
    *,
    provider: str = "",
    model: str = "",
    address: str = "",
    connect_timeout: float | None = None,
    partial: str = "",
) -> ProviderError:
    """Return the neutral error for what an HTTP client, or an SDK around one, raised.

    The error and its causes are told apart by class name, since httpx and httpx2 use the same
    names and this module must not import either.

    Args:
        error: What was raised.
        provider: Name of the provider asked.
        model: Name of the model asked.
        address: Where the request was sent, for the sentence.
        connect_timeout: The connect deadline in force, in seconds.
        partial: Text that had arrived.
    """
    chain = list(_causes(error))
    if (refusal := _refusal_of(error)) is not None:
        status, headers = refusal
        return error_from(
            b"", status=status, headers=headers, provider=provider, model=model, partial=partial
        )
    names = {base.__name__ for cause in chain for base in type(cause).__mro__}
    who = provider or "The provider"
    where = f" at {address}" if address else ""
    detail = next((text for cause in reversed(chain) if (text := _shown(str(cause)))), "")
    said = (
        f" ({type(chain[-1]).__name__}: {detail})" if detail else f" ({type(chain[-1]).__name__})"
    )
    if names & {"ConnectTimeout", "PoolTimeout"} and connect_timeout is not None:
        return DeadlineExceededError(
            f"{who}{where} gave no connection within {connect_timeout:g} s; check the address and "
            f"the network, or raise the connect deadline.",
            deadline="connect",
            seconds=connect_timeout,
            provider=provider,
            model=model,
            partial=partial,
        )
    if "TooManyRedirects" in names:
        return InvalidResponseError(
            f"{who}{where} redirects without end; check the base URL.",
            provider=provider,
            model=model,
            partial=partial,
        )
    if names & {"DecodingError", "InvalidURL", "UnsupportedProtocol"}:
        return InvalidResponseError(
            f"{who}{where} cannot be talked to; check the base URL and any proxy{said}.",
            provider=provider,
            model=model,
            partial=partial,
        )
    if any(isinstance(cause, ssl.SSLError) for cause in chain):
        problem = "offers no TLS connection that can be trusted; check https, certificate and proxy"
    elif any(isinstance(cause, ConnectionRefusedError) for cause in chain):
        problem = "refused the connection; check that the server runs and the address is right"
    elif any(isinstance(cause, socket.gaierror) for cause in chain):
        problem = "has no address on the network; check the base URL and the name service"
    elif "ConnectError" in names:
        problem = "cannot be reached; check the base URL and the network"
    else:
        problem = "broke off the connection; ask again"
    return ConnectionFailedError(
        f"{who}{where} {problem}{said}.", provider=provider, model=model, partial=partial
    )


async def note_refusal(response: _Answer) -> None:
    """Note an error answer with its request: an event hook for the HTTP client of an SDK.

    SDKs read the body of an error answer before they say that it is one. Where the connection breaks
    meanwhile, `transport_error` finds the status here: a refused key stays one.
    """
    if response.status_code >= 400:
        response.request.extensions[_REFUSAL] = response.status_code, response.headers


async def hide_secrets(request: _Request) -> None:
    """Keep the secrets that are sent out of the log: an event hook for an HTTP client, before it sends.

    Servers, and proxies before them, quote keys in errors, and some in answers.
    """
    hide_sent(request.headers, str(request.url))


def hide_sent(headers: Mapping[str, str], url: str) -> None:
    """Keep the secrets in the headers and the address of a request out of the log; see `hide_secrets`."""
    hide(*_secrets_in(headers, url))


def _secrets_in(headers: Mapping[str, str], url: str) -> Iterator[str]:
    for name, value in headers.items():
        if any(each in name.lower() for each in _NAMES_OF_SECRETS):
            secret = value.rpartition(" ")[2]  # without "Bearer", which is none
            if secret != NO_KEY:
                yield secret
    password = urlsplit(url).password
    if password:
        yield unquote(password)
        yield password


class _Request(Protocol):
    # Any: each extension is of a type of its own.
    @property
    def extensions(self) -> MutableMapping[str, Any]: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def url(self) -> object: ...


class _Answer(Protocol):
    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def request(self) -> _Request: ...


def _refusal_of(error: BaseException) -> tuple[int, Mapping[str, str]] | None:
    """Return status and headers of the error answer during which a transport error came."""
    try:
        request = getattr(error, "request", None)
    except RuntimeError:  # httpx: this error has none
        return None
    found: tuple[int, Mapping[str, str]] | None = getattr(request, "extensions", {}).get(_REFUSAL)
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it came from, outermost first, each once."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup) and current.exceptions:
            current = current.exceptions[0]
        else:
            current = current.__cause__ or current.__context__


def _sentence(
    kind: type[ProviderError],
    said: VendorError,
    *,
    word: str,
    status: int | None,
    provider: str,
    model: str,
) -> str:
    who = provider or "The provider"
    mend = _NOTHING_HERE if kind is BadRequestError and status == 404 else _SAID[kind]
    facts = ", ".join(filter(None, (f"HTTP {status}" if status else "", word)))
    where = f" ({facts})" if facts else ""
    quoted = f" It said: {said.message}" if said.message else ""
    return f"{who} {mend.format(model=model)}{where}.{quoted}"


def _kind(status: int | None, said: VendorError) -> type[ProviderError]:
    words = (said.code.lower(), said.type.lower())
    for word in words:
        if word in _KINDS:
            return _KINDS[word]
    if status is None:
        status = next((_STATUS_OF_WORD[word] for word in words if word in _STATUS_OF_WORD), None)
    if status is None or status in (400, 404, 413, 422):
        return _kind_of_sentence(said.message.lower()) or _kind_of_status(status)
    return _kind_of_status(status)


def _kind_of_sentence(sentence: str) -> type[ProviderError] | None:
    for phrase, kind in _PHRASES:
        if phrase in sentence:
            return kind
    if sentence.startswith("model:"):
        return ModelNotFoundError
    if "model" in sentence and ("not found" in sentence or "does not exist" in sentence):
        return ModelNotFoundError
    return None


def _kind_of_status(status: int | None) -> type[ProviderError]:
    if status is None or status >= 500:
        return _STATUSES.get(status or 0, ServerError)
    if status < 400:
        return InvalidResponseError
    return _STATUSES.get(status, BadRequestError)


def _request_id(headers: Mapping[str, str], body: object) -> str | None:
    for name in ("x-request-id", "request-id"):
        if headers.get(name):
            return headers[name]
    if isinstance(body, Mapping) and isinstance(body.get("request_id"), str):
        return str(body["request_id"])
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _word(value: object) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _shown(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    if text[:15].lower().startswith(("<!doctype", "<html")):
        return "(a web page, not an answer of the API)"
    return text if len(text) <= 300 else f"{text[:297]}..."
